"""A small DLRM in plain PyTorch, as a user would write it: nothing in this file knows about towers or hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

# Rows of each embedding table of the flights data set (examples/flights.py), in the order of its columns.
TABLE_SIZES = {
    "tailnum": 3696,
    "flight": 4398,
    "carrier": 17,
    "origin": 4,
    "dest": 104,
    "route": 218,
    "carrier_dest": 280,
    "month": 13,
    "weekday": 8,
    "hour": 20,
    "origin_hour": 57,
    "departure": 76,
    "arrival": 89,
    "model": 116,
    "manufacturer": 36,
    "engine": 7,
    "built": 47,
    "seats": 46,
    "timezone": 8,
    "wind_dir": 38,
    "visibility": 21,
}
DENSE_FEATURES = 9


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers with a ReLU between them; `sizes` holds the widths, input first."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(sizes):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class DLRM(nn.Module):
    """Embeddings, a bottom MLP for the dense features, all pairwise dot products, a top MLP.

    Args:
        table_sizes: rows of each embedding table by its name, in the order of the columns of `sparse`.
        dense_features: number of dense features.
        width: width of every embedding.
        init_std: standard deviation of the initial embeddings.
    """

    pairs: Tensor

    def __init__(
        self, table_sizes: Mapping[str, int], dense_features: int, width: int = 16, init_std: float = 0.02
    ) -> None:
        super().__init__()
        self.tables = nn.ModuleDict()
        for name, rows in table_sizes.items():
            table = nn.Embedding(rows, width)
            nn.init.normal_(table.weight, std=init_std)
            self.tables[name] = table
        self.bottom = mlp([dense_features, 64, width])
        vectors = len(table_sizes) + 1
        self.register_buffer("pairs", torch.tril_indices(vectors, vectors, offset=-1), persistent=False)
        self.top = mlp([width + vectors * (vectors - 1) // 2, 64, 1])

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        """Logits `(B,)` of the dense features `(B, dense_features)` and the ids `(B, tables)`, int64."""
        x = self.bottom(dense)
        embedded = [table(sparse[:, column]) for column, table in enumerate(self.tables.values())]
        vectors = torch.stack([x, *embedded], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))
        interactions = products[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([x, interactions], dim=1)).squeeze(1)


def build() -> DLRM:
    """The model for the flights data set, initialised from torch's current seed."""
    return DLRM(TABLE_SIZES, DENSE_FEATURES)


def example_batch(n: int = 8) -> tuple[Tensor, Tensor]:
    """A batch of `n` made-up samples with the shapes and the id ranges of the real ones: `(dense, sparse)`."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(n, DENSE_FEATURES, generator=generator)
    columns = [torch.randint(rows, (n,), generator=generator) for rows in TABLE_SIZES.values()]
    return dense, torch.stack(columns, dim=1)
