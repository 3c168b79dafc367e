"""Solves the assignment of units to towers exactly: whether one exists, the best balance, which rules contradict.

The heuristics in :mod:`dmt_plugin.partitioner.packing` may fail where an assignment exists; these are the proofs. They
run ortools' CP-SAT with one thread, a fixed seed and a limit in its own deterministic time, so that an answer is the
same on every machine and in every run.

1. ``any_assignment``: a variable per unit and tower; exactly one tower per unit, limits and rules as constraints.
2. ``tightest``: the same with the limits as variables; minimises the spread, or the heaviest tower.
3. ``contradiction``: leaves out one rule after the other for as long as the rest still exclude each other. What stays
   cannot hold together, though any fewer of them can.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner.balance import Limits
from dmt_plugin.partitioner.packing import Labels, Packing, quick_assignment

_EFFORT = 20.0  # deterministic time, of the order of seconds


class UndecidedError(PlanError):
    """The solver ran into its limit without an answer."""


def _cp() -> Any:
    try:
        from ortools.sat.python import cp_model
    except ImportError as error:
        raise PlanError(
            "this partition needs a constraint solver, which is not installed: pip install 'dmt-plugin[partition]'."
        ) from error
    return cp_model


def _solver() -> Any:
    solver = _cp().CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = 0
    solver.parameters.max_deterministic_time = _EFFORT
    return solver


def _model(packing: Packing) -> tuple[Any, dict[tuple[int, int], Any]]:
    model = _cp().CpModel()
    places = {(int(u), int(t)): model.new_bool_var(f"{u}:{t}") for u, t in np.argwhere(packing.allowed)}
    for u in range(len(packing.weights)):
        model.add_exactly_one(places[u, t] for t in range(packing.towers) if (u, t) in places)
    for t in range(packing.towers):
        model.add_bool_or(places[u, t] for u in range(len(packing.weights)) if (u, t) in places)
    for u, v in np.argwhere(np.triu(packing.apart)):
        for t in range(packing.towers):
            if (u, t) in places and (v, t) in places:
                model.add_at_most_one(places[int(u), t], places[int(v), t])
    return model, places


def _load(packing: Packing, places: dict[tuple[int, int], Any], tower: int) -> Any:
    return sum(int(packing.weights[u]) * place for (u, t), place in places.items() if t == tower)


def _labels(packing: Packing, solver: Any, places: dict[tuple[int, int], Any]) -> Labels:
    labels = np.zeros(len(packing.weights), dtype=np.int64)
    for (u, t), place in places.items():
        if solver.value(place):
            labels[u] = t
    return labels


def _placeable(packing: Packing) -> bool:
    return bool(packing.allowed.any(1).all() and packing.allowed.any(0).all())


def any_assignment(packing: Packing) -> Labels | None:
    """An assignment that keeps all limits and rules, or ``None`` if there is provably none.

    Raises:
        UndecidedError: neither was found within the limit of effort.
    """
    cp = _cp()
    if not _placeable(packing):
        return None
    model, places = _model(packing)
    for t in range(packing.towers):
        load = _load(packing, places, t)
        model.add(load >= packing.limits.low)
        model.add(load <= packing.limits.high)
    solver = _solver()
    status = solver.solve(model)
    if status in (cp.OPTIMAL, cp.FEASIBLE):
        return _labels(packing, solver, places)
    if status == cp.INFEASIBLE:
        return None
    raise UndecidedError(
        f"no assignment of {len(packing.weights)} units to {packing.towers} towers between {packing.limits.low} and "
        f"{packing.limits.high} was found, nor was it proved that there is none. Raise dmt.partition.bound."
    )


def first_assignment(packing: Packing, taste: NDArray[np.float64] | None) -> Labels | None:
    """An assignment that keeps limits and rules, near what each unit would like; the solver is asked last.

    Args:
        packing: what is allowed.
        taste: ``(U, T)``, less is better; ``None`` for the lightest tower.

    Returns:
        ``(U,)`` towers, or ``None`` if there is provably no assignment.
    """
    labels = quick_assignment(packing, taste)
    return any_assignment(packing) if labels is None else labels


def tightest(packing: Packing, *, spread: bool) -> tuple[Limits, Labels] | None:
    """The tightest limits found that leave an assignment, whatever ``packing.limits`` says.

    Args:
        packing: weights and rules.
        spread: minimise heaviest less lightest; else the heaviest alone.

    Returns:
        Limits and an assignment that keeps them, or ``None`` if the rules alone exclude each other.
    """
    cp = _cp()
    if not _placeable(packing):
        return None
    model, places = _model(packing)
    total = int(packing.weights.sum())
    low, high = model.new_int_var(0, total, "low"), model.new_int_var(0, total, "high")
    for t in range(packing.towers):
        load = _load(packing, places, t)
        model.add(load >= low)
        model.add(load <= high)
    model.minimize(high - low if spread else high)
    solver = _solver()
    status = solver.solve(model)
    if status == cp.INFEASIBLE:
        return None
    if status not in (cp.OPTIMAL, cp.FEASIBLE):
        raise UndecidedError(
            f"the rules of dmt.partition could not be decided for {len(packing.weights)} units and {packing.towers} "
            "towers. Give fewer rules."
        )
    labels = _labels(packing, solver, places)
    loads = packing.loads(labels)
    return Limits(int(loads.min()) if spread else 0, int(loads.max())), labels


def contradiction(
    packing: Packing, pins: Mapping[int, tuple[int, str]], apart: Mapping[tuple[int, int], str], limits: str
) -> list[str]:
    """Rules that cannot hold together, as few as leaving out one after the other leads to.

    Args:
        packing: weights, limits and the towers; its own rules are not looked at.
        pins: for pinned units the tower, and the rule in words.
        apart: pairs of units to keep apart, and the rule in words.
        limits: the limits in words.

    Returns:
        The rules in words; empty if all can hold, or if the solver could not tell.
    """
    cp = _cp()
    free = Packing(
        packing.weights, packing.towers, packing.limits, np.ones_like(packing.allowed), np.zeros_like(packing.apart)
    )

    def excluded(words: list[str]) -> bool:
        model, places = _model(free)
        for u, (tower, text) in pins.items():
            if text in words:
                model.add(places[u, tower] == 1)
        for (u, v), text in apart.items():
            if text in words:
                for t in range(packing.towers):
                    model.add_at_most_one(places[u, t], places[v, t])
        if limits in words:
            for t in range(packing.towers):
                load = _load(free, places, t)
                model.add(load >= packing.limits.low)
                model.add(load <= packing.limits.high)
        return bool(_solver().solve(model) == cp.INFEASIBLE)

    found = [*(text for _, text in pins.values()), *apart.values(), limits]
    if not excluded(found):
        return []
    for text in list(found):
        fewer = [other for other in found if other != text]
        if excluded(fewer):
            found = fewer
    return found
