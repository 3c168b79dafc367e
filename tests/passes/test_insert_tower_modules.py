"""Tower modules in each form: what the model behind sees, what a decoder costs, towers that differ."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError, PlanError
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.nn.towers import DCNTower, DLRMTower, PreserveTower
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.report.explain.explanation import explain
from dmt_plugin.topology.shape import Topology
from tests.passes.flat import Flat, cat, ids, only, towers
from tests.passes.test_gather_streams import pairs, returned
from tests.zoo.catalogue import CATALOGUE
from tests.zoo.checks import check_towers, undone

FORMS = ("decoder", "preserve")


def picked(streams: list[Tensor], model: Any) -> Tensor:
    """A regular join that the shape repair refuses behind."""
    v = torch.stack(streams, 1)
    return torch.cat([v[:, 0] * v[:, 1], v.flatten(1)], 1)


class InTurn(nn.Module):
    """Uses each vector before the next table is looked up; keeps one result for last."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10, 4) for _ in range(4))
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.top = nn.Linear(4, 1)

    def forward(self, index: Tensor) -> tuple[Tensor, Tensor]:
        total = torch.zeros(index.shape[0], 4)
        for f, (table, layer) in enumerate(zip(self.tables, self.layers, strict=True)):
            vector = table(index[:, f])
            total = torch.tanh(layer(vector) + total)
        return self.top(total), vector


def compiled(model: nn.Module, form: str, features: int = 4, topology: str = "2x1", **dmt: Any) -> TowerModel:
    return towers(model, ids(features, 5), topology=topology, transform={"on_unsupported": form}, **dmt)


# -- the model behind ------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [lambda: Flat(pairs), lambda: Flat(returned), lambda: Flat(picked), InTurn])
def test_with_the_towers_undone_it_is_the_flat_model(make: Any, form: str) -> None:
    torch.manual_seed(0)
    flat = make()
    reference = copy.deepcopy(flat)
    model = compiled(flat, form)
    (group,) = model.plan.groups
    assert (group.kind, group.form) == ("tower", form) and not model.semantic_preserving
    for key, value in reference.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    args = ids(4, 6, 1)
    expected, kept = reference(args), model(args)
    single = isinstance(expected, Tensor)
    assert not torch.equal(expected if single else expected[0], kept if single else kept[0])
    with undone(model):
        for a, b in zip([expected] if single else expected, [model(args)] if single else model(args), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("form", FORMS)
def test_it_trains_and_can_be_copied(form: str) -> None:
    model = compiled(Flat(pairs), form).train()
    out = model(ids(4, 6, 1))
    out.square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]
    assert torch.equal(copy.deepcopy(model)(ids(4, 6, 1)), out)
    assert torch.equal(pickle.loads(pickle.dumps(model))(ids(4, 6, 1)), out)
    for path in ("tower0", "tower1", *(("decoder0", "decoder1") if form == "decoder" else ())):
        hook = model.get_submodule(f"dmt_towers.group0.{path}").register_forward_hook(lambda m, a, r: r.flip(1))
        assert not torch.allclose(model(ids(4, 6, 1)), out)
        hook.remove()


def test_a_decoder_starts_as_the_reconstruction_of_its_own_tower() -> None:
    """At the wrong tower a decoder would not fit; where all are of one size, it would be far off."""
    for features in (4, 5):
        model = compiled(Flat(pairs, features=features), "decoder", features, towers={"p": 1, "dim": 4})
        for tower in (0, 1):
            encode = model.get_submodule(f"dmt_towers.group0.tower{tower}")
            decode = model.get_submodule(f"dmt_towers.group0.decoder{tower}")
            x = torch.randn(7, len(model.plan.towers[tower]), 4)
            assert torch.allclose(decode(encode(x)), x.flatten(1), atol=1e-4)  # O_t >= F_t*N: nothing is lost


def test_a_preserving_tower_starts_near_the_flat_model() -> None:
    torch.manual_seed(0)
    flat = Flat(returned)
    reference = copy.deepcopy(flat)
    near = compiled(flat, "preserve")(ids(4, 9, 1))
    assert (near - reference(ids(4, 9, 1))).abs().max() < 0.3
    model = compiled(Flat(returned), "preserve", towers={"init": "identity"})
    reference.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("dmt_towers")})
    assert torch.allclose(model(ids(4, 9, 1)), reference(ids(4, 9, 1)), atol=1e-6)


def test_groups_of_several_widths_have_their_own_automatic_width() -> None:
    tables: list[nn.Module] = [nn.Embedding(10, 8 if f < 3 else 4) for f in range(6)]
    flat = Flat(lambda s, m: torch.cat([s[0] * s[1] + s[2], s[3] * s[4] - s[5]], 1), tables, features=6)
    model = compiled(flat, "decoder", 6, partition={"strategy": "strided"}, topology="1x1")
    assert [(g.width, g.dim) for g in model.plan.groups] == [(8, 4), (4, 2)]
    assert [model.get_submodule(f"dmt_towers.group{g}.tower0").out_features for g in (0, 1)] == [3 * 4, 3 * 2]


# -- what is said ----------------------------------------------------------------------------


def test_the_cost_of_decoders_is_told() -> None:
    model = compiled(Flat(pairs), "decoder")
    finding = only(model.findings, "DMT307")
    # Per tower of 2 features: O_t = 2*2 = 4, decoder 4 -> 8.
    assert finding.severity == "warning" and finding.module == "tables.0"
    assert "group0 (4 features of width 4)" in finding.reason and "more than once" in finding.reason
    assert "8 entries a sample cross hosts instead of 16" in finding.reason
    assert f"{2 * (4 * 8 + 8)} parameters and {2 * 2 * 4 * 8} FLOPs a sample" in finding.reason
    assert [(r.target, r.what) for r in model.repairs] == [
        (f"dmt_towers.group0.decoder{t}", "new: 4 -> 8") for t in (0, 1)
    ]
    assert all("least-squares" in r.init for r in model.repairs)


def test_a_preserving_group_is_told_and_adds_no_decoder() -> None:
    model = compiled(Flat(pairs), "preserve")
    assert "fewer bytes are not to be had" in only(model.findings, "DMT307").reason and model.repairs == ()
    explicit = towers(Flat(pairs), ids(4, 5), towers={"module": "preserve"})
    assert [f.code for f in explicit.findings] == []  # that is what was asked for
    assert explicit.plan.module.kind == "preserve" and explicit.repairs == ()


def test_the_reason_of_the_shape_repair_is_kept() -> None:
    model = compiled(Flat(picked), "decoder")
    assert "cannot be adapted" in model.group_reasons["group0"]
    assert "cannot be adapted" in only(model.findings, "DMT307").reason
    assert not [f for f in model.findings if f.code == "DMT401"]


def test_a_tower_without_features_of_the_group() -> None:
    tables: list[nn.Module] = [nn.Embedding(10, 4 if f < 3 else 2) for f in range(4)]
    flat = Flat(lambda s, m: torch.cat([pairs(s[:3], m), s[3]], 1), tables)
    model = compiled(flat, "decoder", topology="4x1")
    assert {g.kind for g in model.plan.groups} == {"transport"}
    assert only(model.findings, "DMT304").severity == "warning"


# -- plans -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_plan_keeps_forms_and_overrides(form: str, tmp_path: Path) -> None:
    overrides = {"1": {"init": "identity", "seed": 3}}
    for flat in (Flat(pairs), Flat(picked)):
        model = compiled(flat, form, towers={"overrides": overrides})
        file = tmp_path / "plan.json"
        model.plan.save(file)
        assert TowerPlan.load(file) == model.plan
        partition = {"strategy": "file", "file": str(file)}
        again = compiled(flat, form, partition=partition)
        assert again.plan == model.plan and again.plan.overrides[1].seed == 3
        assert torch.equal(again(ids(4, 6)), model(ids(4, 6)))
        with pytest.raises(PlanError, match=r"dmt\.towers\.overrides is for tower\(s\) \['0'\]"):
            compiled(flat, form, partition=partition, towers={"overrides": {"0": {"seed": 3}}})


def test_a_plan_from_before_there_were_forms(tmp_path: Path) -> None:
    data = towers(Flat(cat), ids(4, 5)).plan.to_dict()
    for group in data["groups"]:
        del group["form"], group["dim"]
    del data["overrides"]
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(data))
    model = towers(Flat(cat), ids(4, 5), partition={"strategy": "file", "file": str(file)})
    assert [(g.form, g.dim) for g in model.plan.groups] == [("native", 0)]
    assert model.get_submodule("dmt_towers.group0.tower0").out_features == 4


def test_a_plan_may_give_a_regular_group_another_form_but_not_the_native_one(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    native = towers(Flat(cat), ids(4, 5)).plan
    for form in FORMS:
        group = dataclasses.replace(native.groups[0], form=form)
        dataclasses.replace(native, groups=(group,)).save(file)
        model = towers(Flat(cat), ids(4, 5), partition={"strategy": "file", "file": str(file)})
        assert [g.form for g in model.plan.groups] == [form] and model.group_reasons["group0"] == "the plan says so"
    irregular = compiled(Flat(pairs), "decoder").plan
    dataclasses.replace(irregular, groups=(dataclasses.replace(irregular.groups[0], form="native"),)).save(file)
    with pytest.raises(PlanError, match=r"group0 in the native form, but here it is in the form 'decoder'"):
        compiled(Flat(pairs), "decoder", partition={"strategy": "file", "file": str(file)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"overrides": {"2": {"kind": "dcn"}}}, r"overrides the module of tower\(s\) \[2\]; it has the towers 0\.\.1"),
        ({"overrides": {"one": {"kind": "dcn"}}}, "not a tower plan"),
        ({"overrides": {"1": {"module": "dcn"}}}, "not a tower plan"),
        ({"form": "decoded"}, r'groups\[0\]\.form: found "decoded" \(did you mean "decoder"\?\)'),
    ],
)
def test_a_plan_with_forms_or_overrides_that_do_not_exist(change: dict[str, Any], message: str) -> None:
    data = towers(Flat(cat), ids(4, 5)).plan.to_dict()
    if "form" in change:
        data["groups"][0]["form"] = change["form"]
    else:
        data.update(change)
    with pytest.raises(PlanError, match=message):
        TowerPlan.from_dict(data)


# -- towers that differ ----------------------------------------------------------------------


def test_a_tower_may_have_a_module_of_its_own() -> None:
    config = {"dim": 3, "overrides": {"1": {"c": 2, "p": 1}, "2": {"module": "dcn", "seed": 5}}}
    model = towers(Flat(cat, features=6), ids(6, 5), topology="3x1", towers=config)
    modules: list[Any] = [model.get_submodule(f"dmt_towers.group0.tower{t}") for t in range(3)]
    assert [type(m) for m in modules] == [DLRMTower, DLRMTower, DCNTower]
    assert [m.out_features for m in modules] == [2 * 3, 3 * (2 * 2 + 1), 2 * 3]
    assert model.get_parameter("top.weight").shape == (1, 6 + 15 + 6)
    assert {t: (s.kind, s.c, s.p, s.dim, s.seed) for t, s in model.plan.overrides.items()} == {
        1: ("dlrm", 2, 1, 3, 0), 2: ("dcn", 1, 0, 3, 5),
    }  # fmt: skip
    same = towers(Flat(cat, features=6), ids(6, 5), topology="3x1", towers={**config, "overrides": {}})
    assert torch.equal(same.get_parameter("dmt_towers.group0.tower0.per_feature.weight"), modules[0].per_feature.weight)


def test_decoders_follow_the_towers_that_differ() -> None:
    model = compiled(Flat(pairs), "decoder", towers={"overrides": {"1": {"module": "dcn"}, "0": {"p": 2}}})
    sizes = [(r.target[-1], r.what) for r in model.repairs]
    assert sizes == [("0", "new: 8 -> 8"), ("1", "new: 4 -> 8")]


def test_a_preserving_tower_among_others() -> None:
    config = {"module": "dcn", "overrides": {"1": {"module": "preserve"}}}  # dcn keeps the width as well
    model = towers(Flat(cat), ids(4, 5), towers=config)
    assert isinstance(model.get_submodule("dmt_towers.group0.tower1"), PreserveTower)
    with pytest.raises(ConfigError, match="keeps the width of its features, 4"):
        towers(Flat(cat), ids(4, 5), towers={**config, "module": "dlrm"})


def test_a_cross_layer_of_a_rank_and_outputs_of_the_whole_tower(tmp_path: Path) -> None:
    config = {"module": "dcn", "dim": 3, "rank": 2, "outputs": 1, "overrides": {"2": {"rank": "auto", "outputs": 2}}}
    model = towers(Flat(cat, features=6), ids(6, 5), topology="3x1", towers=config)
    modules: list[Any] = [model.get_submodule(f"dmt_towers.group0.tower{t}") for t in range(3)]
    assert [m.reduce is None for m in modules] == [False, False, True]
    assert [m.cross.in_features for m in modules] == [2, 2, modules[2].cross.out_features]
    assert model.get_parameter("top.weight").shape == (1, 3 + 3 + 6)
    model.plan.save(tmp_path / "plan.json")
    assert TowerPlan.load(tmp_path / "plan.json") == model.plan
    partition = {"strategy": "file", "file": str(tmp_path / "plan.json")}
    for other, said in ({**config, "rank": 3}, "rank is 3, but .* says 2"), ({**config, "outputs": 2}, "outputs is 2"):
        with pytest.raises(PlanError, match=rf"dmt\.towers\.{said}"):
            towers(Flat(cat, features=6), ids(6, 5), topology="3x1", towers=other, partition=partition)


def test_an_override_of_a_tower_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"dmt\.towers\.overrides\.2: there is no such tower; this run has 2, 0 to 1"):
        towers(Flat(cat), ids(4, 5), towers={"overrides": {"2": {"c": 2}}})


def test_a_users_tower_in_one_place_and_with_a_decoder() -> None:
    own = {"module": "tests.nn.test_towers:Own", "dim": 4}
    model = compiled(Flat(pairs), "decoder", towers={"dim": 4, "overrides": {"1": {"module": own["module"]}}})
    assert [r.what for r in model.repairs] == ["new: 8 -> 8", "new: 8 -> 8"]
    with pytest.raises(ConfigError, match=r"breaks the contract of a tower module.*whole number of streams"):
        compiled(Flat(pairs), "decoder", towers={"module": "tests.nn.test_towers:WrongWidth", "dim": 4})


# -- the zoo ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "name", ["deepctr_pnn_outer", "deepctr_afm", "deepctr_fibinet", "fuxi_masknet_serial", "joint_ffm"]
)
def test_models_whose_interaction_is_tied_to_its_features(name: str, form: str) -> None:
    model = check_towers(CATALOGUE[name], {"dmt": {"transform": {"on_unsupported": form}}})
    assert {g.form for g in model.plan.groups if g.kind == "tower"} <= {"native", form}


def test_the_shape_repair_counts_its_own_repairs_only() -> None:
    model = compiled(Flat(pairs), "decoder")
    assert next(r for r in model.passes if r.name == "repair_shapes").changed == 0


def test_explaining_a_model_with_decoders() -> None:
    dmt = {"transform": {"on_unsupported": "decoder"}, "towers": {"overrides": {"1": {"p": 1}}}}
    config = DMTConfig.model_validate(dmt)
    data = explain(Flat(pairs), (ids(4, 5),), config, Topology(2, 1)).as_dict()
    assert [g["form"] for g in data["groups"]] == ["decoder"]
    assert [(m["tower"], m["module"], m["output"]) for m in data["tower_modules"]] == [
        (0, "dlrm", "(B, 4)"), (1, "dlrm", "(B, 6)"),
    ]  # fmt: skip
    anew = {p["name"]: p["init"] for p in data["new_parameters"]}
    assert "least-squares" in anew["dmt_towers.group0.decoder1.weight"]
    assert "rotation" in anew["dmt_towers.group0.tower1.per_tower.weight"]
    assert data["compression"] == 16 / 10
    decoders = 4 * 8 + 8 + 6 * 8 + 8
    top = sum(p.numel() for p in Flat(pairs).top.parameters())
    assert data["parameters"]["dense"] == decoders + top
