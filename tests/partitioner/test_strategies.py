"""Strategies that need no training: each gives a partition, balanced by units, in the model's order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner import partition_features
from dmt_plugin.partitioner.units import Rules, make_units
from dmt_plugin.plan.tower_plan import FeatureSpec


@st.composite
def models(draw: Any) -> tuple[list[FeatureSpec], int]:
    """Features over a small pool of tables, so that some are tied, and a possible number of towers."""
    count = draw(st.integers(1, 14))
    features = [
        FeatureSpec(f"f{i}", (f"own{i}", *draw(st.lists(st.sampled_from(["a", "b", "c"]), max_size=1))))
        for i in range(count)
    ]
    return features, draw(st.integers(1, len(tied_units(features))))


def tied_units(features: list[FeatureSpec]) -> list[tuple[str, ...]]:
    return [unit.names for unit in make_units(features, Rules(), towers=1).units]


def names(features: list[FeatureSpec]) -> list[str]:
    return [f.name for f in features]


@given(models(), st.sampled_from(["strided", "contiguous"]))
def test_a_partition_that_keeps_units_and_order(model: tuple[list[FeatureSpec], int], strategy: str) -> None:
    features, towers = model
    found = partition_features(features, towers, strategy)
    assert len(found) == towers and all(found)
    assert sorted(name for tower in found for name in tower) == sorted(names(features))
    order = names(features)
    assert all(sorted(tower, key=order.index) == list(tower) for tower in found)
    units = tied_units(features)
    for unit in units:
        assert len({t for t, tower in enumerate(found) for name in unit if name in tower}) == 1
    counts = [sum(unit[0] in tower for unit in units) for tower in found]
    assert max(counts) - min(counts) <= 1
    assert partition_features(features, towers, strategy) == found


@given(models())
def test_units_are_the_features_tied_by_tables(model: tuple[list[FeatureSpec], int]) -> None:
    features, _ = model
    units = tied_units(features)
    assert sorted(name for unit in units for name in unit) == sorted(names(features))
    of = {name: i for i, unit in enumerate(units) for name in unit}
    for a in features:
        for b in features:
            if set(a.tables) & set(b.tables):
                assert of[a.name] == of[b.name]
    assert [unit[0] for unit in units] == sorted((unit[0] for unit in units), key=names(features).index)


@given(st.integers(1, 20), st.integers(1, 6))
def test_where_features_go(count: int, towers: int) -> None:
    features = [FeatureSpec(f"f{i}", (f"t{i}",)) for i in range(count)]
    if towers > count:
        with pytest.raises(PlanError, match=f"{towers} towers but only {count} independent features"):
            partition_features(features, towers, "strided")
        return
    strided = partition_features(features, towers, "strided")
    assert all(int(name[1:]) % towers == t for t, tower in enumerate(strided) for name in tower)
    runs = [name for tower in partition_features(features, towers, "contiguous") for name in tower]
    assert runs == names(features)


def test_too_many_towers_for_tied_features() -> None:
    features = [FeatureSpec(f"f{i}", ("shared",)) for i in range(4)]
    with pytest.raises(PlanError, match=r"only 1 independent features \(of 4; \['f0', 'f1', 'f2', 'f3'\] share"):
        partition_features(features, 2, "strided")


def test_an_unknown_strategy_names_the_known() -> None:
    with pytest.raises(PlanError, match=r"'learnt'; known: \['contiguous', 'file', 'graph', 'greedy"):
        partition_features([FeatureSpec("f", ("t",))], 1, "learnt")


FEATURES = [FeatureSpec(f"f{i}", (f"t{i}",)) for i in range(4)]


def from_file(tmp_path: Path, content: Any, towers: int = 2) -> Any:
    file = tmp_path / "towers.json"
    file.write_text(json.dumps(content))
    return partition_features(FEATURES, towers, "file", file)


def test_a_file_is_taken_as_it_is(tmp_path: Path) -> None:
    assert from_file(tmp_path, {"towers": [["f3", "f1"], ["f0", "f2"]]}) == (("f3", "f1"), ("f0", "f2"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"groups": []}, r"not a partition: missing entries \['towers'\], unknown entries \['groups'\]"),
        ({"towers": ["f0", "f1"]}, r'towers\[0\]: found "f0", expected a list'),
        ({"towers": [["f0", 1], ["f2", "f3"]]}, r"towers\[0\]\[1\]: found 1, expected a text"),
        ({"towers": [["f0", "f1", "f2", "f3"]]}, "has 1 towers, this run needs 2. Set dmt.towers.count to 1"),
        ({"towers": [["f0", "f1"], ["f2"]]}, r"features in no tower \['f3'\]"),
        ({"towers": [["f0", "f1"], ["f2", "f3", "x"]]}, r"unknown features \['x'\]"),
        ({"towers": [["f0", "f1"], ["f2", "f3", "f0"]]}, r"listed more than once \['f0'\]"),
        ({"towers": [["f0", "f1", "f2", "f3"], []]}, r"tower\(s\) \[1\] have no feature"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message) as caught:
        from_file(tmp_path, content)
    assert "towers.json" in str(caught.value)


def test_no_file() -> None:
    with pytest.raises(PlanError, match=r"dmt\.partition\.file is not set"):
        partition_features(FEATURES, 2, "file")
