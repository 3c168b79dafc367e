"""From features to towers: one call for every strategy, with the reasons kept.

1. Features that share a table, or that the user keeps together, become units; contradictions among the rules are
   named (:mod:`dmt_plugin.partitioner.units`).
2. For ``learned`` all features are laid out by their affinities; ``"auto"`` lays them out both ways and takes the
   objective whose layout has less stress.
3. Groups come first: towers are shared out among them, and what follows happens inside each.
4. Weights and limits are set. Where no assignment keeps limits and rules, those at fault are named.
5. The strategy gives every unit a tower; limits and rules are checked again, whatever it did.
6. Features stand in their tower in the model's order. Except for ``strided`` and ``contiguous``, nothing else depends
   on that order: all of the above sees the features sorted by name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmt_plugin.config.section import PartitionConfig
from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner import balance
from dmt_plugin.partitioner.affinity import Affinity
from dmt_plugin.partitioner.feasible import largest_crowd, settled
from dmt_plugin.partitioner.layout import FeatureLayout, as_dict, distances, lay_out
from dmt_plugin.partitioner.packing import Labels, Packing
from dmt_plugin.partitioner.spread import spread
from dmt_plugin.partitioner.strategies import IN_ORDER, NEED_AFFINITY, STRATEGIES, Case
from dmt_plugin.partitioner.units import Rules, Unit, Units, make_units
from dmt_plugin.plan.tower_plan import FeatureSpec, TableSpec
from dmt_plugin.topology.shape import divisors, one_of_numbers


@dataclass(frozen=True)
class Partition:
    """Towers, and how they came about.

    Attributes:
        towers: feature names of each tower, in the model's order.
        provenance: strategy, objective, seed, stress and balance, as plain data for a plan.
        loads: weight of each tower, in features or in shares of the cost.
        affinity: what the partition was made from, if anything.
        layout: the features' places, for a learned partition.
        features: names in the order of ``layout.points``.
    """

    towers: tuple[tuple[str, ...], ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    loads: tuple[float, ...] = ()
    affinity: Affinity | None = None
    layout: FeatureLayout | None = None
    features: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Plane:
    """The layout that ``learned`` works on, with the objective it shows."""

    layout: FeatureLayout
    objective: str
    distances: NDArray[np.float64]
    stress_1: Mapping[str, float]


def make_partition(
    features: Sequence[FeatureSpec],
    tables: Sequence[TableSpec],
    towers: int,
    config: PartitionConfig,
    *,
    affinity: Affinity | None = None,
    model: str = "",
    rows: Mapping[str, float] | None = None,
    joined: Sequence[Collection[str]] = (),
) -> Partition:
    """Assigns every feature to a tower.

    Args:
        features: the model's features, in the model's order.
        tables: the model's tables; needed for a balance by cost only.
        towers: number of towers ``T``.
        config: the ``partition`` section; any strategy but ``"file"``.
        affinity: for ``learned`` and ``graph``; by default the file that the config names.
        model: fingerprint of the model, to compare with the affinity's.
        rows: by table whose rows travel once the distinct rows that batches need per sample, for a balance by cost.
        joined: groups of features of each of which every tower is to have one, see
            :func:`dmt_plugin.partitioner.spread.spread`.

    Raises:
        PlanError: the affinity does not fit, there are more towers than units, or limits and rules cannot be kept;
            names the features or rules at fault.
    """
    if config.strategy not in STRATEGIES:
        raise PlanError(f"unknown partition strategy {config.strategy!r}; known: {sorted(STRATEGIES)}.")
    ordered = list(features) if config.strategy in IN_ORDER else sorted(features, key=lambda f: f.name)
    names = [f.name for f in ordered]
    rules = Rules(config.pin, config.together, config.apart, config.groups)
    units = make_units(ordered, rules, towers)
    if towers > len(units.units):
        tied = [list(unit.names) for unit in units.units if len(unit.names) > 1]
        shown = ", ".join(map(str, tied[:3])) + (f" and {len(tied) - 3} more sets" if len(tied) > 3 else "")
        why = f"; {shown} share a table or are kept together by dmt.partition.together" if tied else ""
        raise PlanError(
            f"{towers} towers but only {len(units.units)} independent features (of {len(features)}{why}). Lower "
            f"dmt.towers.count to at most {len(units.units)}{_wider_hosts(towers, len(units.units))}."
        )
    found = _affinity(config, affinity, names, model)
    plane = _plane(config, found, names) if config.strategy == "learned" and found is not None else None
    cost = None
    if config.balance == "cost" or config.strategy == "greedy_balance":
        cost = balance.feature_costs(ordered, tables, config.cost.model_dump(), rows or {})
    labels, groups = _solve(config, units, towers, names, cost, found, plane)
    if joined:
        alike = None if found is None else _between_units(found, units.units, plane is not None and plane.objective)
        labels = spread(labels, units.units, towers, joined, units.apart, alike)
    unit_of = {name: u for u, unit in enumerate(units.units) for name in unit.names}
    tower_of = {name: int(labels[unit_of[name]]) for name in names}
    result = tuple(tuple(f.name for f in features if tower_of[f.name] == t) for t in range(towers))
    scale = balance.COST_TOTAL if cost else 1
    loads = tuple(sum(cost[n] if cost else 1 for n in tower) / scale for tower in result)
    provenance: dict[str, Any] = {"strategy": config.strategy, "file": None}
    if config.strategy not in IN_ORDER:
        provenance |= {"seed": config.seed, "balance": {"by": "cost" if cost else "count", "groups": groups}}
        provenance["balance"]["loads"] = [round(load, 6) for load in loads]
        if rules:
            provenance["rules"] = config.model_dump(include={"pin", "together", "apart", "groups"})
    if found is not None:
        provenance["affinity"] = {
            "file": config.affinity if affinity is None else None, "kind": found.kind, "samples": found.samples,
            "model": found.model,
        }  # fmt: skip
    if plane is not None:
        provenance |= {
            "objective": plane.objective, "asked": config.objective, "method": config.method,
            "layout": as_dict(plane.layout), "stress_1": dict(plane.stress_1),
        }  # fmt: skip
    return Partition(result, provenance, loads, found, plane.layout if plane else None, tuple(names))


def _between_units(affinity: Affinity, units: Sequence[Unit], objective: str | bool) -> NDArray[np.float64]:
    """How much every two units belong in one tower."""
    place = {name: i for i, name in enumerate(affinity.features)}
    member = np.zeros((len(units), len(place)))
    for u, unit in enumerate(units):
        member[u, [place[name] for name in unit.names]] = 1.0
    alike: NDArray[np.float64] = member @ affinity.values @ member.T
    return -alike if objective == "diverse" else alike


def _wider_hosts(towers: int, most: int) -> str:
    """Which hosts of several machines would do, where every machine has a tower."""
    if not most:
        return ""
    fitting = [machines for machines in divisors(towers) if towers // machines <= most]
    return (
        f"; on {towers} machines put several together as one host, with one tower: dmt.topology.machines_per_host = "
        f"{one_of_numbers(fitting)}"
    )


def _affinity(config: PartitionConfig, given: Affinity | None, names: Sequence[str], model: str) -> Affinity | None:
    if config.strategy not in NEED_AFFINITY:
        return None
    if given is None and config.affinity is None:
        raise PlanError(
            f'"strategy": "{config.strategy}" needs dmt.partition.affinity, a file that says which features belong '
            "together. Measure one: dmt partition --model ... --data ... --save-affinity FILE."
        )
    source = "the affinity" if config.affinity is None or given is not None else str(Path(config.affinity))
    found = given if given is not None else Affinity.load(str(config.affinity))
    found.check(names, model, source)
    if config.objective == "mutual_information" and found.kind != "mutual_information":
        raise PlanError(
            f'dmt.partition.objective is "mutual_information", but {source} holds the affinity {found.kind!r}. '
            'Measure it with --objective mutual_information, or set "coherent".'
        )
    return replace(found, features=tuple(names), values=found.select(names))


def _plane(config: PartitionConfig, affinity: Affinity, names: Sequence[str]) -> _Plane:
    """Lays the features out by the objective asked for, or by both, and takes the one with less stress."""
    wanted = {"auto": ("coherent", "diverse"), "diverse": ("diverse",)}.get(config.objective, ("coherent",))
    found: dict[str, tuple[FeatureLayout, NDArray[np.float64]]] = {}
    for objective in wanted:
        apart = distances(affinity.values, objective, stretched=config.method == "refined")
        found[objective] = (
            lay_out(
                apart,
                dimensions=config.dimensions,
                restarts=config.restarts if len(names) <= 300 else min(2, config.restarts),
                steps=400 if len(names) <= 300 else 200,
                seed=config.seed,
            ),
            apart,
        )
    best = min(found, key=lambda objective: found[objective][0].stress_1)
    label = config.objective if config.objective == "mutual_information" else best
    return _Plane(*(found[best][0], label, found[best][1]), {o: x[0].stress_1 for o, x in found.items()})


def _solve(
    config: PartitionConfig,
    units: Units,
    towers: int,
    names: Sequence[str],
    cost: Mapping[str, int] | None,
    affinity: Affinity | None,
    plane: _Plane | None,
) -> tuple[Labels, list[dict[str, Any]]]:
    """Towers of all units, and what each group's towers weigh."""
    weights = balance.unit_weights(units.units, cost)
    groups: dict[str, list[int]] = {}
    for u, unit in enumerate(units.units):
        groups.setdefault(unit.group, []).append(u)
    shares = balance.towers_per_group(
        {g: int(weights[members].sum()) for g, members in groups.items()},
        {g: len(members) for g, members in groups.items()},
        towers,
        {g: largest_crowd(units.apart, members) for g, members in groups.items()} if len(groups) > 1 else None,
    )
    place = {name: i for i, name in enumerate(names)}
    labels = np.zeros(len(units.units), dtype=np.int64)
    report = []
    first = 0
    for group in [*(g for g in config.groups if g in groups), *(g for g in groups if g not in config.groups)]:
        members = groups[group]
        packing, text = _packing(config, units, members, weights, first, shares[group], cost is not None)
        rows = [place[name] for u in members for name in units.units[u].names]
        own = np.ix_(rows, rows)
        case = Case(
            packing,
            np.array([i for i, u in enumerate(members) for _ in units.units[u].names], dtype=np.int64),
            config.seed,
            config.restarts,
            None if affinity is None else affinity.values[own],
            None if plane is None else plane.layout.points[rows],
            plane.distances[own] if plane is not None and config.method == "refined" else None,
        )
        found = np.asarray(STRATEGIES[config.strategy](case), dtype=np.int64)
        if config.strategy not in IN_ORDER:
            if not packing.kept(found):  # a law of ours: every strategy keeps what it was given
                raise AssertionError(f"{config.strategy} broke limits or rules")
            found = _numbered(found, [units.units[u] for u in members], packing.towers)
        labels[members] = found + first
        loads = packing.loads(found)
        report.append({"group": group, "towers": shares[group], **text, **_measured(packing, loads, cost is not None)})
        first += shares[group]
    return labels, report


def _packing(
    config: PartitionConfig,
    units: Units,
    members: Sequence[int],
    weights: NDArray[np.int64],
    first: int,
    towers: int,
    by_cost: bool,
) -> tuple[Packing, dict[str, Any]]:
    """The packing of one group: towers ``first .. first + towers - 1``, numbered from 0."""
    own = weights[members]
    bound = None if config.bound == "auto" else float(config.bound)
    limits = (balance.cost_limits if by_cost else balance.count_limits)(own, towers, bound)
    allowed = np.ones((len(members), towers), dtype=bool)
    for i, u in enumerate(members):
        unit = units.units[u]
        if unit.pin is None:
            continue
        if not first <= unit.pin < first + towers:
            raise PlanError(
                f"dmt.partition.pin puts {unit.pinned_by!r} in tower {unit.pin}, but its group {unit.group!r} has the "
                f"towers {first}..{first + towers - 1}. Pin it to one of those, or change the groups."
            )
        allowed[i] = np.arange(towers) == unit.pin - first
    local = {u: i for i, u in enumerate(members)}
    apart = np.zeros((len(members), len(members)), dtype=bool)
    said: dict[tuple[int, int], tuple[str, str]] = {}
    for (u, v), who in units.apart.items():
        if u in local and v in local:
            apart[local[u], local[v]] = apart[local[v], local[u]] = True
            said[local[u], local[v]] = who
    packing = Packing(own, towers, limits, allowed, apart)
    if config.strategy in IN_ORDER:
        return packing, {}
    fixed = bound is not None
    packing = settled(packing, [units.units[u] for u in members], said, fixed=fixed, by_cost=by_cost)
    if bound is not None and not by_cost and packing.limits.high > bound * packing.limits.low + 1e-9:
        raise PlanError(
            f"dmt.partition.bound = {bound:g} cannot be kept: {int(own.sum())} features in {towers} towers are at best "
            f"{limits.low} in one and {limits.high} in another. Set it to at least "
            f"{np.ceil(limits.high / limits.low * 1000) / 1000:g}, or change the number of towers."
        )
    return packing, {"bound": config.bound, "low": packing.limits.low, "high": packing.limits.high}


def _measured(packing: Packing, loads: NDArray[np.int64], by_cost: bool) -> dict[str, Any]:
    """The figure that the bound is about, as it came out."""
    if by_cost:
        share = balance.fair_share(packing.weights, packing.towers)
        return {"heaviest_to_fair_share": round(float(loads.max()) / share, 4)}
    return {"largest_to_smallest": round(float(loads.max() / loads.min()), 4)}


def _numbered(labels: Labels, units: Sequence[Unit], towers: int) -> Labels:
    """Numbers towers by their first feature's name; a tower with a pinned unit keeps its number."""
    kept = {int(labels[i]) for i, unit in enumerate(units) if unit.pin is not None}
    free = [t for t in range(towers) if t not in kept]
    order = sorted(free, key=lambda t: min(unit.names[0] for i, unit in enumerate(units) if labels[i] == t))
    number = {t: t for t in kept} | dict(zip(order, free, strict=True))
    return np.array([number[int(t)] for t in labels], dtype=np.int64)
