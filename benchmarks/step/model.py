"""The flat model and its batches, the same for every variant, from seeds.

A DLRM: pooled one-hot lookups, an MLP over the dense features, the dot product of every pair, an MLP on top. The layers
behind the lookups are written once (``Dense``), so that variants differ in how the rows get there and in nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.step.setting import Setting


class Batch(NamedTuple):
    """One rank's samples.

    Attributes:
        dense: ``(B, dense)`` float32.
        ids: ``(B, F)`` int64.
        labels: ``(B,)`` 0 or 1.
    """

    dense: Tensor
    ids: Tensor
    labels: Tensor


def make_batch(setting: Setting, step: int, rank: int) -> Batch:
    """The batch of one rank in one step."""
    generator = torch.Generator().manual_seed(1_000 * step + rank)
    dense = torch.randn(setting.batch, setting.dense, generator=generator)
    ids = torch.randint(0, setting.rows, (setting.batch, setting.features), generator=generator)
    labels = (torch.rand(setting.batch, generator=generator) < torch.sigmoid(dense.sum(1) / 2)).float()
    return Batch(dense, ids, labels)


class Dense(nn.Module):
    """Everything but the lookups."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        vectors = setting.features + 1
        self.bottom = nn.Sequential(
            nn.Linear(setting.dense, 64), nn.ReLU(), nn.Linear(64, setting.width), nn.ReLU()
        )
        self.register_buffer("pairs", torch.tril_indices(vectors, vectors, offset=-1), persistent=False)
        pairs = vectors * (vectors - 1) // 2
        self.over = nn.Sequential(
            nn.Linear(setting.width + pairs, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, dense: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """Logits ``(B,)`` of dense features ``(B, dense)`` and one ``(B, N)`` per feature."""
        x = self.bottom(dense)
        vectors = torch.stack([x, *rows], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.over(torch.cat([x, products], dim=1)).squeeze(1)


class FlatModel(nn.Module):
    """The model as its user writes it."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(setting.rows, setting.width, mode="sum") for _ in range(setting.features)
        )
        self.dense = Dense(setting)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Logits ``(B,)``."""
        return self.dense(dense, [table(ids[:, i : i + 1]) for i, table in enumerate(self.tables)])


def make_model(setting: Setting) -> FlatModel:
    """The flat model with the weights that every variant starts from.

    Tables are large enough for their products to matter: a table that is another one shows in the first loss.
    """
    torch.manual_seed(0)
    model = FlatModel(setting)
    for table in model.tables:
        assert isinstance(table, nn.EmbeddingBag)
        nn.init.uniform_(table.weight, -0.5, 0.5)
    return model


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the rank's samples."""
    return nn.functional.binary_cross_entropy_with_logits(logits, labels)
