"""Tower plans: completeness, round trips, and refusal of other models and topologies."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmt_plugin.errors import PlanError
from dmt_plugin.partitioner import partition_features
from dmt_plugin.plan import (
    FeatureSpec,
    GroupSpec,
    TableSpec,
    TowerModuleSpec,
    TowerPlan,
    model_fingerprint,
    read_json,
)
from dmt_plugin.planner import place_tables, towers_to_hosts
from dmt_plugin.topology import Topology


def features_and_tables(count: int, shared: dict[int, int] | None = None) -> tuple[Any, Any]:
    """``count`` features; ``shared`` says whose table a feature reads besides its own."""
    tables = tuple(TableSpec(f"t{i}", 10 + i, 4) for i in range(count))
    extra = shared or {}
    features = tuple(
        FeatureSpec(f"f{i}", (f"t{i}", *([f"t{extra[i]}"] if i in extra else [])), 1 + i % 2 or None)
        for i in range(count)
    )
    return tables, features


def plan_for(count: int, topology: Topology, towers: int, shared: dict[int, int] | None = None) -> TowerPlan:
    tables, features = features_and_tables(count, shared)
    assigned = partition_features(features, towers, "strided")
    hosts = towers_to_hosts(towers, topology)
    host_of = {name: hosts[t] for t, names in enumerate(assigned) for name in names}
    return TowerPlan(
        topology=str(topology),
        tables=tables,
        features=features,
        groups=(GroupSpec("group0", "tower", 4, tuple(f.name for f in features)),),
        towers=assigned,
        tower_hosts=hosts,
        table_lanes=place_tables(tables, features, host_of, topology),
        module=TowerModuleSpec("dlrm", 2, 1, 3),
        model=model_fingerprint(tables, features),
        provenance={"strategy": "strided", "file": None},
    )


@st.composite
def plans(draw: Any) -> TowerPlan:
    topology = Topology(draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    towers = topology.hosts * draw(st.integers(1, 2))
    count = draw(st.integers(towers * 2, towers * 2 + 6))
    return plan_for(count, topology, towers, draw(st.sampled_from([None, {1: 0}, {count - 1: 0}])))


@given(plans())
def test_json_round_trip(plan: TowerPlan) -> None:
    text = json.dumps(plan.to_dict())
    again = TowerPlan.from_dict(json.loads(text))
    assert again == plan and again.fingerprint == plan.fingerprint
    again.check(model=plan.model, topology=Topology.parse(plan.topology))


@given(plans())
def test_every_table_has_one_owner_on_the_host_of_its_features(plan: TowerPlan) -> None:
    topology = Topology.parse(plan.topology)
    for table in plan.tables:
        host, lane = plan.owner_of(table.name)
        assert lane in range(topology.ranks_per_host)
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
        ({"groups": (GroupSpec("group0", "tower", 4, ("f0", "y")),)}, r"name \['y'\], which the model does not"),
        ({"features": features_and_tables(4)[1] * 2}, r"feature\(s\) \['f0', 'f1', 'f2', 'f3'\] more than once"),
        ({"tables": features_and_tables(4)[0] * 2}, r"table\(s\) \['t0', 't1', 't2', 't3'\] more than once"),
        ({"features": features_and_tables(4, {1: 0})[1]}, r"'f0' shares a table with features of the towers \[0, 1\]"),
    ],
)
def test_incomplete_plans(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        changed(**entries)


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
        ({"version": 99, "novelty": 1}, "version 99, this release reads version 1"),
        ({"towers": ..., "colour": 1}, r"missing entries \['towers'\], unknown entries \['colour'\]"),
        ({"tables": [{"name": "t0"}]}, "not a tower plan: TypeError"),
        ({"features": [{"tables": []}]}, "not a tower plan: KeyError: 'name'"),
        ({"table_lanes": {"t0": "first"}}, "not a tower plan: ValueError"),
        ({"table_lanes": [1, 2]}, "not a tower plan: AttributeError"),
        ({"module": {"kind": "dlrm", "depth": 3}}, "not a tower plan: TypeError.*depth"),
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
