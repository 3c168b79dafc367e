"""Units into towers under limits and rules: the problem, and a quick search for an assignment that keeps them all.

1. Units go in by falling weight, each to the tower it likes best among those with room that it may go to.
2. Towers that ended up too light take from those that can give, cheapest first.
3. Where that fails, taste is forgotten: each unit goes to the lightest tower (longest processing time first), which
   packs well.

Where that fails too, there may still be one: :func:`dmt_plugin.partitioner.exact.first_assignment` asks a solver.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dmt_plugin.partitioner.balance import Limits

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Packing:
    """Which assignments are allowed.

    Attributes:
        weights: ``(U,)`` weight of each unit.
        towers: number of towers ``T``.
        limits: weight of every tower.
        allowed: ``(U, T)``, where a unit may go.
        apart: ``(U, U)`` symmetric, which units must not share a tower.
    """

    weights: NDArray[np.int64]
    towers: int
    limits: Limits
    allowed: NDArray[np.bool_]
    apart: NDArray[np.bool_]

    def loads(self, labels: Labels) -> NDArray[np.int64]:
        """``(T,)`` weight of every tower."""
        return np.bincount(labels, weights=self.weights, minlength=self.towers).astype(np.int64)

    def kept(self, labels: Labels) -> bool:
        """Whether an assignment keeps every limit and rule."""
        loads, units = self.loads(labels), np.bincount(labels, minlength=self.towers)
        same = labels[:, None] == labels[None, :]
        return bool(
            units.min() > 0
            and loads.min() >= self.limits.low
            and loads.max() <= self.limits.high
            and self.allowed[np.arange(len(labels)), labels].all()
            and not (same & self.apart).any()
        )

    @property
    def plain(self) -> bool:
        """Whether there is nothing but a number of equal units to keep."""
        return bool((self.weights == 1).all() and self.allowed.all() and not self.apart.any())


def quick_assignment(packing: Packing, taste: NDArray[np.float64] | None) -> Labels | None:
    """An assignment that keeps limits and rules, near what each unit would like; ``None`` proves nothing.

    Args:
        packing: what is allowed.
        taste: ``(U, T)``, less is better; ``None`` for the lightest tower.
    """
    for liking in (None,) if taste is None else (taste, None):
        labels = _fill(packing, liking)
        if labels is not None:
            return labels
    return None


def _fill(packing: Packing, taste: NDArray[np.float64] | None) -> Labels | None:
    units, towers = packing.allowed.shape
    labels = np.full(units, -1, dtype=np.int64)
    loads = np.zeros(towers, dtype=np.int64)
    # Units with the fewest places first: a pinned unit must not find its tower full.
    order = np.lexsort((np.arange(units), -packing.weights, packing.allowed.sum(1)))
    for u in order:
        free = packing.allowed[u] & (loads + packing.weights[u] <= packing.limits.high)
        if packing.apart[u].any():
            free[labels[packing.apart[u] & (labels >= 0)]] = False
        if not free.any():
            return None
        liking = loads if taste is None else taste[u]
        labels[u] = int(np.where(free, liking, np.inf).argmin())
        loads[labels[u]] += packing.weights[u]
    if not _raise_light_towers(packing, labels, loads, taste):
        return None
    return labels if packing.kept(labels) else None


def _raise_light_towers(
    packing: Packing, labels: Labels, loads: NDArray[np.int64], taste: NDArray[np.float64] | None
) -> bool:
    """Moves units into towers that are empty or too light, in place; says whether that worked."""
    everyone = np.arange(len(labels))
    counts = np.bincount(labels, minlength=packing.towers)
    for _ in range(len(labels)):
        light = np.flatnonzero((loads < packing.limits.low) | (counts == 0))
        if not len(light):
            return True
        t = int(light[loads[light].argmin()])
        source = labels
        fits = (
            packing.allowed[:, t]
            & (source != t)
            & (counts[source] > 1)
            & (loads[source] - packing.weights >= packing.limits.low)
            & (loads[t] + packing.weights <= packing.limits.high)
            & ~(packing.apart & (labels == t)).any(1)
        )
        if not fits.any():
            return False
        price = np.zeros(len(labels)) if taste is None else taste[:, t] - taste[everyone, source]
        u = int(np.where(fits, price, np.inf).argmin())
        for tower, step in ((labels[u], -1), (t, 1)):
            loads[tower] += step * packing.weights[u]
            counts[tower] += step
        labels[u] = t
    return False
