"""transform(): configs, plan files, topologies, and what it refuses."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dmt_plugin
from dmt_plugin import DMTConfig, Topology, TowerPlan, transform
from dmt_plugin.core.errors import CaptureError, ConfigError, PlanError, TransformError
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.model.placed import place
from dmt_plugin.model.same_outputs import check_same_outputs
from dmt_plugin.partitioner import Partition
from dmt_plugin.passes.base import PassContext
from tests.passes.flat import Flat, cat, found, ids, only
from tests.zoo.models import ZOO

NONE = {"module": "none"}


def flat(features: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return Flat(cat, features=features)


def towered(dmt: dict[str, Any] | None = None, topology: Any = "2x2", features: int = 6) -> TowerModel:
    return transform(flat(features), (ids(features, 5),), {"dmt": dmt or {}}, topology)


# -- configs ---------------------------------------------------------------------------------


def test_kinds_of_config(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"dmt": {"towers": {"dim": 3}}}))
    path = tmp_path / "ds.json"
    for config in (path, str(path), {"dmt": {"towers": {"dim": 3}}}, DMTConfig.model_validate({"towers": {"dim": 3}})):
        assert transform(flat(), (ids(6, 5),), config, "2x1").plan.module.dim == 3
    assert transform(flat(), (ids(6, 5),)).plan.module.dim == 2  # half of the width


@pytest.mark.parametrize("config", [{}, {"dmt": {"enabled": False}}, {"train_batch_size": 8}])
def test_a_config_without_towers(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match='no "dmt" section, or "enabled" is false'):
        transform(flat(), (ids(6, 5),), config)


@pytest.mark.parametrize(
    ("dmt", "topology", "expected"),
    [
        ({}, None, "2x1"),
        ({"towers": {"count": 3}}, None, "3x1"),
        ({"topology": {"hosts": 3, "ranks_per_host": 4}}, None, "3x4"),
        ({"topology": {"hosts": 3}}, "2x2", "2x2"),
        ({}, Topology(1, 4), "1x4"),
    ],
)
def test_the_topology(dmt: dict[str, Any], topology: Any, expected: str) -> None:
    assert towered(dmt, topology).plan.topology == expected


def test_numbers_that_do_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"dmt\.towers\.count is 3 on 2 host"):
        towered({"towers": {"count": 3}}, "2x1")
    with pytest.raises(PlanError, match="8 towers but only 6 independent features"):
        towered({"towers": {"count": 8}}, "8x1")


def test_a_batch_that_does_not_fit() -> None:
    with pytest.raises(CaptureError, match="1 item"):
        transform(ZOO["dlrm"]()[0], (ids(6, 5),))
    with pytest.raises(CaptureError, match="the model does not take the example batch: Flat raised"):
        transform(flat(), (torch.randn(5, 6),))


# -- plan files ------------------------------------------------------------------------------


def with_file(tmp_path: Path, content: Any, **dmt: Any) -> dict[str, Any]:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(content))
    return {"partition": {"strategy": "file", "file": str(file)}, **dmt}


def test_a_file_with_only_towers(tmp_path: Path) -> None:
    names = [f"tables.{f}" for f in (4, 0, 2)], [f"tables.{f}" for f in (5, 3, 1)]
    model = towered(with_file(tmp_path, {"towers": names}, towers=NONE))
    assert model.plan.towers == tuple(map(tuple, names))
    assert model.plan.provenance["strategy"] == "file"
    assert torch.equal(model(ids(6, 4)), flat()(ids(6, 4)))
    other = towered(with_file(tmp_path, {"towers": names}), "2x4")
    assert other.plan.topology == "2x4"  # towers alone fit any topology with as many hosts
    with pytest.raises(PlanError, match="has 2 towers, this run needs 3"):
        towered(with_file(tmp_path, {"towers": names}), "3x1")
    with pytest.raises(PlanError, match=r"unknown features \['tables.9'\], features in no tower \['tables.1'\]"):
        towered(with_file(tmp_path, {"towers": [names[0], ["tables.5", "tables.3", "tables.9"]]}))


@pytest.mark.parametrize("towers", [NONE, {"c": 2, "dim": 3, "seed": 4}, {"module": "dcn", "count": 4}])
def test_a_whole_plan_comes_back(tmp_path: Path, towers: dict[str, Any]) -> None:
    first = towered({"towers": towers, "partition": {"strategy": "contiguous"}})
    second = towered(with_file(tmp_path, first.plan.to_dict(), towers=towers))
    third = towered(with_file(tmp_path, first.plan.to_dict()))
    for model in (second, third):
        assert model.plan == first.plan
        assert torch.equal(model(ids(6, 4)), first(ids(6, 4)))


def test_a_plan_for_another_model_or_topology(tmp_path: Path) -> None:
    data = towered().plan.to_dict()
    with pytest.raises(PlanError, match="made for the model"):
        towered(with_file(tmp_path, data), features=5)
    for topology in ("2x1", "4x1"):
        with pytest.raises(PlanError, match=f"made for 2x2 .* this run is {topology}"):
            towered(with_file(tmp_path, data), topology)


@pytest.mark.parametrize(
    ("towers", "message"),
    [
        ({"module": "dcn"}, r"dmt\.towers\.module is 'dcn', but the plan in .*plan\.json says 'dlrm'"),
        ({"p": 1}, r"dmt\.towers\.p is 1, but the plan in .* says 0"),
        ({"dim": 4}, r"dmt\.towers\.dim is 4, but the plan in .* says 2"),
        ({"count": 4}, r"dmt\.towers\.count is 4, but the plan in .* says 2"),
        ({"init": "torch"}, r"dmt\.towers\.init is 'torch'"),
    ],
)
def test_a_key_that_contradicts_the_plan(tmp_path: Path, towers: dict[str, Any], message: str) -> None:
    data = towered().plan.to_dict()
    towered(with_file(tmp_path, data, towers={"dim": "auto", "count": "auto"}))
    with pytest.raises(PlanError, match=message):
        towered(with_file(tmp_path, data, towers=towers))


def test_a_plan_with_other_groups(tmp_path: Path) -> None:
    data = towered().plan.to_dict()
    joined = data["groups"][0]
    halves = [{**joined, "features": joined["features"][:3]}, {**joined, "name": "group1"}]
    halves[1]["features"] = joined["features"][3:]
    model = towered(with_file(tmp_path, {**data, "groups": halves}))
    parts = [("tower", tuple(joined["features"][part])) for part in (slice(0, 3), slice(3, 6))]
    assert [(g.kind, tuple(g.features)) for g in model.plan.groups] == parts
    twice = [halves[0], {**halves[1], "features": (*halves[1]["features"], joined["features"][0])}]
    for wrong in (halves[:1], twice):
        with pytest.raises(PlanError, match="the plan joins the features as"):
            towered(with_file(tmp_path, {**data, "groups": wrong}))
    everything = [list(joined["features"]), []]
    with pytest.raises(PlanError, match=r"gives tower\(s\) \[1\] no feature of group0"):
        towered(with_file(tmp_path, {**data, "towers": everything}))


def test_a_plan_that_moves_a_group_unchanged_is_followed(tmp_path: Path) -> None:
    data = towered().plan.to_dict()
    data["groups"][0]["kind"] = "transport"
    model = towered(with_file(tmp_path, data))
    assert model.semantic_preserving and model.group_reasons["group0"] == "the plan moves it as it is"
    assert torch.equal(model(ids(6, 4)), flat()(ids(6, 4)))


def test_a_plan_that_takes_a_group_through_towers_which_cannot(tmp_path: Path) -> None:
    def repeated(streams: list[torch.Tensor], model: Any) -> torch.Tensor:
        return torch.cat([*streams, streams[0]], 1)

    data = towered().plan.to_dict()
    config = with_file(tmp_path, data, transform={"on_unsupported": "transport"})
    with pytest.raises(PlanError, match="takes group0 through towers, but it cannot: cat holds one"):
        transform(Flat(repeated, features=6), (ids(6, 5),), {"dmt": config}, "2x2")


# -- towers without a feature ------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["error", "transport"])
def test_a_tower_without_a_feature_of_a_group(tmp_path: Path, policy: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Flat(cat, features=3), Flat(cat, features=4)

        def forward(self, index: torch.Tensor) -> torch.Tensor:
            return self.a(index) + self.b(index[:, 3:])

    towers = [[f"a.tables.{f}" for f in range(3)], [f"b.tables.{f}" for f in range(4)]]
    config = with_file(tmp_path, {"towers": towers}, transform={"on_unsupported": policy})
    if policy == "error":
        with pytest.raises(TransformError) as caught:
            transform(Two(), (ids(7, 5),), {"dmt": config}, "2x1")
        assert {f.code for f in caught.value.findings} == {"DMT304"}
        assert r"tower(s) [1] have no feature of group0" in str(caught.value)
        return
    model = transform(Two(), (ids(7, 5),), {"dmt": config}, "2x1")
    assert [g.kind for g in model.plan.groups] == ["transport", "transport"]
    assert [f.severity for f in model.findings] == ["warning", "warning"]
    assert model.semantic_preserving and "none of its features" in model.group_reasons["group0"]
    sptt = transform(Two(), (ids(7, 5),), {"dmt": {**config, "towers": NONE}}, "2x1")
    assert sptt(ids(7, 4)).shape == (4, 1)


# -- verification ------------------------------------------------------------------------------


def test_a_model_with_randomness_in_eval_mode_is_found_out() -> None:
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rest = flat()

        def forward(self, index: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(self.rest(index), 0.5, training=True)

    with pytest.raises(TransformError) as caught:
        transform(Random(), (ids(6, 64),))
    assert "random numbers" in only(caught.value.findings, "DMT402").hint
    off = {"dmt": {"transform": {"verify": False}}}
    assert transform(Random(), (ids(6, 64),), off)(ids(6, 4)).shape == (4, 1)


LARGEST = torch.finfo(torch.float32).max


class Returns(nn.Module):
    """Gives its input with another first entry, and whatever else it is made with."""

    def __init__(self, first: float, *others: Any, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first, self.others, self.dtype = first, others, dtype

    def forward(self, x: torch.Tensor) -> Any:
        out = x.clone()
        out[0] = self.first
        return out.to(self.dtype), *self.others


ON_ONES = dmt_plugin.ExampleBatch((torch.ones(3),))


@pytest.mark.parametrize("broken", [0.0, float("nan"), float("inf")])
def test_a_wrong_rewrite_is_found_out(broken: float) -> None:
    check_same_outputs(Returns(broken), Returns(broken), ON_ONES, "nothing")
    for other in (1.0, 0.0 if broken else float("nan"), LARGEST, -LARGEST):
        with pytest.raises(TransformError, match=r"DMT402 error.*the rewrite changed the outputs") as caught:
            check_same_outputs(Returns(broken), Returns(other), ON_ONES, "the rewrite")
        assert "this is a defect of the compiler" in only(caught.value.findings, "DMT402").hint


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Returns(0.0, 1, None, dtype=torch.float64), "torch.float32, then torch.float64"),
        (Returns(0.0, 2, None), "1, then 2"),
        (Returns(0.0, True, None), "1, then True"),
        (Returns(0.0, 1, torch.ones(1)), "None, then a tensor"),
        (Returns(0.0, 1), "3 values in a tuple, then 2 in a tuple"),
        (Returns(0.25, 1, None), "largest difference 0.25"),
    ],
)
def test_a_rewrite_that_returns_something_else_is_found_out(other: nn.Module, words: str) -> None:
    check_same_outputs(Returns(0.0, 1, None), Returns(0.0, 1, None), ON_ONES, "nothing")
    with pytest.raises(TransformError, match=rf"the rewrite changed the outputs .*\({words}\)"):
        check_same_outputs(Returns(0.0, 1, None), other, ON_ONES, "the rewrite")


# -- a partition that is handed over ---------------------------------------------------------


def test_a_partition_or_a_plan_is_handed_over() -> None:
    names = [f"tables.{f}" for f in range(6)]
    towers = (tuple(names[:1]), tuple(names[1:3]), tuple(names[3:]))

    def plan_of(partition: Any, topology: str | None = None, dmt: Any = None) -> TowerPlan:
        config = {"dmt": {"towers": {"module": "none"}, **(dmt or {})}}
        return transform(flat(), (ids(6, 5),), config, topology, partition=partition).plan

    made = plan_of(Partition(towers, {"strategy": "by hand"}))
    assert made.towers == towers and made.topology == "3x1" and made.provenance == {"strategy": "by hand"}
    assert plan_of({"towers": [list(t) for t in towers]}, "1x2").towers == towers
    assert plan_of(made) == made and plan_of(made.to_dict(), "3x1") == made
    elsewhere = {"strategy": "file", "file": "nowhere.json"}  # what is handed over counts
    assert plan_of({"towers": [names]}, dmt={"partition": elsewhere}).towers == (tuple(names),)
    with pytest.raises(PlanError, match="the partition that was given has 3 towers, this run needs 2"):
        plan_of({"towers": [list(t) for t in towers]}, "2x1", {"towers": {"module": "none", "count": 2}})
    with pytest.raises(PlanError, match=r"the partition that was given does not fit the model: unknown .*nobody"):
        plan_of({"towers": [["nobody"], names]})


# -- the result ------------------------------------------------------------------------------


def test_a_tower_model_says_what_was_done() -> None:
    model = towered({"towers": {"p": 1}})
    assert [p.name for p in model.passes][-2:] == ["insert_tower_modules", "repair_shapes"]
    assert [r.target for r in model.repairs] == ["top"]
    assert model.table_names == tuple(f"tables.{f}" for f in range(6))
    assert isinstance(model.plan, TowerPlan) and model.meeting_points == {"group0": "cat"}


def test_a_copy_of_a_tower_model_can_be_placed() -> None:
    model, batch = ZOO["deepfm"]()
    config = DMTConfig.model_validate({"lookup": {"backend": "torch"}})
    logical = transform(model, batch(5, 0), config, "2x2")
    expected = str(place(logical, config, Topology(2, 2), 1).graph)
    for twin in (copy.deepcopy(logical), pickle.loads(pickle.dumps(logical))):
        assert isinstance(twin, TowerModel)
        assert str(place(twin, config, Topology(2, 2), 1).graph) == expected
        assert set(twin.state_dict()) == set(logical.state_dict())


def test_findings_of_a_context_stop_it() -> None:
    ctx: PassContext = found(flat(), ids(6, 5))
    ctx.find("DMT402", "warning", "", "nothing bad")
    ctx.stop_on_errors()
    ctx.find("DMT402", "error", "", "bad")
    with pytest.raises(TransformError):
        ctx.stop_on_errors()
