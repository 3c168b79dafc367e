"""What of a checkpoint goes into a model that has changed since, and what is said of everything that is not so."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.capture.marks import mark_embeddings
from dmt_plugin.checkpoint import folder, load_checkpoint
from dmt_plugin.checkpoint.changes import Fit, fit_to, read_changes
from dmt_plugin.checkpoint.differences import Side, side_of
from dmt_plugin.checkpoint.folder import COMMON, RANKS, STATE, entry_of, rank_file
from dmt_plugin.checkpoint.manifest import TensorEntry
from dmt_plugin.checkpoint.pieces import Piece, vector
from dmt_plugin.checkpoint.state import StoredTable
from dmt_plugin.checkpoint.writes import write_pieces
from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.model.logical import TowerModel
from tests.checkpoint.test_folder import manifest

NONE = {"module": "none", "count": 2}
DLRM = {"module": "dlrm", "c": 1, "p": 0, "dim": 4, "count": 2}


class Shift(nn.Module):
    """A buffer that is random, and used."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("by", torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.by.to(x.dtype)


class Net(nn.Module):
    """A table for each feature, by name; features that share one; layers behind them."""

    def __init__(self, rows: Mapping[str, int], shared: Sequence[str] = (), dim: int = 8) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(count, dim) for name, count in rows.items()})
        self.reads = [*rows, *shared]
        self.top = nn.Sequential(nn.Linear(dim * len(self.reads), 4), Shift(4), nn.Linear(4, 1))

    def forward(self, ids: Tensor) -> Tensor:
        return self.top(torch.cat([self.tables[name](ids[:, i]) for i, name in enumerate(self.reads)], 1)).squeeze(1)


class Keyed(Net):
    """Features that have names of their own."""

    def forward(self, ids: Tensor) -> Tensor:
        vectors = [self.tables[name](ids[:, i]) for i, name in enumerate(self.reads)]
        keys = [f"of_{i}" for i in range(len(vectors))]
        return self.top(torch.cat(mark_embeddings("all", vectors, keys=keys), 1)).squeeze(1)


class Joint(nn.Module):
    """All features in one table."""

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(rows), 8)
        self.register_buffer("offsets", torch.tensor([0, *rows]).cumsum(0)[:-1])
        self.top = nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.top(self.table(ids + self.offsets).sum(1)).squeeze(1)


def towers_of(model: Any, module: Mapping[str, Any] = NONE) -> TowerModel:
    features = len(model.reads) if isinstance(model, Net) else len(model.offsets)
    ids = torch.randint(0, 4, (6, features))
    return transform(model, (ids,), {"dmt": {"towers": dict(module)}}, "2x1")


def side(model: TowerModel) -> Side:
    types = {name: str(value.dtype).removeprefix("torch.") for name, value in model.state_dict().items()}
    state = {name: TensorEntry("", tuple(v.shape), types[name]) for name, v in model.state_dict().items()}
    return side_of(state, model.plan)


def fitted(now: Any, before: Any, changes: Any, module: Mapping[str, Any] = NONE) -> Fit:
    return fit_to(side(towers_of(now, module)), side(towers_of(before, module)), read_changes(changes), "HERE")


def refusal(now: Any, before: Any, changes: Any, module: Mapping[str, Any] = NONE) -> str:
    with pytest.raises(CheckpointError) as caught:
        fitted(now, before, changes, module)
    return str(caught.value)


BEFORE = {"goods": 50, "users": 50, "ads": 50, "old": 20}
AFTER = {"goods": 60, "users": 50, "ads": 50, "shop": 30}
CHANGES = {"grow": ["tables.goods"], "new": ["tables.shop"], "drop": ["tables.old"]}


def test_each_difference_is_named_and_the_changes_that_it_asks_for_do() -> None:
    said = refusal(Keyed(AFTER, ["users"]), Keyed(BEFORE), None)
    for part in (
        "HERE is of another model", "table tables.goods has 60 rows here and 50 in it",
        "table tables.shop, 30 x 8, is not in it", "table tables.old, 20 x 8, is only in it",
        "top.0.weight [4, 40] here and [4, 32] in it".replace(" [4, 40]", " is [4, 40]"),
        "feature of_4, looked up in tables.users, is not in it",
    ):  # fmt: skip
        assert part in said, (part, said)
    asked = '{"grow": ["tables.goods"], "new": ["tables.shop", "top.0.weight", "of_4"], "drop": ["tables.old"]}'
    assert f"changes={asked})" in said
    fit = fitted(Keyed(AFTER, ["users"]), Keyed(BEFORE), json.loads(asked))
    assert fit.tables == {
        "tables.goods": StoredTable(0, 50, 50), "tables.users": StoredTable(0, 50, 50),
        "tables.ads": StoredTable(0, 50, 50),
    }  # fmt: skip
    assert fit.fresh == {"tables.shop.weight", "top.0.weight"} and fit.gone == {"tables.old.weight"}
    assert "grown: tables.goods; not taken from it: tables.shop.weight, top.0.weight; left behind" in str(fit)


@pytest.mark.parametrize(
    "changes",
    [
        CHANGES,
        {"grow": ["tables.goods.weight"], "new": ["tables.shop.weight"], "drop": ["tables.old.weight"]},
        {"grow": ("of_0",), "new": ("*shop.w*",), "drop": ["*old*"]},
        {"grow": ["tables.g?ods"], "new": ["tables.s*"], "drop": {"tables.old": 0}.keys()},
        {"grow": ["tables"], "new": ["*shop"], "drop": ["tables.o*"]},
    ],
    ids=["tables", "parameters", "features", "patterns", "a module"],
)
def test_names_are_of_tables_parameters_features_and_modules(changes: Any) -> None:
    fit = fitted(Keyed(AFTER), Keyed(BEFORE), changes)
    assert (fit.fresh, fit.gone, fit.grown) == ({"tables.shop.weight"}, {"tables.old.weight"}, {"tables.goods"})


def test_layers_start_anew_where_they_are_named() -> None:
    fit = fitted(Net(AFTER), Net(BEFORE), {**CHANGES, "new": ["tables.shop", "top.2", "top.0.bias"]})
    assert fit.fresh == {"tables.shop.weight", "top.0.bias", "top.2.weight", "top.2.bias"}


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"grow": ["tables.godds"]}, ["'tables.godds' under 'grow' is no table or feature of this model (close: t"]),
        ({"grow": ["top.0"]}, ["'top.0' under 'grow' is no table or feature"]),
        ({"grow": ["tables.old"]}, ["'tables.old' under 'grow' is no table"]),
        ({"grow": ["tables.users"]}, ["'tables.users' under 'grow' is not so: tables.users, 50 x 8, is the same"]),
        ({"grow": ["tables.*"]}, ["'tables.*' (tables.users) under 'grow' is not so"]),
        ({"grow": ["tables.shop"]}, ["table tables.shop, 30 x 8, is not in it; name it under 'new'"]),
        ({"new": ["tables.goods"]}, ["tables.goods has 60 rows here and 50 in it; name it under 'grow'"]),
        ({"new": ["tables"]}, ["'tables' (tables.goods) under 'new' is not so"]),
        ({"new": ["of_1"]}, ["'of_1' under 'new' is not so: tables.users, 50 x 8, is the same in the checkpoint"]),
        ({"drop": ["tables.users"]}, ["'tables.users' under 'drop' is in this model too"]),
        ({"drop": ["tables.shop"]}, ["'tables.shop' under 'drop' is no table", "of the checkpoint"]),
        ({"grow": "tables.goods"}, ["found 'tables.goods' under 'grow'", "lists of names"]),
        ({"grow": [3]}, ["found [3] under 'grow'"]),
        ({"shrink": []}, ["found the key 'shrink'"]),
        (["tables.goods"], ["found a list"]),
        ({"grow": ["tables.goods"], "drop": ["tables.old"]}, [
            "in more than changes= says: table tables.shop, 30 x 8, is not in it. If",
            'changes={"grow": ["tables.goods"], "new": ["tables.shop"], "drop": ["tables.old"]})',
        ]),
    ],
)  # fmt: skip
def test_what_is_not_so_is_refused(changes: Any, parts: list[str]) -> None:
    said = refusal(Keyed(AFTER), Keyed(BEFORE), changes)
    assert all(part in said for part in parts) and "othing was loaded" in said, said


def test_rows_are_not_taken_away() -> None:
    for changes in (None, {"grow": ["tables.goods"]}):
        said = refusal(Net({"goods": 40, "users": 50}), Net({"goods": 50, "users": 50}), changes)
        assert "table tables.goods is 40 x 8 here and 50 x 8 in it, and nothing says which rows went away" in said
        assert '"new": ["tables.goods"]' not in said
    fit = fitted(Net({"goods": 40, "users": 50}), Net({"goods": 50, "users": 50}), {"new": ["tables.goods"]})
    assert fit.fresh == {"tables.goods.weight"} and set(fit.tables) == {"tables.users"} and not fit.gone


def test_a_feature_that_is_looked_up_elsewhere() -> None:
    """Tables and layers are the same; only what is looked up in them is not."""
    before, now = Keyed({"goods": 50, "users": 50}, ["goods"]), Keyed({"goods": 50, "users": 50}, ["users"])
    said = refusal(now, before, None)
    assert "feature of_2 is looked up in tables.users here and in tables.goods in it" in said
    assert fitted(now, before, {"new": ["of_2"]}).fresh == frozenset()


def test_fields_of_one_table() -> None:
    """The rows behind a field that grew have other places; a field that is new comes behind them."""
    said = refusal(Joint([10, 25, 30, 5]), Joint([10, 20, 30]), None)
    assert "table table[10:35] (there table[10:30]) has 25 rows here and 20 in it" in said
    assert "table table[65:70], 5 x 8, is not in it" in said and "offsets [4] here" in said.replace(" is", "")
    changes = {"grow": ["table[10:35]"], "new": ["table[65:70]", "offsets"]}
    fit = fitted(Joint([10, 25, 30, 5]), Joint([10, 20, 30]), changes)
    assert fit.tables == {
        "table[0:10]": StoredTable(0, 10, 60), "table[10:35]": StoredTable(10, 20, 60),
        "table[35:65]": StoredTable(30, 30, 60),
    }  # fmt: skip
    assert fit.fresh == {"offsets"} and not fit.gone


def test_towers_of_other_features_are_named() -> None:
    now, before = Net({"a": 5, "b": 5, "c": 5, "d": 5, "e": 5}), Net({"a": 5, "b": 5, "c": 5, "d": 5})
    said = refusal(now, before, None, DLRM)
    assert "dmt_towers.group0.tower0" in said and '"dmt_towers.group0.tower1"' not in said, said
    assert "table tables.e, 5 x 8, is not in it" in said
    names = ["tables.e", "dmt_towers.group0.tower0", "top.0"]
    fit = fitted(now, before, {"new": names}, DLRM)
    assert {name.partition(".weight")[0] for name in fit.fresh} >= {"tables.e"} and "top.0.bias" in fit.fresh
    turned = {**DLRM, "count": 2}
    first = towers_of(Net({"a": 5, "b": 5, "c": 5, "d": 5}), turned)
    plan = dataclasses.replace(first.plan, towers=(first.plan.towers[0][::-1], first.plan.towers[1]))
    other = dataclasses.replace(side(first), plan=plan)
    with pytest.raises(CheckpointError, match=r"tower 0 of group0 has the features \['tables\.c', 'tables\.a'\] here"):
        fit_to(other, side(first), read_changes({"drop": []}), "HERE")
    assert fit_to(other, side(first), read_changes({"new": ["dmt_towers.group0.tower0"]}), "HERE").fresh


def saved(model: Any, root: Path) -> Path:
    """A checkpoint of a run without tower modules, as one process can write it."""
    plan = towers_of(model).plan
    temporary = folder.begin(root, "a")
    tables = {table.parameter for table in plan.tables}
    pieces = [
        Piece(f"model.{name}", "table", tuple(value.shape), (0, 0), value)
        if name in tables
        else vector(f"model.{name}", "dense", value)
        for name, value in model.state_dict().items()
    ]
    write_pieces(pieces, temporary / STATE, None)
    for file in (COMMON, rank_file(0)):
        torch.save({}, temporary / file)
    paths = [temporary / COMMON, *(temporary / STATE).iterdir(), *(temporary / RANKS).iterdir()]
    made = dataclasses.replace(
        manifest("a", 1), plan=plan.to_dict(), topology="2x1", rank_states=1,
        tensors={piece.name: piece.entry for piece in pieces},
        files={str(path.relative_to(temporary)): entry_of(path) for path in paths},
    )  # fmt: skip
    return folder.commit(temporary, made)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "towers"])
def test_in_one_process(tmp_path: Path, flat: bool) -> None:
    old, new = Net(BEFORE), Net(AFTER)
    place = saved(old, tmp_path)
    model = new if flat else towers_of(new)
    before, there = state(model), state(old)
    for changes, match in (
        (None, r"tables\.goods has 60 rows here and 50 in it.*changes=\{"),
        ({"grow": ["tables.goods"]}, "in more than changes= says"),
        ({"grow": ["tables.users"]}, "is the same in the checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=match):
            load_checkpoint(model, place, changes=changes)
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    load_checkpoint(model, place, changes={**CHANGES, "new": ["tables.shop", "top.1", "top.2"]})
    after = state(model)
    name = "tables.goods.weight"
    assert torch.equal(after[name], torch.cat([there[name], before[name][50:]]))
    for name, value in after.items():
        if name != "tables.goods.weight":
            source = before if name.startswith(("tables.shop", "top.1", "top.2")) else there
            assert torch.equal(value, source[name]), name


def test_fields_of_one_table_in_one_process(tmp_path: Path) -> None:
    old, new = Joint([10, 20, 30]), Joint([10, 25, 30])
    place = saved(old, tmp_path)
    with pytest.raises(CheckpointError, match=r"rows of several tables: dmt_plugin\.transform tells which have grown"):
        load_checkpoint(new, place)
    model = towers_of(new)
    with pytest.raises(CheckpointError, match=r"offsets \[3\] may say where fields begin, and the fields of table"):
        load_checkpoint(model, place, changes={"grow": ["table[10:35]"]})
    before, there = state(model)["table.weight"], state(old)["table.weight"]
    load_checkpoint(model, place, changes={"grow": ["table[10:35]"], "new": ["offsets"]})
    assert torch.equal(new.table.weight, torch.cat([there[:30], before[30:35], there[30:]]))
    assert new.offsets.tolist() == [0, 10, 35]
