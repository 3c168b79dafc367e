"""Partition strategies under one interface: from a :class:`Case` to a tower for each unit.

* ``learned``: features in the plane of their affinities, balanced clusters there (section 4 of the paper), improved by
  swaps on the affinities themselves.
* ``graph``: communities of the affinity graph, made to fit the limits.
* ``random``: drawn from the seed; the honest baseline, over several seeds.
* ``greedy_balance``: heaviest unit first, to the lightest tower.
* ``strided`` and ``contiguous`` look at nothing but the order of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner.clusters import balanced_clusters
from dmt_plugin.partitioner.exact import first_assignment
from dmt_plugin.partitioner.local_search import PairCosts, improve
from dmt_plugin.partitioner.packing import Labels, Packing

_LARGE = 300
"""Features from which on the slower of two ways is not taken."""


@dataclass(frozen=True)
class Case:
    """What a strategy may look at. Features are in an order that does not depend on the model's.

    Attributes:
        packing: which assignments of units to towers are allowed.
        unit_of: ``(F,)`` unit of each feature.
        seed: seed of whatever is drawn.
        restarts: how many starting points to try.
        affinity: ``(F, F)`` affinities, or ``None``.
        points: ``(F, n)`` the features' places in the plane, for ``learned``.
        pair_costs: ``(F, F)`` distances to improve on after clustering, or ``None`` to leave the clusters as they are.
    """

    packing: Packing
    unit_of: NDArray[np.int64]
    seed: int = 0
    restarts: int = 8
    affinity: NDArray[np.float64] | None = None
    points: NDArray[np.float64] | None = None
    pair_costs: NDArray[np.float64] | None = None


Strategy = Callable[[Case], Labels]


def strided(case: Case) -> Labels:
    """Deals the units out like cards: unit ``i`` goes to tower ``i mod T`` (paper, section 5.2.3)."""
    return np.arange(len(case.packing.weights)) % case.packing.towers


def contiguous(case: Case) -> Labels:
    """Cuts the list of units into ``T`` runs whose lengths differ by at most one."""
    units, towers = len(case.packing.weights), case.packing.towers
    short, extra = divmod(units, towers)
    return np.repeat(np.arange(towers), [short + (t < extra) for t in range(towers)])


def learned(case: Case) -> Labels:
    """Balanced clusters in the plane; of several starts the one whose towers are tightest in the end."""
    assert case.points is not None
    restarts = case.restarts if len(case.unit_of) <= _LARGE else min(case.restarts, 2)
    plane = ((case.points[:, None, :] - case.points[None, :, :]) ** 2).sum(2)
    judge = PairCosts(plane if case.pair_costs is None else case.pair_costs, case.unit_of)
    best: tuple[float, Labels] | None = None
    for start in range(restarts):
        labels = balanced_clusters(case.points, plane, case.unit_of, case.packing, case.seed + start)
        if case.pair_costs is not None:
            labels = improve(case.packing, judge, labels)
        value = judge.value(labels, case.packing.towers)
        if best is None or value < best[0] - 1e-12:
            best = value, labels
    assert best is not None
    return best[1]


def graph(case: Case) -> Labels:
    """Communities of the graph of the stronger half of the affinities, filled up to the limits."""
    import networkx as nx

    assert case.affinity is not None
    count, towers = len(case.unit_of), case.packing.towers
    strong = case.affinity.copy()
    np.fill_diagonal(strong, 0.0)
    if count > 1:
        # Every pair has some affinity; without a threshold the graph is complete and modularity sees no community.
        strong = np.clip(strong - np.median(strong[~np.eye(count, dtype=bool)]), 0.0, None)
    found = nx.from_numpy_array(strong)
    communities: Sequence[Collection[int]]
    if towers == 1 or not found.number_of_edges():
        communities = [set(range(count))]
    elif count <= _LARGE:
        communities = nx.community.greedy_modularity_communities(found, weight="weight", cutoff=towers, best_n=towers)
    else:
        communities = nx.community.louvain_communities(found, weight="weight", seed=case.seed)
    ordered = sorted((sorted(c) for c in communities), key=lambda c: (-len(c), c))
    taste = np.zeros((len(case.packing.weights), towers))
    for t, members in enumerate(ordered[:towers]):
        liking = strong[:, members].sum(1) / len(members)
        taste[:, t] = -np.bincount(case.unit_of, weights=liking)
        taste[np.unique(case.unit_of[members]), t] -= strong.sum()  # a member stays, where there is room
    return _fitted(case.packing, taste)


def random(case: Case) -> Labels:
    """Random tastes, asked in random order: equal units without rules are exchangeable, so all partitions of them into
    towers of the same sizes are equally likely."""
    rng = np.random.default_rng(case.seed)
    packing = case.packing
    order = rng.permutation(len(packing.weights))
    shuffled = replace(
        packing, weights=packing.weights[order], allowed=packing.allowed[order], apart=packing.apart[order][:, order]
    )
    labels = np.empty(len(order), dtype=np.int64)
    labels[order] = _fitted(shuffled, rng.random((len(order), packing.towers)))
    return labels


def greedy_balance(case: Case) -> Labels:
    """Heaviest unit first, to the lightest tower."""
    return _fitted(case.packing, None)


def _fitted(packing: Packing, taste: NDArray[np.float64] | None) -> Labels:
    labels = first_assignment(packing, taste)
    if labels is None:  # the caller has found out that there is one
        raise PlanError("no assignment keeps the limits and rules of dmt.partition. Raise dmt.partition.bound.")
    return labels


STRATEGIES: Mapping[str, Strategy] = {
    "strided": strided,
    "contiguous": contiguous,
    "learned": learned,
    "graph": graph,
    "random": random,
    "greedy_balance": greedy_balance,
}
NEED_AFFINITY = frozenset({"learned", "graph"})
IN_ORDER = frozenset({"strided", "contiguous"})
"""Strategies that take the features as they come; the others must not depend on their order."""
