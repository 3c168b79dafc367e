"""Plans that group the features of a model otherwise than is done today are read as they were planned, or refused.

A join of joins, or a join whose pieces are used apart, was seen in another way when some plans were made.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.checkpoint.compare import check_towers
from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import CheckpointError, PlanError
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.plan.tower_plan import GroupSpec, TowerPlan
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWorld
from tests.checkpoint.test_folder import manifest
from tests.passes.flat import Flat, ids, only
from tests.passes.world import differences, run_placed, settings

FIELDS, N = 6, 8


class JointAndOwn(nn.Module):
    """A joint table of all fields, and features with tables of their own, in one join."""

    def __init__(self, own: int = 1) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.table = nn.Embedding(FIELDS * 20, N)
        self.register_buffer("offsets", torch.arange(FIELDS) * 20)
        self.own = nn.ModuleList(nn.Embedding(20, N) for _ in range(own))
        self.top = nn.Linear((FIELDS + own) * N, 1)

    def forward(self, index: Tensor, more: Tensor) -> Tensor:
        fields = self.table(index + self.offsets)
        rows = [table(more[:, i]).unsqueeze(1) for i, table in enumerate(self.own)]
        return self.top(torch.cat([fields, *rows], 1).flatten(1))


def batch(n: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    return ids(FIELDS, n, seed), ids(3, n, seed + 1)


def made(model: nn.Module, call: tuple[Any, ...], plan: TowerPlan | None = None, **dmt: Any) -> TowerModel:
    config = settings(**{"partition": {"strategy": "strided"}, **dmt})
    return transform(model, call, config, "2x1", partition=plan)


def regrouped(plan: TowerPlan, *groups: tuple[str, list[str], str]) -> TowerPlan:
    """The plan with other groups: kind, beginnings of the names of its features, form."""
    found = []
    for kind, beginnings, form in groups:
        names = tuple(f.name for f in plan.features if f.name.startswith(tuple(beginnings)))
        dim = plan.groups[0].dim if kind == "tower" else 0
        found.append(GroupSpec(f"group{len(found)}", kind, plan.groups[0].width, names, form, dim))
    return dataclasses.replace(plan, groups=tuple(found))


MODULES: dict[str, Any] = {"towers": {"module": "dlrm", "c": 1, "p": 0, "dim": N}}
SPTT: dict[str, Any] = {"towers": {"module": "none"}}
APART = (("tower", ["index"], "native"), ("transport", ["own"], "native"))


def groups_of(model: TowerModel) -> list[tuple[str, str, int]]:
    return [(g.kind, g.form, len(g.features)) for g in model.plan.groups]


@pytest.mark.parametrize("dmt", [SPTT, MODULES], ids=["sptt", "modules"])
def test_what_stands_beside_a_joint_table_may_stay_as_it_was(dmt: dict[str, Any]) -> None:
    flat = JointAndOwn()
    now = made(flat, batch(), **dmt)
    assert groups_of(now) == [("tower", "native", FIELDS + 1)]
    plan = regrouped(now.plan, *APART)
    model = made(flat, batch(), plan, **dmt)
    assert groups_of(model) == [("tower", "native", FIELDS), ("transport", "native", 1)]
    assert model.plan.fingerprint == plan.fingerprint
    index, more = batch(9, 3)
    vectors = [flat.table(index + flat.offsets)]
    if dmt is MODULES:  # tower by tower
        places = [[int(name[6:-1]) for name in names if name.startswith("index[")] for names in plan.towers]
        modules = [model.get_submodule(f"dmt_towers.group0.tower{tower}") for tower in range(2)]
        vectors = [m(vectors[0][:, own]).view(9, len(own), N) for m, own in zip(modules, places, strict=True)]
    expected = model.get_submodule("top")(torch.cat([*vectors, flat.own[0](more[:, 0]).unsqueeze(1)], 1).flatten(1))
    torch.testing.assert_close(model(index, more), expected)


@pytest.mark.parametrize("dedup", ["off", "on"])
def test_its_ranks_are_the_logical_model(dedup: str) -> None:
    dmt = {**MODULES, "comm": {"dedup": dedup}}
    plan = regrouped(made(JointAndOwn(2), batch(), **dmt).plan, *APART)
    logical = made(JointAndOwn(2), batch(), plan, **dmt)
    batches = [batch(4, 1), batch(3, 2)]
    placed = run_placed(logical, settings(**dmt), SimulatedWorld(Topology(2, 1)), batches)
    assert differences(logical, placed, batches) == []


def test_several_groups_beside_a_joint_table() -> None:
    """What is joined beside it can be a group of its own, with towers; so can a part of it."""
    flat = JointAndOwn(3)
    now = made(flat, batch(), **MODULES)
    plan = regrouped(now.plan, ("tower", ["index"], "native"), ("tower", ["own"], "native"))
    assert groups_of(made(flat, batch(), plan, **MODULES)) == [("tower", "native", FIELDS), ("tower", "native", 3)]


# -- pieces of a join --------------------------------------------------------------------


def halves(streams: list[Tensor], model: Any) -> Tensor:
    """Two joins, as is found today; one group, where that was not seen."""
    first, second = torch.cat(streams, 1).split([12, 12], 1)
    return first * second


@pytest.mark.parametrize("form", ["decoder", "preserve"])
def test_groups_that_keep_their_shapes_may_be_one(form: str) -> None:
    flat, call = Flat(halves, features=6), (ids(6, 5),)
    dmt = {"towers": {"module": "dlrm", "c": 1, "p": 0, "dim": 4}, "transform": {"on_unsupported": form}}
    now = made(flat, call, **dmt)
    assert groups_of(now) == [("tower", "native", 3)] * 2
    plan = regrouped(now.plan, ("tower", ["tables"], form))
    model = made(flat, call, plan, **dmt)
    assert groups_of(model) == [("tower", form, 6)] and only(model.findings, "DMT307")
    assert all(model.get_submodule(f"dmt_towers.group0.tower{t}") for t in range(2))


def test_all_of_it_may_only_move() -> None:
    flat, call = Flat(halves, features=6), (ids(6, 5),)
    dmt = {"towers": {"module": "dlrm", "c": 1, "p": 0, "dim": 4}, "transform": {"on_unsupported": "transport"}}
    plan = regrouped(made(flat, call, **dmt).plan, ("transport", ["tables"], "native"))
    model = made(flat, call, plan, **dmt)
    assert groups_of(model) == [("transport", "native", 6)] and torch.equal(model(*call), flat(*call))


def two_tables(model: Any, index: Tensor) -> list[Tensor]:
    """Two tables of one width for each feature."""
    return [table(index[:, i % 4]) for i, table in enumerate(model.tables)]


def mixed(streams: list[Tensor], model: Any) -> Tensor:
    return sum(a * b for a, b in itertools.pairwise(streams))


def eight() -> Flat:
    return Flat(mixed, [nn.Embedding(10, 4) for _ in range(8)], two_tables)


REFUSED: dict[str, tuple[Any, tuple[str, list[str], str]]] = {
    "native, and in two joins": (lambda: Flat(halves, features=6), ("tower", ["tables"], "native")),
    "some features in none": (lambda: Flat(halves, features=6), ("tower", ["tables.0", "tables.1"], "native")),
    "either of two tables": (eight, ("tower", ["tables.0", "tables.1", "tables.2"], "decoder")),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_cannot_be_had_is_refused(name: str) -> None:
    build, group = REFUSED[name]
    flat = build()
    call = (ids(flat.features, 5),)
    dmt = {"towers": {"module": "dlrm", "c": 1, "p": 0, "dim": 4}, "transform": {"on_unsupported": "decoder"}}
    plan = regrouped(made(flat, call, **dmt).plan, group)
    with pytest.raises(PlanError, match=r"joins the features as .* and cannot be grouped as planned. Make a new plan"):
        made(flat, call, plan, **dmt)


def test_either_of_two_joins_is_no_certain_choice() -> None:
    def twice(streams: list[Tensor], model: Any) -> Tensor:
        return torch.cat(streams[:4], 1) * torch.cat(streams[4:], 1)

    flat, call = Flat(twice, [nn.Embedding(10, 4) for _ in range(8)], two_tables), (ids(4, 5),)
    dmt = {"towers": {"module": "dlrm", "c": 1, "p": 0, "dim": 4}}
    now = made(flat, call, **dmt)
    assert groups_of(now) == [("tower", "native", 4)] * 2
    (*three, last), first = now.plan.groups[0].features, now.plan.groups[0]
    groups = (
        dataclasses.replace(first, features=tuple(three)),
        GroupSpec("group1", "transport", 4, (last, *three, last)),
    )
    with pytest.raises(PlanError, match="cannot be grouped as planned"):
        made(flat, call, dataclasses.replace(now.plan, groups=groups), **dmt)


# -- parameters of single features -------------------------------------------------------


class Biased(nn.Module):
    """A bias for each feature behind its lookup, which is in its tower today and was behind the decoder."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10, 4) for _ in range(4))
        self.biases = nn.ParameterList(torch.rand(4) for _ in range(4))
        self.top = nn.Linear(16, 1)

    def forward(self, index: Tensor) -> Tensor:
        pairs = zip(self.tables, self.biases, strict=True)
        return self.top(torch.cat([table(index[:, i]) + bias for i, (table, bias) in enumerate(pairs)], 1))


def moved_by(model: TowerModel, flat: Biased, index: Tensor) -> Tensor:
    """What an output changes by if all biases grow by one."""
    before = model(index)
    with torch.no_grad():
        for bias in flat.biases:
            bias.add_(1)
    after = model(index)
    with torch.no_grad():
        for bias in flat.biases:
            bias.sub_(1)
    return (after - before).detach()


def test_a_bias_stays_behind_the_decoder_that_a_plan_of_before_has() -> None:
    dmt = {"towers": {"module": "dlrm", "c": 1, "p": 0, "dim": 2}, "transform": {"on_unsupported": "decoder"}}
    flat, call = Biased(), (ids(4, 5),)
    now = made(flat, call, **dmt)
    assert now.plan.groups[0].parameters == tuple(f"biases.{i}" for i in range(4))
    before = regrouped(now.plan, ("tower", ["tables"], "decoder"))
    assert "parameters" not in before.to_dict()["groups"][0]
    with_bias = dataclasses.replace(
        before, groups=(dataclasses.replace(before.groups[0], parameters=now.plan.groups[0].parameters),)
    )
    expected = flat.top.weight.detach().sum().expand(5, 1)  # a decoder leaves what is behind it as it was
    for plan, behind in ((before, True), (with_bias, False)):
        model = made(flat, call, plan, **dmt)
        assert groups_of(model) == [("tower", "decoder", 4)] and model.plan.fingerprint == plan.fingerprint
        assert torch.allclose(moved_by(model, flat, *call), expected, atol=1e-5) == behind
    assert TowerPlan.from_dict(with_bias.to_dict()) == with_bias != before
    saved = dataclasses.replace(manifest("a", 1), plan=before.to_dict(), semantic_preserving=False)
    check_towers(before, saved, "HERE")
    with pytest.raises(CheckpointError, match="the towers of HERE are not those of this model"):
        check_towers(with_bias, saved, "HERE")


# -- plans that were made before ---------------------------------------------------------

PLANS = json.loads((Path(__file__).parents[1] / "data" / "plans_before.json").read_text())
"""As they were written, of the models of this file, when a join of joins was two joins and cuts were not undone."""


def dlrm(dim: int, otherwise: str) -> dict[str, Any]:
    return {"towers": {"module": "dlrm", "c": 1, "p": 0, "dim": dim}, "transform": {"on_unsupported": otherwise}}


BEFORE: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "a joint table and a lookup": (JointAndOwn, batch(), dlrm(N, "decoder")),
    "without tower modules": (JointAndOwn, batch(), SPTT),
    "two halves of a join": (lambda: Flat(halves, features=6), (ids(6, 5),), dlrm(4, "decoder")),
    "halves that move": (lambda: Flat(halves, features=6), (ids(6, 5),), dlrm(4, "transport")),
    "a bias for each feature": (Biased, (ids(4, 5),), dlrm(2, "decoder")),
}


@pytest.mark.parametrize("name", list(BEFORE))
def test_a_plan_file_of_before_is_read(name: str, tmp_path: Path) -> None:
    build, call, dmt = BEFORE[name]
    flat, file = build(), tmp_path / "plan.json"
    file.write_text(json.dumps(PLANS[name]))
    partition = {"strategy": "file", "file": str(file)}
    model = transform(flat, call, settings(**{**dmt, "partition": partition}), "2x1")
    assert json.loads(json.dumps(model.plan.to_dict())) == PLANS[name]
    assert model.semantic_preserving == ("decoder" not in str(dmt))
    if model.semantic_preserving:
        assert torch.equal(model(*call), flat(*call))


def test_the_plans_of_before_are_not_those_of_today() -> None:
    for name, (build, call, dmt) in BEFORE.items():
        assert made(build(), call, **dmt).plan.to_dict()["groups"] != PLANS[name]["groups"]
