"""Where the rows of one parameter come from: it has them, a rule or a function makes them.

A source is asked for any rows and columns of the parameter and writes them in place, in blocks of bounded size. It
gives the same values whoever asks: one process for all of them, or many ranks for their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from dmt_plugin.core.counter_hash import key_of
from dmt_plugin.core.errors import TableInitError
from dmt_plugin.tables.rules import Rows, TableRule

TableInit = Callable[[str, int, tuple[int, int], Generator], Tensor]
"""A user's ``(name, first_row, shape, generator)``, which returns rows ``first_row``, ... as a tensor of that shape."""

BLOCK_ENTRIES = 1 << 20
"""Entries that are copied, or that a user's function makes, at a time."""


class RowSource(Protocol):
    """Starting rows of one parameter that holds tables."""

    def fill(self, rows: Rows, columns: range, out: Tensor) -> None:
        """Write rows.

        Args:
            rows: row numbers of the parameter: a range, or a vector of int64.
            columns: neighbouring ones.
            out: ``(number of rows, number of columns)``, any strides and device.
        """

    def __str__(self) -> str:
        """In a few words, for people."""


@dataclass(frozen=True)
class ValuesSource:
    """Rows that are there.

    Attributes:
        values: ``(rows, dim)``.
    """

    values: Tensor

    def fill(self, rows: Rows, columns: range, out: Tensor) -> None:
        """See :class:`RowSource`."""
        step = max(1, BLOCK_ENTRIES // max(len(columns), 1))
        for at in range(0, len(rows), step):
            some = rows[at : at + step]
            part = self.values[some.start : some.stop : some.step] if isinstance(some, range) else self.values[some]
            out[at : at + step].copy_(part[:, columns.start : columns.stop])

    def __str__(self) -> str:
        return "the model's own values"


@dataclass(frozen=True)
class RuleSource:
    """Rows that a rule makes.

    Attributes:
        rule: the rule.
        seed: of its random numbers.
        name: of the parameter.
    """

    rule: TableRule
    seed: int
    name: str

    def fill(self, rows: Rows, columns: range, out: Tensor) -> None:
        """See :class:`RowSource`."""
        self.rule.write(self.seed, self.name, rows, columns, out)

    def __str__(self) -> str:
        return str(self.rule)


@dataclass(frozen=True)
class CallableSource:
    """Rows that a function of the user's makes, in fixed blocks, so that it gives the same to everybody.

    Attributes:
        function: see :data:`TableInit`.
        seed: with the name and the block, that of its generator.
        name: of the parameter.
        shape: of the whole parameter.
    """

    function: TableInit
    seed: int
    name: str
    shape: tuple[int, int]

    def fill(self, rows: Rows, columns: range, out: Tensor) -> None:
        """See :class:`RowSource`.

        Raises:
            TableInitError: the function gave something else than it was asked for.
        """
        height = max(1, min(4096, BLOCK_ENTRIES // max(self.shape[1], 1)))
        if isinstance(rows, range) and rows.step == 1:
            for block in range(rows.start // height, -(-rows.stop // height)):
                first, made = block * height, self._make(block * height, height)
                begin, end = max(rows.start, first), min(rows.stop, first + height)
                part = made[begin - first : end - first, columns.start : columns.stop]
                out[begin - rows.start : end - rows.start].copy_(part)
            return
        numbers = torch.tensor(rows) if isinstance(rows, range) else rows.cpu()
        for block in (numbers // height).unique().tolist():
            places = (numbers // height == block).nonzero().squeeze(1)
            made = self._make(block * height, height)[numbers[places] - block * height]
            out[places.to(out.device)] = made[:, columns.start : columns.stop].to(out.device, out.dtype)

    def _make(self, first: int, height: int) -> Tensor:
        shape = (min(height, self.shape[0] - first), self.shape[1])
        generator = Generator().manual_seed(key_of(self.seed, self.name, first) % 2**63)
        made = self.function(self.name, first, shape, generator)
        found = f"{tuple(made.shape)} {made.dtype}" if isinstance(made, Tensor) else f"a {type(made).__name__}"
        if not isinstance(made, Tensor) or tuple(made.shape) != shape or not made.is_floating_point() or made.is_meta:
            raise TableInitError(
                f"table_init({self.name!r}, {first}, {shape}, generator) returned {found}; expected a tensor of shape "
                f"{shape}, of floating-point numbers, with values"
            )
        return made.detach()

    def __str__(self) -> str:
        named = getattr(self.function, "__qualname__", type(self.function).__name__)
        return f"{getattr(self.function, '__module__', '')}.{named}"
