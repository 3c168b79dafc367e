"""How much a tower may hold: loads of units, and the limits that every tower keeps.

* ``"count"``: a unit weighs its number of features. With the bound ``R``, the largest tower has at most ``R`` times
  the features of the smallest, as in the paper; ``"auto"`` is as even as it goes.
* ``"cost"``: a unit weighs its share of the model's table bytes, ids per sample and output width, as the planner's cost
  model counts them, each times a weight of the user's. Of tables whose rows travel once, where these were counted, ids
  and width are those of the distinct rows. No tower weighs more than the bound times the fair share. A fair share is
  the mean over towers, or the heaviest unit where that is more: no partition can do better than that.
  ``"auto"`` is 1.1.

Weights are whole numbers, so that sums are exact and the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner.units import Unit
from dmt_plugin.plan.tower_plan import FeatureSpec, TableSpec
from dmt_plugin.planner.load import ASSUMED_IDS, CostModel

COST_TOTAL = 1_000_000
"""Sum of all features' costs, in whole numbers."""

_AUTO_COST_BOUND = 1.1


@dataclass(frozen=True)
class Limits:
    """What a tower may weigh.

    Attributes:
        low: least weight of a tower; every tower also has at least one unit.
        high: most weight of a tower.
    """

    low: int
    high: int


def feature_costs(
    features: Sequence[FeatureSpec],
    tables: Sequence[TableSpec],
    weights: Mapping[str, float],
    rows: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """Cost of every feature, in parts of :data:`COST_TOTAL`.

    Counted as for the placement of tables: bytes with the optimizer's state, and the same number of ids assumed where
    it varies. A table that several features read is shared out among them.

    Args:
        features: the model's features.
        tables: the model's tables.
        weights: of ``"bytes"`` (memory), ``"lookups"`` (rows read per sample) and ``"width"`` (entries sent).
        rows: by table whose rows travel once, if that was counted: the distinct rows that batches need per sample.

    Raises:
        PlanError: all weights are zero.
    """
    shape = {t.name: t for t in tables}
    readers = {t.name: sum(t.name in f.tables for f in features) for t in tables}
    memory = {t.name: CostModel().memory(t, t.rows, t.dim) for t in tables}
    counted = {table: count / readers[table] for table, count in (rows or {}).items() if table in readers}
    parts = {
        "bytes": [sum(memory[t] / readers[t] for t in f.tables) for f in features],
        "lookups": [float(sum(counted.get(t, f.hotness or ASSUMED_IDS) for t in f.tables)) for f in features],
        "width": [float(sum(counted.get(t, 1) * shape[t].dim for t in f.tables)) for f in features],
    }
    total = sum(weights[name] for name in parts)
    if total <= 0:
        raise PlanError("dmt.partition.cost has no weight above zero, so every feature costs nothing. Set one above 0.")
    shares = sum(weights[name] / total * np.array(values) / (sum(values) or 1.0) for name, values in parts.items())
    return {f.name: max(1, round(COST_TOTAL * float(s))) for f, s in zip(features, np.asarray(shares), strict=True)}


def unit_weights(units: Sequence[Unit], cost: Mapping[str, int] | None) -> NDArray[np.int64]:
    """``(U,)`` weights: numbers of features, or sums of their costs."""
    return np.array([sum(cost[n] if cost else 1 for n in unit.names) for unit in units], dtype=np.int64)


def count_limits(weights: NDArray[np.int64], towers: int, bound: float | None) -> Limits:
    """Limits of the number of features per tower.

    Args:
        weights: ``(U,)`` features of each unit.
        towers: number of towers.
        bound: ``R``; ``None`` for as even as it goes.

    Returns:
        The widest limits around the mean that keep ``high <= R * low``, and never tighter than what whole features
        allow. Units of several features may need more; the caller widens the limits where nothing fits.
    """
    total = int(weights.sum())
    even = Limits(total // towers, -(-total // towers))
    if bound is None:
        return even
    for low in range(max(1, math.ceil(2 * total / towers / (1 + bound))), even.low + 1):
        high = math.floor(bound * low + 1e-9)
        if high >= even.high:
            return Limits(low, high)
    return even


def cost_limits(weights: NDArray[np.int64], towers: int, bound: float | None) -> Limits:
    """Limits of the cost per tower; the bound is ``None`` for 1.1."""
    return Limits(0, math.floor((bound or _AUTO_COST_BOUND) * fair_share(weights, towers)))


def fair_share(weights: NDArray[np.int64], towers: int) -> float:
    """What the heaviest tower of any partition weighs at least: the mean, or the heaviest unit."""
    return max(float(weights.sum()) / towers, float(weights.max()))


def towers_per_group(
    weights: Mapping[str, int], units: Mapping[str, int], towers: int, least: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Shares out towers among groups by weight: the least for each, the others by the largest remaining load per tower.

    Args:
        weights: weight of every group.
        units: how many units each has, which is the most towers that it can fill.
        towers: towers to share out.
        least: towers that a group cannot do without, as it has so many features that are all to be apart; by default 1.

    Raises:
        PlanError: fewer towers than groups, or than they need, or more than all groups can fill.
    """
    if towers < len(weights):
        raise PlanError(
            f"{towers} towers but {len(weights)} groups of features ({', '.join(weights)}); a tower holds features of "
            "one group. Raise the number of towers or merge groups."
        )
    found = {group: max(1, (least or {}).get(group, 1)) for group in weights}
    if towers < sum(found.values()):
        needs = ", ".join(f"{group!r} {count}" for group, count in found.items())
        raise PlanError(
            f"{towers} towers, but with dmt.partition.apart the groups of features need {sum(found.values())}: "
            f"{needs}. Raise the number of towers, or drop rules."
        )
    for _ in range(towers - sum(found.values())):
        open_groups = [g for g in found if found[g] < units[g]]
        if not open_groups:
            raise PlanError(
                f"{towers} towers but only {sum(units.values())} units of features in {len(weights)} groups. Lower the "
                "number of towers."
            )
        found[max(open_groups, key=lambda g: (weights[g] / found[g], g))] += 1
    return found
