"""Every tower gets a feature of each joined group, by exchanges that keep sizes and rules."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dmt_plugin.config.section import PartitionConfig
from dmt_plugin.partitioner.partition import make_partition
from dmt_plugin.partitioner.spread import spread
from dmt_plugin.partitioner.units import Unit
from dmt_plugin.plan.tower_plan import FeatureSpec

NAMES = list("abcdefgh")
UNITS = [Unit((name,)) for name in NAMES]
HALVES = [set("abcd"), set("efgh")]


def missing(labels: np.ndarray, groups: list[set[str]], towers: int) -> int:
    held = [{NAMES[i] for i in np.flatnonzero(labels == t)} for t in range(towers)]
    return sum(not own & group for own, group in itertools.product(held, groups))


@pytest.mark.parametrize("towers", [2, 4])
@pytest.mark.parametrize(
    "groups",
    [HALVES, [set("abcd"), set("abef")], [set("abcde"), set("efgh"), set("aceg")]],
    ids=["halves", "overlapping", "three"],
)
def test_every_tower_gets_one(towers: int, groups: list[set[str]]) -> None:
    for seed in range(10):
        labels = np.random.default_rng(seed).permutation(np.arange(8) % towers)
        found = spread(labels, UNITS, towers, groups, {})
        assert missing(found, groups, towers) == 0
        assert sorted(found) == sorted(labels)
        if not missing(labels, groups, towers):
            assert (found == labels).all()


def test_the_exchange_that_costs_least() -> None:
    alike = np.eye(8)
    for a, b in itertools.combinations(range(8), 2):
        alike[a, b] = alike[b, a] = 0.0 if 3 in (a, b) or 4 in (a, b) else float(a // 4 == b // 4)
    found = spread(np.array([0] * 4 + [1] * 4), UNITS, 2, HALVES, {}, alike)
    assert list(found) == [0, 0, 0, 1, 0, 1, 1, 1]


def test_pins_and_features_apart_stay() -> None:
    pinned = [Unit((n,), pin=0 if n in "abc" else None) for n in NAMES]
    labels = np.array([0] * 4 + [1] * 4)
    found = spread(labels, pinned, 2, HALVES, {(0, 4): None})
    assert list(found[:4]) == [0, 0, 0, 1] and found[4] != 0 and missing(found, HALVES, 2) == 0
    assert (spread(labels, [Unit((n,), pin=0) for n in NAMES], 2, HALVES, {}) == labels).all()
    assert (spread(labels, [Unit((n,), group=n) for n in NAMES], 2, HALVES, {}) == labels).all()


def test_a_partition_for_joined_groups() -> None:
    features = [FeatureSpec(name, (name,), 1) for name in NAMES]
    config = PartitionConfig(strategy="contiguous")
    plain = make_partition(features, (), 2, config)
    joined = make_partition(features, (), 2, config, joined=HALVES)
    assert plain.towers == (tuple("abcd"), tuple("efgh"))
    assert [len(t) for t in joined.towers] == [4, 4] and all(set(t) & g for t in joined.towers for g in HALVES)
