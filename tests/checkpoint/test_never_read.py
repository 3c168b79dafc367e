"""Checkpoints of before, of models with parameters that forward never reads: the tower model did not have them.

A run never held such parameters; the manifest of a model without tower modules named them, that of one with tower
modules did not. A table whose rows forward looked up and did not use was a table of the plan.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.checkpoint import folder, load_checkpoint
from dmt_plugin.checkpoint.folder import COMMON, RANKS, STATE, entry_of, rank_file
from dmt_plugin.checkpoint.pieces import Piece, vector
from dmt_plugin.checkpoint.reshard import plan_for, reshard
from dmt_plugin.checkpoint.single import read_state
from dmt_plugin.checkpoint.writes import write_pieces
from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.plan.tower_plan import FeatureSpec, TableSpec, TowerPlan, model_fingerprint
from dmt_plugin.topology.shape import Topology
from tests.checkpoint.test_folder import manifest

NONE = {"module": "none", "count": 2}
DLRM = {"module": "dlrm", "c": 1, "p": 1, "dim": 4, "count": 2}
UNREAD = ("left.bias", "left.weight", "scale")


class Net(nn.Module):
    """Four tables and a fifth whose rows are looked up in vain; a layer, a parameter and a buffer that are not read."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, 4) for _ in range(5))
        self.top = nn.Linear(16, 1)
        self.left = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.rand(2))

    def forward(self, ids: Tensor) -> Tensor:
        vectors = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        return self.top(torch.cat(vectors[:4], 1)).squeeze(1)


IDS = torch.arange(40).view(8, 5) % 20


def towers_of(model: nn.Module, towers: dict[str, Any], **partition: Any) -> Any:
    return transform(model, (IDS,), {"dmt": {"towers": towers, "partition": partition}}, "2x1")


def as_before(plan: TowerPlan) -> TowerPlan:
    """The plan with the fifth table, as the version before had it: a feature of a tower, and of no group."""
    tables = (*plan.tables, TableSpec("tables.4", 20, 4))
    features = (*plan.features, FeatureSpec("tables.4", ("tables.4",), 1))
    return dataclasses.replace(
        plan, tables=tables, features=features, towers=((*plan.towers[0], "tables.4"), *plan.towers[1:]),
        table_lanes={**plan.table_lanes, "tables.4": 0}, model=model_fingerprint(tables, features), weights="",
    )  # fmt: skip


def saved(root: Path, towers: dict[str, Any], *, fifth: bool) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint as the version before wrote it, by one process, and its state."""
    model = towers_of(Net(1), towers)
    plan = as_before(model.plan) if fifth else model.plan
    tables = {table.parameter for table in plan.tables}
    state = {n: v.detach().clone() for n, v in model.state_dict().items() if n in tables or n not in model.never_run}
    pieces = [
        Piece(f"model.{n}", "table", tuple(v.shape), (0, 0), v) if n in tables else vector(f"model.{n}", "dense", v)
        for n, v in state.items()
    ]
    temporary = folder.begin(root, "a")
    write_pieces(pieces, temporary / STATE, None)
    for file in (COMMON, rank_file(0)):
        torch.save({}, temporary / file)
    paths = [temporary / COMMON, *(temporary / STATE).iterdir(), *(temporary / RANKS).iterdir()]
    preserving = towers is NONE
    made = dataclasses.replace(
        manifest("a", 1), plan=plan.to_dict(), topology="2x1", rank_states=1, semantic_preserving=preserving,
        never_run=sorted(model.state_dict().keys() - state.keys()) if preserving else (),
        tensors={piece.name: piece.entry for piece in pieces},
        files={str(path.relative_to(temporary)): entry_of(path) for path in paths},
    )  # fmt: skip
    return folder.commit(temporary, made), state


def took(model: nn.Module, state: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    """Everything that was stored is the model's, the rest is as it was."""
    for name, value in model.state_dict().items():
        assert torch.equal(value, state.get(name, start[name])), name
    assert set(state) <= set(model.state_dict())


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("fifth", [True, False], ids=["a table in vain", "plain"])
@pytest.mark.parametrize("towers", [NONE, DLRM], ids=["sptt", "modules"])
def test_into_a_tower_model(tmp_path: Path, towers: dict[str, Any], fifth: bool) -> None:
    place, state = saved(tmp_path / "run", towers, fifth=fifth)
    for path in (place, resharded(place, tmp_path)):
        model = towers_of(Net(2), towers)
        assert set(UNREAD) < set(model.state_dict())
        start = copied(model)
        load_checkpoint(model, path)
        took(model, state, start)
        assert torch.equal(model(IDS), torch.func.functional_call(model, state, (IDS,)))


def resharded(place: Path, root: Path) -> Path:
    found = folder.find_checkpoint(place)
    assert found is not None
    return reshard(found, plan_for(found.manifest.tower_plan, Topology(1, 2)), root / "other")


@pytest.mark.parametrize("fifth", [True, False], ids=["a table in vain", "plain"])
def test_into_the_flat_model_and_by_its_state(tmp_path: Path, fifth: bool) -> None:
    place, state = saved(tmp_path / "run", NONE, fifth=fifth)
    for path in (place, resharded(place, tmp_path)):
        flat = Net(2)
        start = copied(flat)
        load_checkpoint(flat, path)
        took(flat, state, start)
    model = towers_of(Net(2), DLRM)
    start = copied(model)
    done = model.load_flat_state(read_state(place))
    assert set(UNREAD).isdisjoint(done.loaded) and "tables.0.weight" in done.loaded
    assert all(torch.equal(model.state_dict()[name], start[name]) for name in UNREAD)


def test_a_run_goes_on_by_the_plan_of_before(tmp_path: Path) -> None:
    """The table that is looked up in vain stays one, where a plan has it; with the same towers."""
    place, state = saved(tmp_path / "run", DLRM, fifth=True)
    model = towers_of(Net(2), DLRM, strategy="file", file=str(place))
    assert "tables.4" in {table.name for table in model.plan.tables}
    assert not [finding for finding in model.findings if finding.code == "DMT211"]
    start = copied(model)
    load_checkpoint(model, place)
    took(model, state, start)
    with pytest.raises(CheckpointError, match="tower 0 of group0 has the features"):
        load_checkpoint(towers_of(Net(2), DLRM, strategy="contiguous"), place)
