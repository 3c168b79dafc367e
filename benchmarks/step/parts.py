"""What a rank holds of the tables, and what became of it: comparable between any two ways to cut tables up.

1. A rank holds whole tables, or parts of them: a block of rows and columns each.
2. The change of a part is described by three numbers that add up over the parts of a table: its squared norm, its
   product with a random matrix (the same for everyone, a block of it for a part), and how many entries it has.
3. Two variants have trained a table alike if the sums over all ranks agree, and if each holds every entry once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """A block of a table.

    Attributes:
        values: ``(rows, columns)``: a view on what is trained.
        row: of the table, where it begins.
        column: of the table, where it begins.
        step: of the table, distance of its rows.
    """

    values: Tensor
    row: int = 0
    column: int = 0
    step: int = 1

    def block_of(self, table: Tensor) -> Tensor:
        """The same block of another table ``(all rows, all columns)``."""
        rows, columns = self.values.shape
        return table[self.row : self.row + rows * self.step : self.step, self.column : self.column + columns]


Held = Mapping[int, Tensor | Sequence[Part]]
"""By feature: the whole table, or parts of it."""


@dataclass(frozen=True)
class Change:
    """What became of a table, or of a part.

    Attributes:
        square: squared norm of the change.
        product: of the change with a random matrix.
        entries: how many entries.
    """

    square: float
    product: float
    entries: int

    def __add__(self, other: Change) -> Change:
        return Change(self.square + other.square, self.product + other.product, self.entries + other.entries)


def changes(held: Held, start: Sequence[Tensor]) -> dict[int, Change]:
    """What became of the tables of this rank.

    Args:
        held: as they are now.
        start: all tables as they were.
    """
    found = {}
    for feature, table in held.items():
        old = start[feature]
        direction = torch.randn(old.shape, generator=torch.Generator().manual_seed(feature))
        sums = Change(0.0, 0.0, 0)
        for part in [Part(table)] if isinstance(table, Tensor) else table:
            change = (part.values.detach() - part.block_of(old)).double()
            product = float((change * part.block_of(direction)).sum())
            sums += Change(float(change.square().sum()), product, change.numel())
        found[feature] = sums
    return found


def added(by_rank: Iterable[Mapping[int, Change]]) -> dict[int, Change]:
    """The changes of whole tables."""
    total: dict[int, Change] = {}
    for own in by_rank:
        for feature, change in own.items():
            total[feature] = total[feature] + change if feature in total else change
    return total


def distance(own: Change | None, expected: Change) -> float:
    """How far one change is from another, relative to the latter's norm; infinite where they cannot be compared."""
    if own is None or own.entries != expected.entries or not expected.square > 0 or not own.square > 0:
        return float("inf")
    norm, other = own.square**0.5, expected.square**0.5
    apart = max(abs(norm / other - 1), abs(own.product - expected.product) / other)
    return apart if apart == apart else float("inf")
