"""Better towers by moving one unit or swapping two, while limits and rules stay kept.

What falls is ``sum_t P_t / n_t`` with ``P_t`` the sum of ``A_ij`` over the pairs of features of tower ``t`` and ``n_t``
their number. With squared distances of points this is the inertia of K-means; with distances made of affinities it is
the mean distance of a feature to those it shares a tower with. One search serves both:

1. Price every move of a unit to another tower, and every swap of two units, at once.
2. Carry out the improvements from the best on, each tower at most once, so that the prices still hold.
3. Repeat until nothing improves. The sum falls in every round, so this ends.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dmt_plugin.partitioner.packing import Labels, Packing

_AT_ONCE = 4096
_LEAST = 1e-10


class PairCosts:
    """Costs of pairs of features, added up by unit.

    Args:
        costs: ``(F, F)`` symmetric; the diagonal is not read.
        unit_of: ``(F,)`` unit of each feature.
    """

    def __init__(self, costs: NDArray[np.float64], unit_of: NDArray[np.int64]) -> None:
        count = int(unit_of.max()) + 1
        member = np.zeros((len(unit_of), count))
        member[np.arange(len(unit_of)), unit_of] = 1
        plain = np.array(costs, dtype=np.float64)
        np.fill_diagonal(plain, 0.0)
        self.between = member.T @ plain @ member
        self.inside = np.diag(self.between) / 2
        np.fill_diagonal(self.between, 0.0)
        self.sizes = member.sum(0)

    def towers(self, labels: Labels, towers: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``(T,)`` pair sums ``P_t`` and ``(U, T)`` sums of each unit's pairs with a tower."""
        member = np.zeros((len(labels), towers))
        member[np.arange(len(labels)), labels] = 1
        sums = self.between @ member
        return (member * (sums / 2 + self.inside[:, None])).sum(0), sums

    def value(self, labels: Labels, towers: int) -> float:
        """``sum_t P_t / n_t``."""
        pairs, _ = self.towers(labels, towers)
        sizes = np.bincount(labels, weights=self.sizes, minlength=towers)
        return float((pairs / np.maximum(sizes, 1)).sum())


def improve(packing: Packing, costs: PairCosts, labels: Labels, rounds: int = 200) -> Labels:
    """Moves and swaps until nothing improves.

    Args:
        packing: limits and rules; ``labels`` keeps them, and so does the result.
        costs: what to lower.
        labels: ``(U,)`` towers to start from; not changed.
        rounds: most rounds.
    """
    labels = labels.copy()
    for _ in range(rounds):
        moves = _moves(packing, costs, labels)
        swaps = _swaps(packing, costs, labels)
        if not _carry_out(labels, moves, swaps):
            break
    return labels


def _moves(packing: Packing, costs: PairCosts, labels: Labels) -> NDArray[np.float64]:
    """``(U, T)`` change of the sum if a unit moves to a tower; infinite where it may not."""
    everyone = np.arange(len(labels))
    pairs, sums = costs.towers(labels, packing.towers)
    sizes = np.bincount(labels, weights=costs.sizes, minlength=packing.towers)
    loads, units = packing.loads(labels), np.bincount(labels, minlength=packing.towers)
    left = (pairs[labels] - sums[everyone, labels] - costs.inside) / np.maximum(sizes[labels] - costs.sizes, 1)
    gained = (pairs + sums + costs.inside[:, None]) / (sizes + costs.sizes[:, None])
    change = (left - (pairs / sizes)[labels])[:, None] + gained - pairs / sizes
    may = (
        packing.allowed
        & ((units[labels] > 1) & (loads[labels] - packing.weights >= packing.limits.low))[:, None]
        & (loads + packing.weights[:, None] <= packing.limits.high)
        & (_conflicts(packing, labels) == 0)
    )
    may[everyone, labels] = False
    return np.where(may, change, np.inf)


def _swaps(packing: Packing, costs: PairCosts, labels: Labels) -> NDArray[np.float64]:
    """``(U, U)`` change of the sum if two units swap places; infinite where they may not, and below the diagonal."""
    pairs, sums = costs.towers(labels, packing.towers)
    sizes = np.bincount(labels, weights=costs.sizes, minlength=packing.towers)
    loads = packing.loads(labels)
    everyone = np.arange(len(labels))
    # Row u, column v: what happens to the tower of u when u leaves it and v comes.
    grown = sizes[labels][:, None] + costs.sizes[None, :] - costs.sizes[:, None]
    own = sums[everyone, labels] + costs.inside
    after = pairs[labels][:, None] - own[:, None] + sums.T[labels] - costs.between + costs.inside[None, :]
    change = after / np.maximum(grown, 1) - (pairs / sizes)[labels][:, None]
    load = loads[labels][:, None] + packing.weights[None, :] - packing.weights[:, None]
    may = (load >= packing.limits.low) & (load <= packing.limits.high) & packing.allowed[:, labels]
    if packing.apart.any():
        may &= _conflicts(packing, labels)[:, labels] - packing.apart == 0
    change = change + change.T
    may = may & may.T & (labels[:, None] != labels[None, :])
    return np.where(np.triu(may, 1), change, np.inf)


def _conflicts(packing: Packing, labels: Labels) -> NDArray[np.int64]:
    """``(U, T)`` how many units of a tower must be kept apart from a unit."""
    found = np.zeros((len(labels), packing.towers), dtype=np.int64)
    for u, v in np.argwhere(packing.apart):
        found[u, labels[v]] += 1
    return found


def _carry_out(labels: Labels, moves: NDArray[np.float64], swaps: NDArray[np.float64]) -> bool:
    prices = np.concatenate([moves.ravel(), swaps.ravel()])
    count = int(min(_AT_ONCE, (prices < -_LEAST).sum()))
    if not count:
        return False
    best = np.argpartition(prices, count - 1)[:count]
    touched: set[int] = set()
    for place in best[np.lexsort((best, prices[best]))]:
        if place < moves.size:
            u, t = divmod(int(place), moves.shape[1])
            towers = {int(labels[u]), t}
        else:
            u, v = divmod(int(place) - moves.size, len(labels))
            towers = {int(labels[u]), int(labels[v])}
        if towers & touched:
            continue
        touched |= towers
        if place < moves.size:
            labels[u] = t
        else:
            labels[u], labels[v] = labels[v], labels[u]
    return True
