"""The flat model and its batches, the same for every variant, from seeds.

A DLRM: pooled lookups of one id, or of a bag of them, an MLP over the dense features, the dot product of every pair,
an MLP on top. The layers behind the lookups are written once (``Dense``), so that variants differ in how the rows get
there and in nothing else.

This project rewrites the dot products of the flat model into a form that is faster backwards (its ``faster_dot`` pass).
Libraries that take a model as it is get the same form by hand (``FastDense``): everyone does the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.step.ids import draw
from benchmarks.step.setting import Setting
from dmt_plugin.nn.pair_products import pair_of, pair_products

BATCHES = 4
"""Steps until the same batches come again."""


class Batch(NamedTuple):
    """One rank's samples.

    Attributes:
        dense: ``(B, dense)`` float32.
        ids: ``(B, F * K)`` int64, the ``K`` ids of a feature's bag side by side.
        labels: ``(B,)`` 0 or 1.
    """

    dense: Tensor
    ids: Tensor
    labels: Tensor


def make_batch(setting: Setting, step: int, rank: int) -> Batch:
    """The batch of one rank in one step."""
    generator = torch.Generator().manual_seed(1_000 * step + rank)
    dense = torch.randn(setting.batch, setting.dense, generator=generator)
    ids = draw(setting.ids, setting.features, setting.rows, (setting.batch, setting.bag), generator)
    labels = (torch.rand(setting.batch, generator=generator) < torch.sigmoid(dense.sum(1) / 2)).float()
    return Batch(dense, ids, labels)


class Dense(nn.Module):
    """Everything but the lookups.

    Args:
        setting: what is measured.
        width: of what comes from the lookups; by default that of the tables.
    """

    pairs: Tensor

    def __init__(self, setting: Setting, width: int | None = None) -> None:
        super().__init__()
        vectors, width = setting.features + 1, width or setting.width
        self.bottom = nn.Sequential(nn.Linear(setting.dense, 64), nn.ReLU(), nn.Linear(64, width), nn.ReLU())
        self.register_buffer("pairs", torch.tril_indices(vectors, vectors, offset=-1), persistent=False)
        pairs = vectors * (vectors - 1) // 2
        self.over = nn.Sequential(
            nn.Linear(width + pairs, setting.top),
            nn.ReLU(),
            nn.Linear(setting.top, setting.top // 2),
            nn.ReLU(),
            nn.Linear(setting.top // 2, 1),
        )

    def forward(self, dense: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """Logits ``(B,)`` of dense features ``(B, dense)`` and one ``(B, N)`` per feature."""
        x = self.bottom(dense)
        products = self.products(torch.stack([x, *rows], dim=1))
        return self.over(torch.cat([x, products], dim=1)).squeeze(1)

    def products(self, vectors: Tensor) -> Tensor:
        """Of every pair of the vectors ``(B, V, N)``, as users write it: ``(B, V * (V - 1) / 2)``."""
        return torch.bmm(vectors, vectors.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]


class FastDense(Dense):
    """The same, with the dot products in the form that this project's pass gives them: for the peers."""

    source: Tensor

    def __init__(self, setting: Setting, width: int | None = None) -> None:
        super().__init__(setting, width)
        self.register_buffer("source", pair_of(*self.pairs, setting.features + 1), persistent=False)

    def products(self, vectors: Tensor) -> Tensor:
        """Of every pair: the same numbers, with half the arithmetic in the backward pass."""
        return pair_products(vectors, self.pairs[0], self.pairs[1], vectors.shape[1], self.source)


class FlatModel(nn.Module):
    """The model as its user writes it."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        # Without the library's own start, which takes as long as ours and is made for every variant on every rank.
        self.tables = nn.ModuleList(
            nn.utils.skip_init(nn.EmbeddingBag, setting.rows_of(feature), setting.width, mode="sum")
            for feature in range(setting.features)
        )
        self.dense = Dense(setting)
        self.bag = setting.bag

    def weights(self) -> list[Tensor]:
        """Tables ``(rows, N)``, by feature."""
        return [table.get_parameter("weight").detach() for table in self.tables]

    def table_names(self) -> list[str]:
        """Qualified names of the tables, by feature."""
        return [f"tables.{feature}" for feature in range(len(self.tables))]

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """Logits ``(B,)``."""
        bag = self.bag
        return self.dense(dense, [table(ids[:, i * bag : (i + 1) * bag]) for i, table in enumerate(self.tables)])


def make_model(setting: Setting) -> FlatModel:
    """The flat model with the weights that every variant starts from.

    Tables are large enough for their products to matter: a table that is another one shows in the first loss.
    """
    torch.manual_seed(0)
    model = FlatModel(setting)
    for table in model.weights():
        nn.init.uniform_(table, -0.5, 0.5)
    return model


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the rank's samples."""
    return nn.functional.binary_cross_entropy_with_logits(logits, labels)
