"""Limits and rules: what is found keeps them, searching never makes it worse, and a refusal is a proof."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner.balance import (
    COST_TOTAL,
    Limits,
    count_limits,
    fair_share,
    feature_costs,
    towers_per_group,
)
from dmt_plugin.partitioner.exact import contradiction, first_assignment, tightest
from dmt_plugin.partitioner.local_search import PairCosts, improve
from dmt_plugin.partitioner.packing import Packing
from dmt_plugin.plan.tower_plan import FeatureSpec, TableSpec


@st.composite
def packings(draw: Any) -> Packing:
    """Few units, so that every assignment can be tried."""
    units = draw(st.integers(2, 6))
    towers = draw(st.integers(1, min(3, units)))
    weights = np.array(draw(st.lists(st.integers(1, 9), min_size=units, max_size=units)), dtype=np.int64)
    high = draw(st.integers(int(weights.sum()) // towers, int(weights.sum())))
    low = draw(st.integers(0, int(weights.sum()) // towers))
    allowed = np.ones((units, towers), dtype=bool)
    for u in draw(st.sets(st.integers(0, units - 1), max_size=2)):
        allowed[u] = np.arange(towers) == draw(st.integers(0, towers - 1))
    apart = np.zeros((units, units), dtype=bool)
    for u, v in draw(st.sets(st.sampled_from(list(itertools.combinations(range(units), 2))), max_size=2)):
        apart[u, v] = apart[v, u] = True
    return Packing(weights, towers, Limits(low, high), allowed, apart)


def every(packing: Packing) -> list[np.ndarray]:
    tried = itertools.product(range(packing.towers), repeat=len(packing.weights))
    return [labels for one in tried if packing.kept(labels := np.array(one, dtype=np.int64))]


@settings(max_examples=150, deadline=None)
@given(packings(), st.integers(0, 99))
def test_a_first_assignment_is_found_exactly_where_there_is_one(packing: Packing, seed: int) -> None:
    taste = np.random.default_rng(seed).random((len(packing.weights), packing.towers))
    found = first_assignment(packing, taste)
    assert (found is not None) == bool(every(packing))
    assert found is None or packing.kept(found)


@settings(max_examples=150, deadline=None)
@given(packings(), st.integers(0, 99))
def test_improving_keeps_the_rules_and_lowers_the_sum(packing: Packing, seed: int) -> None:
    start = first_assignment(packing, np.zeros((len(packing.weights), packing.towers)))
    if start is None:
        return
    rng = np.random.default_rng(seed)
    unit_of = np.sort(np.concatenate([np.arange(len(start)), rng.integers(0, len(start), 3)]))
    raw = rng.random((len(unit_of), len(unit_of)))
    costs = PairCosts(raw + raw.T, unit_of)
    found = improve(packing, costs, start)
    assert packing.kept(found)
    assert costs.value(found, packing.towers) <= costs.value(start, packing.towers) + 1e-9

    def direct(labels: np.ndarray) -> float:
        total = 0.0
        for t in range(packing.towers):
            own = np.flatnonzero(labels[unit_of] == t)
            block = (raw + raw.T)[np.ix_(own, own)]
            total += (block.sum() - np.trace(block)) / 2 / len(own)
        return total

    assert costs.value(found, packing.towers) == pytest.approx(direct(found))
    for u in range(len(found)):  # nothing better one move or swap away
        for near in _neighbours(found, u, packing.towers):
            assert not packing.kept(near) or direct(near) >= direct(found) - 1e-7


def _neighbours(labels: np.ndarray, u: int, towers: int) -> list[np.ndarray]:
    found = []
    for t in range(towers):
        near = labels.copy()
        near[u] = t
        found.append(near)
    for v in range(len(labels)):
        near = labels.copy()
        near[u], near[v] = labels[v], labels[u]
        found.append(near)
    return found


@settings(max_examples=60, deadline=None)
@given(packings())
def test_the_tightest_limits(packing: Packing) -> None:
    free = Packing(packing.weights, packing.towers, Limits(0, 10**6), packing.allowed, packing.apart)
    found = tightest(packing, spread=True)
    loads = [free.loads(labels) for labels in every(free)]
    assert (found is None) == (not loads)
    if found is not None:
        assert found[0].high - found[0].low == min(int(load.max() - load.min()) for load in loads)
        heaviest = tightest(packing, spread=False)
        assert heaviest is not None and heaviest[0].high == min(int(load.max()) for load in loads)


def test_a_contradiction_is_as_small_as_it_goes() -> None:
    weights = np.array([5, 5, 1, 1], dtype=np.int64)
    packing = Packing(weights, 2, Limits(0, 7), np.ones((4, 2), bool), np.zeros((4, 4), bool))
    pins = {0: (0, "pin 0"), 1: (0, "pin 1"), 2: (1, "pin 2")}
    assert contradiction(packing, pins, {(2, 3): "apart"}, "limits") == ["pin 0", "pin 1", "limits"]
    assert contradiction(packing, {2: pins[2]}, {(2, 3): "apart"}, "limits") == []
    clique = {pair: f"apart {pair}" for pair in itertools.combinations(range(3), 2)}
    assert contradiction(packing, pins, clique, "limits")


@given(st.integers(1, 60), st.integers(1, 12), st.none() | st.floats(1, 4))
def test_limits_of_counts(features: int, towers: int, bound: float | None) -> None:
    if towers > features:
        return
    found = count_limits(np.ones(features, dtype=np.int64), towers, bound)
    assert found.low * towers <= features <= found.high * towers
    as_even_as_it_goes = found.high - found.low <= 1
    assert as_even_as_it_goes or (bound is not None and found.high <= bound * found.low + 1e-6)


def test_costs() -> None:
    tables = [TableSpec("big", 900, 8), TableSpec("small", 100, 8), TableSpec("wide", 0, 16)]
    features = [FeatureSpec("a", ("big",), 1), FeatureSpec("b", ("small",), 3), FeatureSpec("c", ("wide",), None)]
    only = {"bytes": 0.0, "lookups": 0.0, "width": 0.0}
    assert feature_costs(features, tables, {**only, "bytes": 2.0}) == {"a": 900_000, "b": 100_000, "c": 1}
    assert feature_costs(features, tables, {**only, "lookups": 1.0}) == {"a": 125_000, "b": 375_000, "c": 500_000}
    assert feature_costs(features, tables, {**only, "width": 1.0}) == {"a": 250_000, "b": 250_000, "c": 500_000}
    assert sum(feature_costs(features, tables, dict.fromkeys(only, 1.0)).values()) == COST_TOTAL
    shared = [FeatureSpec("a", ("big",), 1), FeatureSpec("b", ("big",), 1)]
    assert feature_costs(shared, tables[:1], {**only, "bytes": 1.0}) == {"a": 500_000, "b": 500_000}
    with pytest.raises(PlanError, match=r"dmt\.partition\.cost has no weight above zero"):
        feature_costs(features, tables, only)
    assert fair_share(np.array([8, 1, 1]), 3) == 8


def test_costs_by_the_rows_that_were_counted() -> None:
    """A table whose rows travel once weighs by its distinct rows per sample; the others as they did."""
    tables = [TableSpec("x", 10, 8), TableSpec("y", 10, 8)]
    features = [FeatureSpec("a", ("x",), 1), FeatureSpec("b", ("y",), 1), FeatureSpec("c", ("y",), 1)]
    for what in ("lookups", "width"):
        only = {"bytes": 0.0, "lookups": 0.0, "width": 0.0, what: 1.0}
        assert feature_costs(features, tables, only, {"y": 0.5}) == {"a": 666_667, "b": 166_667, "c": 166_667}
        assert feature_costs(features, tables, only, {}) == dict.fromkeys("abc", 333_333)


def test_towers_of_groups() -> None:
    assert towers_per_group({"a": 80, "b": 20}, {"a": 8, "b": 2}, 5) == {"a": 4, "b": 1}
    assert towers_per_group({"a": 99, "b": 1}, {"a": 2, "b": 9}, 4) == {"a": 2, "b": 2}
    with pytest.raises(PlanError, match="1 towers but 2 groups of features"):
        towers_per_group({"a": 1, "b": 1}, {"a": 1, "b": 1}, 1)
    with pytest.raises(PlanError, match="only 2 units"):
        towers_per_group({"a": 1, "b": 1}, {"a": 1, "b": 1}, 3)
