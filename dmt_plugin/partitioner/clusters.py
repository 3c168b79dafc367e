"""Clusters of points that keep limits and rules: K-means with a bound on the clusters' weights.

1. Equal units without rules are what constrained K-means solves (Bradley, Bennett and Demiriz 2000, by minimum-cost
   flow): the library k-means-constrained does.
2. Otherwise its centres, found without limits, are given to towers so that pinned units are near theirs, units go to
   near centres as far as limits and rules let them, and
3. moves and swaps lower the inertia until nothing improves.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner.exact import first_assignment
from dmt_plugin.partitioner.local_search import PairCosts, improve
from dmt_plugin.partitioner.packing import Labels, Packing


def balanced_clusters(
    points: NDArray[np.float64], plane: NDArray[np.float64], unit_of: NDArray[np.int64], packing: Packing, seed: int
) -> Labels:
    """Clusters near points together under limits and rules.

    Args:
        points: ``(F, n)``.
        plane: ``(F, F)`` squared distances between them.
        unit_of: ``(F,)`` unit of each feature.
        packing: what is allowed; some assignment keeps it.
        seed: of the first centres.

    Returns:
        ``(U,)`` tower of each unit.
    """
    count, towers = len(packing.weights), packing.towers
    sizes = np.bincount(unit_of)
    means = np.stack([np.bincount(unit_of, weights=axis) / sizes for axis in points.T], axis=1)
    if towers == 1 or towers == count:
        labels = first_assignment(packing, np.zeros((count, towers)))
    elif packing.plain:
        return _kmeans(means, towers, seed, max(1, packing.limits.low), packing.limits.high)[0]
    else:
        _, centres = _kmeans(means, towers, seed, 1, count)
        taste = ((means[:, None, :] - centres[None, :, :]) ** 2).sum(2)
        labels = first_assignment(packing, taste[:, _towers_of_centres(taste, packing)])
    if labels is None:
        raise PlanError("no assignment keeps the limits and rules of dmt.partition. Raise dmt.partition.bound.")
    return improve(packing, PairCosts(plane, unit_of), labels)


def _kmeans(
    points: NDArray[np.float64], towers: int, seed: int, low: int, high: int
) -> tuple[Labels, NDArray[np.float64]]:
    try:
        from k_means_constrained import KMeansConstrained
    except ImportError as error:
        raise PlanError(
            "a learned partition needs k-means-constrained, which is not installed: "
            "pip install 'dmt-plugin[partition]'."
        ) from error
    found: Any = KMeansConstrained(
        n_clusters=towers, size_min=low, size_max=high, n_init=1, max_iter=100, random_state=seed, n_jobs=1
    )
    with warnings.catch_warnings():
        # Points on top of each other give fewer distinct clusters than asked for, which is no trouble here.
        warnings.simplefilter("ignore")
        found.fit(points)
    return found.labels_.astype(np.int64), found.cluster_centers_


def _towers_of_centres(taste: NDArray[np.float64], packing: Packing) -> NDArray[np.int64]:
    """Which centre each tower gets: the cheapest for the units that can go to that tower alone."""
    from scipy.optimize import linear_sum_assignment

    bound = packing.allowed.sum(1) == 1
    price = np.zeros((packing.towers, packing.towers))
    for t in range(packing.towers):
        price[t] = taste[bound & packing.allowed[:, t]].sum(0)
    return linear_sum_assignment(price)[1]
