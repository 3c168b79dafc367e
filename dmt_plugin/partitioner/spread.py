"""Gives every tower a feature of each group of features that the model joins.

A group of streams goes through tower modules only if every tower has one of its features: hosts would hold different
numbers of tower modules otherwise. A partition that was made for other reasons is changed as little as that takes:

1. Find a tower without a feature of a group, and the towers that have more than one of it.
2. Of all exchanges of a unit there with one of as many features here, take one after which fewer towers lack a group;
   among these, the one that costs least affinity between the features of a tower.
3. Repeat until no tower lacks anything, or no exchange helps: then it stays, and the transformation says so (DMT304).

Pinned features stay where they are, and features to keep apart stay apart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmt_plugin.partitioner.units import Unit

Labels = NDArray[np.int64]


def spread(
    labels: Labels,
    units: Sequence[Unit],
    towers: int,
    groups: Sequence[Collection[str]],
    apart: Mapping[tuple[int, int], Any],
    alike: NDArray[np.float64] | None = None,
) -> Labels:
    """The labels, changed where a tower has no feature of a group.

    Args:
        labels: tower of each unit.
        units: what goes to one tower together.
        towers: number of towers.
        groups: features that the model joins.
        apart: pairs of units that must not share a tower.
        alike: how much two units belong together, ``(units, units)``; without it the first exchange is taken.
    """
    inside = np.array([[bool(set(unit.names) & set(group)) for group in groups] for unit in units], dtype=bool)
    found = labels.copy()
    while lacking := _lacking(found, inside, towers):
        best: tuple[float, Labels] | None = None
        for tower, group in sorted(lacking):
            for there, here in product(np.flatnonzero(inside[:, group]), np.flatnonzero(found == tower)):
                if not _can_change(units, int(there), int(here)):
                    continue
                tried = found.copy()
                tried[there], tried[here] = tower, found[there]
                if len(_lacking(tried, inside, towers)) >= len(lacking) or _together(tried, apart):
                    continue
                cost = 0.0 if alike is None else _affinity(found, alike) - _affinity(tried, alike)
                if best is None or cost < best[0]:
                    best = cost, tried
        if best is None:
            break
        found = best[1]
    return found


def _lacking(labels: Labels, inside: NDArray[np.bool_], towers: int) -> set[tuple[int, int]]:
    """Towers and groups of which a tower has no feature."""
    return {(t, g) for t in range(towers) for g in range(inside.shape[1]) if not inside[labels == t, g].any()}


def _can_change(units: Sequence[Unit], a: int, b: int) -> bool:
    first, second = units[a], units[b]
    free = first.pin is None and second.pin is None and first.group == second.group
    return free and len(first.names) == len(second.names)


def _together(labels: Labels, apart: Mapping[tuple[int, int], Any]) -> bool:
    return any(labels[a] == labels[b] for a, b in apart)


def _affinity(labels: Labels, alike: NDArray[np.float64]) -> float:
    return float(alike[labels[:, None] == labels[None, :]].sum())
