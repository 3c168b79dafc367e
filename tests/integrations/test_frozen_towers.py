"""Layers that only some hosts hold are left out of a checkpoint as a whole, if they are frozen and asked for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests._util.ranks import run_ranks
from tests.integrations.runs import make
from tests.test_placed_laws import launcher_env
from tests.zoo.models import ZOO

FEATURES = 4


class Projected(nn.Module):
    """A layer for each feature, which runs in the feature's tower."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, 8) for _ in range(FEATURES))
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(FEATURES))
        self.head = nn.Linear(8 * FEATURES, 1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = [layer(table(ids[:, i])) for i, (table, layer) in enumerate(zip(self.tables, self.layers, strict=True))]
        return self.head(torch.cat(rows, dim=1))


def made() -> tuple[nn.Module, Any]:
    model = Projected()
    model.layers.requires_grad_(False)
    return model, lambda n, seed: (torch.randint(0, 20, (n, FEATURES), generator=torch.Generator().manual_seed(seed)),)


def left_out(rank: int, world: int, folder: str) -> dict[str, Any]:
    from dmt_plugin.checkpoint import find_checkpoint, gather_state

    ZOO["projected"] = made
    engine, _ = make("2x1", "projected")
    engine.save_checkpoint(folder, exclude_frozen_parameters=True)
    engine.save_16bit_model(folder, "model.bin", exclude_frozen_parameters=True)
    other, _ = make("2x1", "projected", seed=9)
    before = gather_state(other.dmt.placed, other.dmt.groups)
    other.load_checkpoint(folder)
    after = gather_state(other.dmt.placed, other.dmt.groups)
    found = find_checkpoint(folder)
    assert found is not None
    return {
        "own layers": [path for path in engine.dmt.placed.tower_paths if path.startswith("layers")],
        "left out": list(found.manifest.left_out),
        "kept": [n for n in after if n.startswith("layers") and torch.equal(before[n], after[n])],
        "missing in the file": sorted(set(after) - set(torch.load(f"{folder}/model.bin"))),
    }


@pytest.mark.processes
def test_frozen_layers_of_every_host_are_left_out(tmp_path: Path) -> None:
    found = run_ranks(2, left_out, str(tmp_path), env=partial(launcher_env, "2x1"))
    frozen = sorted(f"layers.{i}.{name}" for i in range(FEATURES) for name in ("weight", "bias"))
    assert sorted(path for said in found for path in said["own layers"]) == [f"layers.{i}" for i in range(FEATURES)]
    for said in found:
        assert said["left out"] == sorted(said["kept"]) == said["missing in the file"] == frozen
