"""Towers on hosts, tables on lanes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmt_plugin.errors import ConfigError
from dmt_plugin.plan import FeatureSpec, TableSpec
from dmt_plugin.planner import place_tables, towers_to_hosts
from dmt_plugin.topology import Topology


@given(st.integers(1, 8), st.integers(1, 4), st.integers(1, 4))
def test_every_host_runs_the_same_number_of_neighbouring_towers(hosts: int, lanes: int, each: int) -> None:
    found = towers_to_hosts(hosts * each, Topology(hosts, lanes))
    assert list(found) == sorted(found)
    assert Counter(found) == dict.fromkeys(range(hosts), each)


@pytest.mark.parametrize(("towers", "hosts"), [(1, 2), (3, 2), (5, 4), (7, 3)])
def test_towers_that_leave_hosts_unequal(towers: int, hosts: int) -> None:
    with pytest.raises(ConfigError, match=rf"dmt\.towers\.count is {towers} on {hosts} host"):
        towers_to_hosts(towers, Topology(hosts, 2))


@st.composite
def models(draw: Any) -> tuple[list[TableSpec], list[FeatureSpec], dict[str, int], Topology]:
    topology = Topology(draw(st.integers(1, 3)), draw(st.integers(1, 4)))
    tables, features, host_of = [], [], {}
    for i in range(draw(st.integers(1, 12))):
        tables.append(TableSpec(f"t{i}", draw(st.integers(1, 10**6)), draw(st.sampled_from([1, 4, 16, 64]))))
        features.append(FeatureSpec(f"f{i}", (f"t{i}",), draw(st.sampled_from([None, 1, 3]))))
        host_of[f"f{i}"] = draw(st.integers(0, topology.hosts - 1))
    return tables, features, host_of, topology


def cost(table: TableSpec, feature: FeatureSpec) -> int:
    return table.dim + (feature.hotness or 4)


@given(models())
def test_each_table_once_and_the_bound_of_longest_first(model: Any) -> None:
    tables, features, host_of, topology = model
    lanes = place_tables(tables, features, host_of, topology)
    assert lanes.keys() == {t.name for t in tables}
    assert set(lanes.values()) <= set(range(topology.ranks_per_host))
    for host in range(topology.hosts):
        mine = [(t, cost(t, f)) for t, f in zip(tables, features, strict=True) if host_of[f.name] == host]
        load = [sum(c for t, c in mine if lanes[t.name] == lane) for lane in range(topology.ranks_per_host)]
        if mine:
            # Graham: the last table put on the fullest lane was put there when that lane was the emptiest.
            lightest = min(c for t, c in mine if lanes[t.name] == load.index(max(load)))
            assert max(load) - lightest <= min(load)
            assert max(load) <= sum(load) / len(load) + max(c for _, c in mine)
    assert place_tables(tables[::-1], features[::-1], host_of, topology) == lanes


def test_memory_breaks_ties() -> None:
    tables = [TableSpec("big", 1000, 4), TableSpec("small", 10, 4), TableSpec("tiny", 5, 4)]
    features = [FeatureSpec(t.name, (t.name,), 1) for t in tables]
    lanes = place_tables(tables, features, dict.fromkeys(("big", "small", "tiny"), 0), Topology(1, 2))
    assert lanes == {"big": 0, "small": 1, "tiny": 1}


def test_a_table_costs_what_all_its_features_cost() -> None:
    tables = [TableSpec("shared", 10, 8), TableSpec("a", 10, 8), TableSpec("b", 10, 8)]
    features = [FeatureSpec("f0", ("shared",), 1), FeatureSpec("f1", ("shared",), 1), FeatureSpec("f2", ("a",), 1),
                FeatureSpec("f3", ("b",), 1)]  # fmt: skip
    lanes = place_tables(tables, features, {f.name: 0 for f in features}, Topology(1, 2))
    assert lanes["a"] == lanes["b"] != lanes["shared"]
