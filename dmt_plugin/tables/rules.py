"""A table's rule: what its rows are before they are trained, for any rows and columns of it.

1. A rule is a list of steps, each on a rectangle of the table: a fill (normal, uniform, one number, a row of numbers)
   or arithmetic of every entry with numbers. The zero row of a padding id, or ``trunc_normal_``, needs nothing of its
   own. A fill of the whole table makes a new beginning.
2. :meth:`TableRule.write` makes the rows that are asked for, block by block. All arithmetic runs on buffers of one
   length (:mod:`.counter`), so that an entry has the same bits whatever rows and columns it is made with.
3. A rule is plain data: it is compared between ranks, and says in a line what it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmt_plugin.core.counter_hash import key_of
from dmt_plugin.tables.counter import ENTRIES, Block

Rows = range | Tensor
"""Row numbers of a parameter: a range, or a vector of int64."""

FILLS = ("normal", "uniform", "constant", "row")

ARITHMETIC: Mapping[str, Callable[..., Tensor]] = {
    "add": torch.Tensor.add_, "sub": torch.Tensor.sub_, "mul": torch.Tensor.mul_, "div": torch.Tensor.div_,
    "clamp_min": torch.Tensor.clamp_min_, "clamp_max": torch.Tensor.clamp_max_, "neg": torch.Tensor.neg_,
    "abs": torch.Tensor.abs_, "erfinv": torch.Tensor.erfinv_, "exp": torch.Tensor.exp_, "log": torch.Tensor.log_,
    "sqrt": torch.Tensor.sqrt_, "square": torch.Tensor.square_, "tanh": torch.Tensor.tanh_,
}  # fmt: skip
"""What can be done to every entry, by name; with the numbers of a step as arguments."""


@dataclass(frozen=True)
class Rectangle:
    """Rows ``first_row``, ``first_row + step``, ... below ``end_row``, and columns, of a table."""

    first_row: int
    end_row: int
    step: int
    first_column: int
    end_column: int

    @classmethod
    def whole(cls, rows: int, dim: int) -> Rectangle:
        """All of a table."""
        return cls(0, rows, 1, 0, dim)

    @property
    def span(self) -> range:
        """Its rows."""
        return range(self.first_row, self.end_row, self.step)


@dataclass(frozen=True)
class Step:
    """One fill, or one piece of arithmetic.

    Attributes:
        what: one of ``FILLS``, or a key of ``ARITHMETIC``.
        numbers: mean and standard deviation; bounds; the number; the row; the arguments.
        where: the part of the table.
    """

    what: str
    numbers: tuple[float, ...]
    where: Rectangle

    def __str__(self) -> str:
        shown = ", ".join(f"{number:g}" for number in self.numbers[:4]) + (", ..." if len(self.numbers) > 4 else "")
        return f"{self.what}({shown})"


@dataclass(frozen=True)
class TableRule:
    """How the rows of a table are made.

    Attributes:
        rows: of the table.
        dim: its columns.
        steps: one after the other; the first is a fill of the whole table.
    """

    rows: int
    dim: int
    steps: tuple[Step, ...]

    def __str__(self) -> str:
        whole = Rectangle.whole(self.rows, self.dim)
        said = []
        for step in self.steps:
            place = step.where
            rows = f"row {place.first_row}" if len(place.span) == 1 else f"rows {place.first_row}:{place.end_row}"
            said.append(str(step) if place == whole else f"{step} in {rows}")
        return ", ".join(said)

    @property
    def complete(self) -> bool:
        """Whether every entry gets a value."""
        first = self.steps[0] if self.steps else None
        return first is not None and first.what in FILLS and first.where == Rectangle.whole(self.rows, self.dim)

    def then(self, step: Step) -> TableRule:
        """This rule and one more step; a fill of the whole table makes what came before of no account."""
        afresh = step.what in FILLS and step.where == Rectangle.whole(self.rows, self.dim)
        return dataclasses.replace(self, steps=(step,) if afresh else (*self.steps, step))

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        steps = [
            {"what": s.what, "numbers": list(s.numbers), "where": list(dataclasses.astuple(s.where))}
            for s in self.steps
        ]
        return {"rows": self.rows, "dim": self.dim, "steps": steps}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TableRule:
        """Reads what :meth:`to_dict` gave."""
        steps = tuple(Step(s["what"], tuple(s["numbers"]), Rectangle(*s["where"])) for s in data["steps"])
        return cls(data["rows"], data["dim"], steps)

    def write(self, seed: int, name: str, rows: Rows, columns: range, out: Tensor) -> None:
        """Make rows of the table.

        Args:
            seed: of the random numbers.
            name: of the parameter.
            rows: their numbers.
            columns: neighbouring ones.
            out: ``(number of rows, number of columns)``, any strides, device and floating type.
        """
        keys = [key_of(seed, name, number) for number in range(len(self.steps))]
        block, buffer, other = Block(), torch.zeros(ENTRIES), torch.zeros(ENTRIES)
        for own, first, last, place in _blocks(rows, columns, self.dim, block):
            for key, step in zip(keys, self.steps, strict=True):
                self._apply(step, key, own, first, block, buffer, other)
            made = buffer[: block.rows * block.width].view(block.rows, block.width)
            begin, end = max(first, columns.start), min(last, columns.stop)
            row, column = place
            target = out[row : row + len(own), column : column + end - begin]
            target.copy_(made[:, begin - first : end - first])

    def _apply(
        self, step: Step, key: int, rows: Tensor, first: int, block: Block, buffer: Tensor, other: Tensor
    ) -> None:
        """One step on a block, in place."""
        if step.where == Rectangle.whole(self.rows, self.dim):
            _compute(step, key, first, block, buffer)
            return
        span, width = step.where.span, block.width
        inside = (rows >= span.start) & (rows < span.stop) & ((rows - span.start) % span.step == 0)
        low, high = max(step.where.first_column - first, 0), min(step.where.end_column - first, width)
        if low >= high or not bool(inside.any()):
            return
        other.copy_(buffer)
        _compute(step, key, first, block, other)
        shape = (block.rows, width)
        target, source = (x[: block.rows * width].view(shape) for x in (buffer, other))
        target[inside, low:high] = source[inside, low:high]


def _compute(step: Step, key: int, first: int, block: Block, out: Tensor) -> None:
    """A step on all entries of a buffer; ``first`` is the column that a row of the block begins with."""
    if step.what == "normal":
        mean, deviation = step.numbers
        block.normal(key, out)
        out.mul_(deviation).add_(mean)
    elif step.what == "uniform":
        low, high = step.numbers
        block.uniform(key, out)
        out.mul_(high - low).add_(low)
    elif step.what == "constant":
        out.fill_(step.numbers[0])
    elif step.what == "row":
        begin = step.where.first_column
        values = torch.zeros(block.width)
        for column, value in enumerate(step.numbers, begin - first):
            if 0 <= column < block.width:
                values[column] = value
        out[: block.rows * block.width].view(block.rows, block.width).copy_(values)
    else:
        ARITHMETIC[step.what](out, *step.numbers)


def _blocks(rows: Rows, columns: range, dim: int, block: Block) -> Iterator[tuple[Tensor, int, int, tuple[int, int]]]:
    """Cut rows and columns into blocks of whole pairs, and place each.

    Yields:
        Row numbers, first column and end column of the block, and where its rows and columns begin in the request.
    """
    first, end = columns.start // 2, (columns.stop + 1) // 2
    for pair in range(first, end, ENTRIES // 2):
        pairs = min(end - pair, ENTRIES // 2)
        step = max(1, ENTRIES // 2 // pairs)
        for at in range(0, len(rows), step):
            some = rows[at : at + step]
            own = torch.arange(some.start, some.stop, some.step) if isinstance(some, range) else some.cpu()
            block.place(own, pair, pairs, (dim + 1) // 2)
            yield own, 2 * pair, 2 * (pair + pairs), (at, max(2 * pair, columns.start) - columns.start)
