"""Flat models without weights, to plan for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.planning import candidates

DENSE = 13


class Dots(nn.Module):
    """Dot products of features and a bottom MLP, and layers behind them: a DLRM."""

    def __init__(self, features: int = 8, width: int = 16, rows: int = 1000, hidden: int = 64) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, width, mode="sum") for _ in range(features))
        self.bottom = nn.Sequential(nn.Linear(DENSE, hidden), nn.ReLU(), nn.Linear(hidden, width), nn.ReLU())
        pairs = [(i, j) for i in range(features + 1) for j in range(i)]
        self.first, self.second = [i for i, _ in pairs], [j for _, j in pairs]
        self.top = nn.Sequential(nn.Linear(len(pairs) + width, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        own = self.bottom(dense)
        rows = [table(ids[:, f : f + 1]) for f, table in enumerate(self.tables)]
        stacked = torch.stack([own, *rows], dim=1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))
        return self.top(torch.cat([own, products[:, self.first, self.second]], dim=1))


def dots(features: int = 8, width: int = 16, rows: int = 1000, hidden: int = 64) -> nn.Module:
    """Such a model on the meta device."""
    with torch.device("meta"):
        return Dots(features, width, rows, hidden)


def batch(features: int = 8, samples: int = 4) -> tuple[Tensor, Tensor]:
    """One call of it."""
    return torch.zeros(samples, DENSE), torch.arange(samples * features).reshape(samples, features)


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer choices for each variant."""
    for name, kept in {"PEER_FORMATS": ("fp32", "bf16"), "LANE_FORMATS": ("fp32",), "STAGES": (0, 1)}.items():
        monkeypatch.setattr(candidates, name, kept)
    monkeypatch.setattr(candidates, "BLOCKS", (1, 2))


def build() -> nn.Module:
    """For a command line."""
    return dots()


def example_batch() -> tuple[Tensor, Tensor]:
    """For a command line."""
    return batch()


def batches() -> list[tuple[Tensor, Tensor]]:
    """Ids of which half are distinct in a batch of a rank."""
    ids = torch.arange(64).repeat_interleave(2).unsqueeze(1).expand(-1, 8)
    return [(torch.zeros(128, DENSE), ids.contiguous())] * 8
