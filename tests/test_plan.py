"""Tower plans: completeness, round trips, and refusal of other models and topologies."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner import partition_features
from dmt_plugin.plan.file import read_json
from dmt_plugin.plan.row_shares import FeatureShare, RowShares, TableRows
from dmt_plugin.plan.tables import TableRange, TableSplit, assembled, check_by_sample
from dmt_plugin.plan.tower_plan import (
    FeatureSpec,
    GroupSpec,
    TableSpec,
    TowerModuleSpec,
    TowerPlan,
    model_fingerprint,
)
from dmt_plugin.planner import towers_to_hosts
from dmt_plugin.topology.shape import Topology


def features_and_tables(count: int, shared: dict[int, int] | None = None) -> tuple[Any, Any]:
    """``count`` features; ``shared`` says whose table a feature reads besides its own."""
    tables = tuple(TableSpec(f"t{i}", 10 + i, 4) for i in range(count))
    extra = shared or {}
    features = tuple(
        FeatureSpec(f"f{i}", (f"t{i}", *([f"t{extra[i]}"] if i in extra else [])), 1 + i % 2 or None)
        for i in range(count)
    )
    return tables, features


def split_of(table: TableSpec, kind: Any, topology: Topology, cuts: list[int]) -> TableSplit:
    """Ranges between ``cuts``, on the lanes from the last one down."""
    ends = [*cuts, table.rows if kind == "row_wise" else table.dim]
    lanes = range(topology.ranks_per_host)[::-1]
    return TableSplit(kind, tuple(TableRange(lanes[i], ([0, *ends])[i], end) for i, end in enumerate(ends)))


def plan_for(
    count: int,
    topology: Topology,
    towers: int,
    shared: dict[int, int] | None = None,
    splits: dict[str, TableSplit] | None = None,
) -> TowerPlan:
    tables, features = features_and_tables(count, shared)
    assigned = partition_features(features, towers, "strided")
    hosts = towers_to_hosts(towers, topology)
    divided = splits or {}
    return TowerPlan(
        topology=str(topology),
        tables=tables,
        features=features,
        groups=(GroupSpec("group0", "tower", 4, tuple(f.name for f in features)),),
        towers=assigned,
        tower_hosts=hosts,
        table_lanes={t.name: i % topology.ranks_per_host for i, t in enumerate(tables) if t.name not in divided},
        table_splits=divided,
        module=TowerModuleSpec("dlrm", 2, 1, 3),
        model=model_fingerprint(tables, features),
        provenance={"strategy": "strided", "file": None},
    )


@st.composite
def plans(draw: Any) -> TowerPlan:
    topology = Topology(draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    towers = topology.hosts * draw(st.integers(1, 2))
    count = draw(st.integers(towers * 2, towers * 2 + 6))
    splits = {}
    for table in features_and_tables(count)[0]:
        kind = draw(st.sampled_from(["table_wise", "row_wise", "column_wise"]))
        size = table.rows if kind == "row_wise" else table.dim
        if kind != "table_wise":
            most = min(size, topology.ranks_per_host) - 1
            cuts = draw(st.lists(st.integers(1, size - 1), max_size=most, unique=True))
            splits[table.name] = split_of(table, kind, topology, sorted(cuts))
    return plan_for(count, topology, towers, draw(st.sampled_from([None, {1: 0}, {count - 1: 0}])), splits)


@settings(deadline=None)
@given(plans())
def test_json_round_trip(plan: TowerPlan) -> None:
    text = json.dumps(plan.to_dict())
    again = TowerPlan.from_dict(json.loads(text))
    assert again == plan and again.fingerprint == plan.fingerprint
    again.check(model=plan.model, topology=Topology.parse(plan.topology))


@settings(deadline=None)
@given(plans())
def test_every_entry_of_a_table_is_held_once_on_the_host_of_its_features(plan: TowerPlan) -> None:
    topology = Topology.parse(plan.topology)
    for table in plan.tables:
        host = plan.host_of_table(table.name)
        shards = plan.shards_of(table.name)
        assert set(plan.lanes_of(table.name)) <= set(range(topology.ranks_per_host))
        assert len(plan.lanes_of(table.name)) == len(shards)
        held = torch.zeros(table.rows, table.dim)
        for shard in shards:
            assert plan.shard(shard.name) is shard and shard.kind == plan.kind_of(table.name) and shard.host == host
            assert shard.within(held).shape == (shard.rows, shard.columns)
            shard.within(held).add_(1)
        assert bool((held == 1).all())
        values = torch.randn(table.rows, table.dim)
        assert torch.equal(assembled({s: s.within(values).clone() for s in shards[::-1]}), values)
        if plan.kind_of(table.name) != "column_wise":
            assert torch.equal(assembled({s: s.within(values[:, 0]) for s in shards}), values[:, 0])
        readers = [f.name for f in plan.features if table.name in f.tables]
        assert {plan.tower_hosts[plan.tower_of(name)] for name in readers} == {host}
        assert plan.table(table.name) is table
    assert sorted(t for h in range(topology.hosts) for t in plan.towers_on(h)) == list(range(len(plan.towers)))
    own = [plan.features_of(plan.groups[0], t) for t in range(len(plan.towers))]
    assert tuple(own) == plan.towers


def test_files(tmp_path: Path) -> None:
    plan = plan_for(5, Topology(2, 2), 2)
    plan.save(tmp_path / "plan.json")
    assert TowerPlan.load(tmp_path / "plan.json") == plan


def changed(**entries: Any) -> TowerPlan:
    return dataclasses.replace(plan_for(4, Topology(2, 2), 2), **entries)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"towers": (("f0", "f2"), ("f1",))}, r"features in no tower: \['f3'\]"),
        ({"towers": (("f0", "f2"), ("f1", "f3", "f9"))}, r"does not have: \['f9'\]"),
        ({"towers": (("f0", "f2"), ("f1", "f3", "f0"))}, r"more than one tower: \['f0'\]"),
        ({"tower_hosts": (0,)}, "2 towers but hosts for 1"),
        ({"tower_hosts": (0, 2)}, r"names host\(s\) \[2\]; a topology of 2x2 has 0..1"),
        ({"tower_hosts": (0, -1)}, r"names host\(s\) \[-1\]"),
        ({"tables": plan_for(3, Topology(2, 2), 2).tables}, r"the plan lacks: \['t3'\]"),
        ({"tables": plan_for(5, Topology(2, 2), 2).tables}, r"tables without a feature: \['t4'\]"),
        ({"table_lanes": {"t0": 0, "t1": 0, "t2": 1}}, r"without one \['t3'\]"),
        ({"table_lanes": {"t0": 0, "t1": 0, "t2": 1, "t3": 2}}, r"lane 0..1 of its host.*out of range \{'t3': 2\}"),
        ({"table_lanes": {"t0": 0, "t1": 0, "t2": 1, "t3": -1}}, r"out of range \{'t3': -1\}"),
        ({"table_lanes": {"t0": 0, "t1": 0, "t2": 1, "t3": 1, "x": 0}}, r"name \['x'\], which the model does not"),
        ({"table_splits": {"t0": TableSplit("row_wise", ())}}, r"\['t0'\] both whole \(table_lanes\) and divided"),
        ({"groups": (GroupSpec("group0", "tower", 4, ("f0", "y")),)}, r"name \['y'\], which the model does not"),
        ({"features": features_and_tables(4)[1] * 2}, r"feature\(s\) \['f0', 'f1', 'f2', 'f3'\] more than once"),
        ({"tables": features_and_tables(4)[0] * 2}, r"table\(s\) \['t0', 't1', 't2', 't3'\] more than once"),
        ({"features": features_and_tables(4, {1: 0})[1]}, r"'f0' shares a table with features of the towers \[0, 1\]"),
    ],
)
def test_incomplete_plans(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        changed(**entries)


def ranges(*spans: tuple[int, int, int]) -> tuple[TableRange, ...]:
    return tuple(TableRange(*span) for span in spans)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (TableSplit("row_wise", ()), "rows of table 't0' are divided as nothing.* cover 0:10 exactly once"),
        (TableSplit("row_wise", ranges((0, 0, 5), (1, 6, 10))), r"0:5 on lane 0, 6:10 on lane 1; the ranges must"),
        (TableSplit("row_wise", ranges((0, 0, 6), (1, 5, 10))), "cover 0:10 exactly once"),
        (TableSplit("row_wise", ranges((0, 0, 5), (1, 5, 9))), "cover 0:10 exactly once"),
        (TableSplit("row_wise", ranges((0, 0, 5), (1, 5, 11))), "cover 0:10 exactly once"),
        (TableSplit("row_wise", ranges((0, 1, 10))), "cover 0:10 exactly once"),
        (TableSplit("row_wise", ranges((0, 0, 10), (1, 10, 10))), "hold something"),
        (TableSplit("row_wise", ranges((1, 5, 10), (0, 0, 5))), "must rise"),
        (TableSplit("column_wise", ranges((0, 0, 2), (1, 2, 3))), "columns of table 't0' .* cover 0:4 exactly once"),
        (TableSplit("column_wise", ranges((0, 0, 2), (0, 2, 4))), r"each range needs another lane 0\.\.1"),
        (TableSplit("row_wise", ranges((0, 0, 5), (2, 5, 10))), r"each range needs another lane 0\.\.1"),
        (TableSplit("table_wise", ranges((0, 0, 10))), "divided 'table_wise'; a divided table is 'row_wise' or"),
        (TableSplit("diagonal", ranges((0, 0, 10))), "divided 'diagonal'"),  # type: ignore[arg-type]
    ],
)
def test_ranges_that_do_not_hold_a_table_exactly_once(split: TableSplit, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        changed(table_lanes={"t1": 0, "t2": 1, "t3": 1}, table_splits={"t0": split})


def test_shards_that_are_missing_are_named() -> None:
    plan = changed(
        table_lanes={"t1": 0, "t2": 1, "t3": 1},
        table_splits={"t0": TableSplit("row_wise", ranges((1, 0, 3), (0, 3, 10)))},
    )
    first, second = plan.shards_of("t0")
    assert (first.name, second.name) == ("t0[rows 0:3]", "t0[rows 3:10]")
    assert plan.lanes_of("t0") == (0, 1) and (first.lane, second.lane) == (1, 0)
    with pytest.raises(PlanError, match=r"'t0' \(10 x 4\) cannot be put together from \['t0\[rows 3:10\]'\]"):
        assembled({second: torch.zeros(7, 4)})


def with_split(*spans: TableRange) -> TowerPlan:
    """``t0``, whose tower is on host 0, divided by rows."""
    return changed(table_lanes={"t1": 0, "t2": 1, "t3": 1}, table_splits={"t0": TableSplit("row_wise", spans)})


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(12, 20))
def test_rows_by_modulo_over_all_ranks(hosts: int, lanes: int, rows: int) -> None:
    topology = Topology(hosts, lanes)
    spans = tuple(
        TableRange(topology.lane_of(r), r, rows, topology.world_size, topology.host_of(r))
        for r in range(topology.world_size)
    )
    tables, features = (TableSpec("t0", rows, 4),), (FeatureSpec("f0", ("t0",), 1),)
    split = {"t0": TableSplit("row_wise", spans)}
    plan = TowerPlan(str(topology), tables, features, (), (("f0",),), (0,), {}, table_splits=split)
    values = torch.randn(rows, 4)
    shards = plan.shards_of("t0")
    assert [topology.rank_of(s.host, s.lane) for s in shards] == list(range(topology.world_size))
    for r, shard in enumerate(shards):
        assert torch.equal(shard.within(values), values[torch.arange(rows) % topology.world_size == r])
        assert shard.rows == len(shard.within(values)) and plan.shard(shard.name) is shard
    assert torch.equal(assembled({s: s.within(values).clone() for s in shards[::-1]}), values)
    again = TowerPlan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert again == plan and again.fingerprint == plan.fingerprint


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ((TableRange(0, 0, 10, 2), TableRange(1, 1, 9, 2)), r"0:10:2 on lane 0, 1:9:2 on lane 1; the ranges must rise"),
        ((TableRange(0, 0, 10, 2), TableRange(1, 2, 10, 2)), "cover 0:10 exactly once"),
        ((TableRange(0, 0, 10, 2), TableRange(1, 1, 12, 2)), "cover 0:10 exactly once"),
        ((TableRange(0, 0, 10, 2), TableRange(1, 5, 10)), "cover 0:10 exactly once"),
        ((TableRange(0, 0, 10, 2),), "cover 0:10 exactly once"),
        ((TableRange(0, 0, 10, 0), TableRange(1, 1, 10, 11)), r"with the step \[0, 11\]; 1\.\.10 is possible"),
        ((TableRange(0, 0, 5), TableRange(0, 5, 10, host=0)), r"5:10 on host 0, lane 0; .* 0\.\.1 of the hosts 0\.\.1"),
        ((TableRange(0, 0, 5), TableRange(0, 5, 10, host=2)), r"another lane 0\.\.1 of the hosts 0\.\.1"),
    ],
)
def test_steps_and_hosts_that_do_not_hold_a_table_exactly_once(spans: tuple[TableRange, ...], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        with_split(*spans)


def test_columns_have_no_step() -> None:
    split = TableSplit("column_wise", (TableRange(0, 0, 4, 2), TableRange(1, 1, 4, 2)))
    with pytest.raises(PlanError, match=r"columns of table 't0' are divided with the step \[2\]; 1..1 is possible"):
        changed(table_lanes={"t1": 0, "t2": 1, "t3": 1}, table_splits={"t0": split})


def test_what_cannot_be_looked_up_by_sample_is_refused_by_name() -> None:
    plan = with_split(TableRange(0, 0, 5), TableRange(1, 5, 10))
    check_by_sample(plan.shards_of("t0"), 0)
    for second, message in (
        (TableRange(1, 5, 10, host=1), r"t0\[rows 5:10\] on host 1.* neighbouring rows on the lanes of host 0"),
        (TableRange(1, 1, 10, 2), r"t0\[rows 0:9:2\] 2 rows apart"),
    ):
        plan = with_split(TableRange(0, 0, second.first if second.step == 1 else 10, second.step), second)
        with pytest.raises(PlanError, match=message):
            check_by_sample(plan.shards_of("t0"), plan.host_of_table("t0"))


def test_plans_keep_the_fingerprints_that_version_0_1_0_gave_them() -> None:
    plan = plan_for(4, Topology(2, 2), 2)
    data = plan.to_dict()
    assert "table_splits" not in data and plan.fingerprint == "8cba719a370bbfc6"
    assert TowerPlan.from_dict(data) == plan and plan.table_splits == {}
    tables = features_and_tables(4)[0]
    divided = plan_for(
        4,
        Topology(2, 2),
        2,
        splits={
            "t0": split_of(tables[0], "row_wise", Topology(2, 2), [3]),
            "t1": split_of(tables[1], "column_wise", Topology(2, 2), [1]),
        },
    )
    assert divided.fingerprint == "e72e33dc4b70aacd"
    ranges = [{"lane": 1, "first": 0, "end": 3}, {"lane": 0, "first": 3, "end": 10}]
    assert json.dumps(divided.to_dict()["table_splits"]["t0"]) == json.dumps({"kind": "row_wise", "ranges": ranges})


def test_a_frozen_table_is_the_same_table() -> None:
    """It changes the plan, and so its fingerprint, but not the model that a plan is for."""
    plan = plan_for(4, Topology(2, 2), 2)
    frozen = dataclasses.replace(plan, tables=(dataclasses.replace(plan.tables[0], frozen=True), *plan.tables[1:]))
    assert frozen.tables == plan.tables and frozen.fingerprint != plan.fingerprint
    assert model_fingerprint(frozen.tables, plan.features) == model_fingerprint(plan.tables, plan.features)
    again = TowerPlan.from_dict(frozen.to_dict())
    assert [t.frozen for t in again.tables] == [True] + [False] * (len(plan.tables) - 1)
    assert again.fingerprint == frozen.fingerprint
    assert all("frozen" not in table for table in plan.to_dict()["tables"])


def test_another_model_or_topology() -> None:
    plan = plan_for(4, Topology(2, 2), 2)
    plan.check(model=plan.model, topology=Topology(2, 2))
    plan.check(model="", topology=Topology(2, 2))
    with pytest.raises(PlanError, match=f"made for the model {plan.model}, this model is other"):
        plan.check(model="other", topology=Topology(2, 2))
    for topology in (Topology(4, 1), Topology(2, 4), Topology(1, 4)):
        with pytest.raises(PlanError, match=f"made for 2x2 .* this run is {topology}"):
            plan.check(model=plan.model, topology=topology)


def test_the_fingerprint_is_of_features_and_shapes_not_of_their_order() -> None:
    tables, features = features_and_tables(4)
    base = model_fingerprint(tables, features)
    assert model_fingerprint(tables[::-1], features[::-1]) == base
    others = [
        model_fingerprint([dataclasses.replace(tables[0], rows=11), *tables[1:]], features),
        model_fingerprint([dataclasses.replace(tables[0], dim=8), *tables[1:]], features),
        model_fingerprint(tables, features_and_tables(4, {1: 0})[1]),
        model_fingerprint(tables, features[1:]),
    ]
    assert len({base, *others}) == 5


def spoilt(**entries: Any) -> dict[str, Any]:
    data = plan_for(4, Topology(2, 2), 2).to_dict()
    return {k: v for k, v in {**data, **entries}.items() if v is not ...}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"version": 99, "novelty": 1}, "version 99, this release reads 1 to 3"),
        ({"towers": ..., "colour": 1}, r"missing entries \['towers'\], unknown entries \['colour'\]"),
        ({"tables": [{"name": "t0"}]}, r"not a tower plan: tables\[0\]: missing entries \['rows', 'dim'\]"),
        ({"features": [{"tables": []}]}, r"features\[0\]: missing entries \['name'\]"),
        ({"table_lanes": {"t0": "first"}}, r'table_lanes\["t0"\]: found "first", expected a whole number from 0'),
        ({"table_lanes": [1, 2]}, r"table_lanes: found \[1, 2\], expected an object"),
        ({"table_splits": {"t0": {"kind": "row_wise"}}}, r'table_splits\["t0"\]: missing entries \[\'ranges\'\]'),
        ({"table_splits": {"t0": {"kind": "row_wise", "ranges": [{"lane": 0}]}}}, r"ranges\[0\]: missing entries"),
        ({"module": {"kind": "dlrm", "depth": 3}}, r"module: .*unknown entries \['depth'\]"),
        ({"towers": [["f0"], ["f1"]]}, r"features in no tower: \['f2', 'f3'\]"),
    ],
)
def test_files_that_are_not_plans(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        TowerPlan.from_dict(spoilt(**entries))


def test_reading_a_file(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no such file"):
        read_json(tmp_path / "nowhere.json")
    for text, message in (('{"towers": [', "is not JSON: .* line 1, column 13"), ("[1]", "holds a list")):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(PlanError, match=message):
            read_json(tmp_path / "bad.json")


def test_rank_and_outputs_of_towers_are_kept_in_a_plan_of_the_next_version() -> None:
    plan = dataclasses.replace(plan_for(4, Topology(2, 1), 2), module=TowerModuleSpec("dcn", dim=8))
    assert plan.to_dict()["version"] == 1 and not {"rank", "outputs"} & plan.to_dict()["module"].keys()
    for shaped in (
        dataclasses.replace(plan, module=TowerModuleSpec("dcn", dim=8, rank=3, outputs=1)),
        dataclasses.replace(plan, overrides={1: TowerModuleSpec("dcn", dim=8, outputs=2)}),
    ):
        again = TowerPlan.from_dict(json.loads(json.dumps(shaped.to_dict())))
        assert shaped.to_dict()["version"] == 2 and again == shaped and again.fingerprint == shaped.fingerprint


def test_counts_of_distinct_rows_are_kept_in_a_plan_of_the_next_version() -> None:
    plan = plan_for(4, Topology(2, 1), 2)
    assert plan.to_dict()["version"] == 1 and "row_shares" not in plan.to_dict()
    features = tuple(FeatureShare(f.name, 1.0, 0.5, 0.25) for f in plan.features)
    tables = tuple(TableRows(t.name, 8.0, 4.0) for t in plan.tables)
    counted = RowShares("a file", 512, 2, 8, features, tables)
    kept = dataclasses.replace(plan, row_shares=counted)
    again = TowerPlan.from_dict(json.loads(json.dumps(kept.to_dict())))
    assert kept.to_dict()["version"] == 2 and again == kept and again.fingerprint == kept.fingerprint
    assert counted.of_feature("f1") == features[1] and counted.of_table("t3") == tables[3]
    assert counted.of_feature("t1") is None and counted.of_table("f1") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": "many"}, 'not a count of distinct rows: samples: found "many"'),
        ({"features": [{"feature": "f0"}]}, "features[0]: missing entries ['ids', 'rank', 'host']"),
        ({"novelty": 1}, "unknown entries ['novelty']"),
        ({"samples": 0, "steps": -1}, "samples: found 0, expected a whole number from 1"),
        ({"tables": [{"table": "t", "rank": float("nan"), "host": 1.0}]}, "tables[0].rank: found NaN"),
        ({"tables": [{"table": "t", "rank": 1.0, "host": -1}]}, "tables[0].host: found -1"),
        ({"features": [{"feature": "f", "ids": "1", "rank": 1, "host": 1}]}, 'features[0].ids: found "1"'),
        ({"tables": [{"table": "t", "rank": 1.0, "host": 1.0}] * 2}, "has ['t'] more than once"),
    ],
)
def test_counts_that_cannot_be_read_are_refused(change: dict[str, Any], message: str) -> None:
    data = {"source": "x", "samples": 1, "lanes": 1, "steps": 1, "features": [], "tables": [], **change}
    with pytest.raises(PlanError, match=re.escape(message)):
        RowShares.from_dict(data)
