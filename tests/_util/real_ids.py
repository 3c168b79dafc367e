"""Ids distributed as those of real data sets, made from published cardinalities, and a model that looks them up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from benchmarks.step.ids import CARDINALITIES, EXPONENTS
from benchmarks.step.ids import draw as drawn
from examples.dlrm import TABLE_SIZES

FLIGHTS = tuple(TABLE_SIZES.values())
"""Rows of the 21 tables: two of them have nine tenths of all, and are asked for most of the rows of a step."""


def rows_of(kind: str, cap: int) -> tuple[int, ...]:
    """Rows of every table of ``"kaggle"`` (at most ``cap``) or ``"flights"``."""
    return FLIGHTS if kind == "flights" else tuple(min(rows, cap) for rows in CARDINALITIES)


def draw(kind: str, cap: int, samples: int, seed: int) -> Tensor:
    """``(samples, tables)`` ids, int64; the frequency of a row falls with its number by Zipf's law."""
    generator = torch.Generator().manual_seed(seed)
    if kind == "kaggle":
        return drawn("kaggle", len(EXPONENTS), 0, (samples, 1), generator) % torch.tensor(rows_of(kind, cap))
    columns = []
    for rows in FLIGHTS:
        exponent = 0.4 if rows > 1000 else 1.2
        frequency = torch.arange(1, rows + 1, dtype=torch.float64).pow(-exponent)
        columns.append(torch.multinomial(frequency, samples, replacement=True, generator=generator))
    return torch.stack(columns, 1)


class Lookups(nn.Module):
    """A table for every column of ids, and a layer over all rows.

    Args:
        rows: of each table.
        dim: entries of a row.
    """

    def __init__(self, rows: Sequence[int], dim: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, dim) for count in rows)
        self.top = nn.Linear(len(rows) * dim, 1)

    def forward(self, ids: Tensor) -> Tensor:
        """``(B, 1)`` from ids ``(B, tables)``."""
        found: Tensor = self.top(torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], 1))
        return found


def needed(ids: Tensor, hosts: int) -> Iterator[list[Tensor]]:
    """For every host the distinct ids of each column, of a step's samples in the order of the ranks."""
    for own in ids.chunk(hosts):
        yield [own[:, i].unique() for i in range(own.shape[1])]
