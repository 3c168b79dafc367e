"""Finds limits on the towers' loads that an assignment can keep, or says which rules leave none.

1. What single pins, units and sets of features to keep apart show is seen without a solver, which may take long.
2. A first assignment shows that limits and rules can be kept: done.
3. Limits that the user left to us are opened as little as the rules and the sizes of the units allow.
4. Otherwise the error names the rules that exclude each other, and the bound from which on there is an assignment.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, islice

import networkx as nx
import numpy as np

from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner.balance import COST_TOTAL, Limits, fair_share
from dmt_plugin.partitioner.exact import UndecidedError, contradiction, first_assignment, tightest
from dmt_plugin.partitioner.packing import Labels, Packing, quick_assignment
from dmt_plugin.partitioner.units import Unit

_LIMITS = "dmt.partition.balance and bound"
_MOST_PLACES = 4000
"""Units times towers up to which the solver finds the tightest limits in seconds."""
_MOST_CROWDS = 10_000
"""Sets of features apart from each other to look at; what is behind them is left to the solver."""


def settled(
    packing: Packing,
    units: Sequence[Unit],
    apart: Mapping[tuple[int, int], tuple[str, str]],
    *,
    fixed: bool,
    by_cost: bool,
) -> Packing:
    """The packing with limits that some assignment keeps.

    Args:
        packing: limits and rules asked for.
        units: the packing's units, for messages.
        apart: pairs of units to keep apart, with the features that were named.
        fixed: the limits are a promise; do not open them.
        by_cost: weights are costs, for messages.

    Raises:
        PlanError: limits and rules exclude each other; names which.
    """
    if packing.plain and not apart:
        return packing
    _refuse_crowds(packing.towers, apart)
    what = "of the cost" if by_cost else "features"
    overfull = _overfull(packing, units, what)
    try:
        if not overfull and first_assignment(packing, np.zeros(packing.allowed.shape)) is not None:
            return packing
    except UndecidedError:
        if fixed:
            raise  # limits that are ours to open are opened, as if there were no assignment

    opened = _opened(packing, by_cost)
    if opened is not None and not fixed:
        return replace(packing, limits=opened[0])
    at_fault = overfull or ", ".join(
        contradiction(
            packing,
            {
                i: (int(np.flatnonzero(packing.allowed[i])[0]), f"dmt.partition.pin of {unit.pinned_by!r}")
                for i, unit in enumerate(units)
                if unit.pin is not None
            },
            {pair: f"dmt.partition.apart of {a!r} and {b!r}" for pair, (a, b) in apart.items()},
            _LIMITS,
        )
    )
    if at_fault == _LIMITS:
        at_fault = f"{_weighty(packing, units, what)} and {_LIMITS}"
    cannot = f"{packing.towers} towers cannot keep these rules together: {at_fault or 'the rules of dmt.partition'}."
    if opened is None:
        raise PlanError(f"{cannot} Drop one of them, or change the number of towers.")
    loads = packing.loads(opened[1])
    least = loads.max() / fair_share(packing.weights, packing.towers) if by_cost else loads.max() / max(1, loads.min())
    raise PlanError(f"{cannot} Set dmt.partition.bound to at least {np.ceil(least * 1000) / 1000:g}, or drop a rule.")


def _overfull(packing: Packing, units: Sequence[Unit], what: str) -> str:
    """Why a tower would weigh too much, where a look at single units and pins is enough; otherwise empty."""
    most = f"{_LIMITS}, which let a tower hold {_said(packing.limits.high, what)}"
    for i in np.flatnonzero(packing.weights > packing.limits.high).tolist():
        tied = f"{list(units[i].names)} must share a tower" if len(units[i].names) > 1 else f"{units[i].names[0]!r}"
        return f"{tied} ({_said(packing.weights[i], what)}) and {most}"
    for t in range(packing.towers):
        own = [i for i, unit in enumerate(units) if unit.pin is not None and packing.allowed[i, t]]
        if (weight := int(packing.weights[own].sum())) > packing.limits.high:
            pins = ", ".join(f"dmt.partition.pin of {units[i].pinned_by!r}" for i in own)
            return f"{pins} ({_said(weight, what)} in one tower) and {most}"
    return ""


def _weighty(packing: Packing, units: Sequence[Unit], what: str) -> str:
    """The heaviest units: where only their weights and the limits stand in the way, those are hard to place."""
    heaviest = np.argsort(-packing.weights, kind="stable")[:3].tolist()
    shown = [f"{', '.join(map(repr, units[i].names))} ({_said(packing.weights[i], what)})" for i in heaviest]
    return f"weights that cannot be divided, the heaviest {'; '.join(shown)},"


def _said(weight: int, what: str) -> str:
    return f"{weight} {what}" if what == "features" else f"{weight / COST_TOTAL:.4f} {what}"


def _opened(packing: Packing, by_cost: bool) -> tuple[Limits, Labels] | None:
    """The tightest limits that can be kept: proved for few units, without the solver's patience for many."""
    if packing.allowed.size <= _MOST_PLACES:
        return tightest(packing, spread=not by_cost)
    total = int(packing.weights.sum())

    def kept(low: int, high: int) -> Labels | None:
        return quick_assignment(replace(packing, limits=Limits(low, high)), None)

    high = _least(lambda most: kept(0, most) is not None, packing.limits.high, total)
    if high is None:
        return tightest(packing, spread=not by_cost)
    less = _least(lambda less: kept(packing.limits.low - less, high) is not None, 0, packing.limits.low)
    limits = Limits(packing.limits.low - (packing.limits.low if less is None else less), high)
    labels = kept(limits.low, limits.high)
    assert labels is not None
    return limits, labels


def _least(holds: Callable[[int], bool], first: int, last: int) -> int | None:
    """The least number from ``first`` to ``last`` for which something holds that holds from somewhere on."""
    if not holds(last):
        return None
    while first < last:
        middle = (first + last) // 2
        if holds(middle):
            last = middle
        else:
            first = middle + 1
    return last


def largest_crowd(apart: Iterable[tuple[int, int]], members: Collection[int]) -> int:
    """The most units of some that are all to be apart from each other, as far as it is looked for; at least 1.

    Args:
        apart: pairs of units to keep apart.
        members: the units to look at.
    """
    inside = set(members)
    graph = nx.Graph([(u, v) for u, v in apart if u in inside and v in inside])
    return max((len(crowd) for crowd in islice(nx.find_cliques(graph), _MOST_CROWDS)), default=1)


def _refuse_crowds(towers: int, apart: Mapping[tuple[int, int], tuple[str, str]]) -> None:
    """Refuses units every two of which must be apart, if they are more than the towers."""
    graph = nx.Graph(list(apart))
    for crowd in islice(nx.find_cliques(graph), _MOST_CROWDS):
        if len(crowd) > towers:
            pairs = [apart[u, v] for u, v in combinations(sorted(crowd), 2)]
            names = sorted({name for pair in pairs for name in pair})
            raise PlanError(
                f"{towers} towers cannot keep these rules together: dmt.partition.apart keeps every two of {names} "
                f"apart ({pairs[0][0]!r} and {pairs[0][1]!r}, for one), which takes {len(crowd)} towers. Drop one of "
                "them, or change the number of towers."
            )
