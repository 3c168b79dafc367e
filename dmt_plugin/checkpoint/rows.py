"""Rows of stored tensors, read into place in blocks of bounded size: bytes in a file, several such parts, or memory.

A tensor is a matrix here: a table's rows, or a vector as one column.

1. A range of rows is read as it lies in the file, :data:`BLOCK_BYTES` at a time, and the wanted columns are copied from
   there to where they belong; the copy converts numbers of another precision.
2. Rows by number, or with a step, are sorted first: neighbours, and what is no more than a page apart, are one read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol, TypeGuard

import torch
from torch import Tensor

from dmt_plugin.core.errors import CheckpointError

#: Bytes that are read, or written, at once.
BLOCK_BYTES = 1 << 22
_PAGE = 1 << 12


class Rows(Protocol):
    """A stored matrix."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def dtype(self) -> torch.dtype:
        """As it is stored."""

    def fill(self, rows: range | Tensor, columns: range, out: Tensor) -> None:
        """Writes some rows and columns into ``out``.

        Args:
            rows: numbers of rows, a range with any step or a vector of int64.
            columns: a range with step 1.
            out: ``(len(rows), len(columns))``, with any strides, on any device; its type is kept.

        Raises:
            CheckpointError: it cannot be read.
            IndexError: there are no such rows or columns.
        """


@dataclass(frozen=True)
class RawRows:
    """Bytes in a file, row by row.

    Attributes:
        path: the file.
        offset: of the first row in it, in bytes.
        dtype: of the entries.
        shape: rows and columns.
    """

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, int]

    @torch.no_grad()
    def fill(self, rows: range | Tensor, columns: range, out: Tensor) -> None:
        """See :meth:`Rows.fill`."""
        _check(self.shape, rows, columns, out)
        width = self.shape[1] * self.dtype.itemsize
        if out.numel() == 0:
            return
        chosen = slice(columns.start, columns.stop)
        try:
            with self.path.open("rb", buffering=0) as stream:
                if _is_plain(rows):
                    limit = max(1, BLOCK_BYTES // width)
                    raw = torch.empty(min(limit, len(rows)) * width, dtype=torch.uint8)
                    for first, count in _blocks(len(rows), limit):
                        block = self._read(stream, [(rows.start + first, count)], raw[: count * width])
                        out[first : first + count].copy_(block[:, chosen])
                    return
                # No more than `gap` rows are read for each that is wanted, so that a block is never too long.
                gap = max(1, _PAGE // width)
                for first, ids in _numbers(rows, max(1, BLOCK_BYTES // (width * gap))):
                    numbers, order = ids.sort()
                    ends = torch.cat([(numbers.diff() > gap).nonzero()[:, 0] + 1, torch.tensor([len(numbers)])])
                    starts = torch.cat([torch.tensor([0]), ends[:-1]])
                    lengths = numbers[ends - 1] - numbers[starts] + 1
                    places = lengths.cumsum(0) - lengths - numbers[starts]
                    runs = list(zip(numbers[starts].tolist(), lengths.tolist(), strict=True))
                    raw = torch.empty(int(lengths.sum()) * width, dtype=torch.uint8)
                    block = self._read(stream, runs, raw)
                    found = block[numbers + places.repeat_interleave(ends - starts)][:, chosen]
                    out.index_copy_(0, (order + first).to(out.device), found.to(out.device, out.dtype))
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}") from error

    def _read(self, stream: IO[bytes], runs: Sequence[tuple[int, int]], raw: Tensor) -> Tensor:
        """Rows in the memory of ``raw``: those of some ranges, each given by its first row and its length."""
        width = self.shape[1] * self.dtype.itemsize
        view, begin = raw.numpy().data, 0
        for row, count in runs:
            end, place = begin + count * width, self.offset + row * width
            while begin < end:
                got = os.preadv(stream.fileno(), [view[begin:end]], place)
                if not got:
                    raise CheckpointError(f"{self.path} was cut off: it ends within a tensor, before byte {place}")
                begin, place = begin + got, place + got
        return raw.view(self.dtype).view(-1, self.shape[1])


@dataclass(frozen=True)
class TensorRows:
    """A tensor of two dimensions that is in memory, or mapped there from a file."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """See :class:`Rows`."""
        return self.tensor.shape[0], self.tensor.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """See :class:`Rows`."""
        return self.tensor.dtype

    @torch.no_grad()
    def fill(self, rows: range | Tensor, columns: range, out: Tensor) -> None:
        """See :meth:`Rows.fill`."""
        _check(self.shape, rows, columns, out)
        source = self.tensor.detach()[:, columns.start : columns.stop]
        limit = max(1, BLOCK_BYTES // max(1, len(columns) * self.dtype.itemsize))
        if _is_plain(rows):
            for first, count in _blocks(len(rows), limit):
                out[first : first + count].copy_(source[rows.start + first : rows.start + first + count])
            return
        for first, ids in _numbers(rows, limit):
            out[first : first + len(ids)].copy_(source[ids.to(source.device)])


class Part(Protocol):
    """A rectangle of a matrix that is stored in parts; its place is that of its first row and column."""

    place: tuple[int, int]
    shape: tuple[int, int]

    @property
    def rows(self) -> Rows:
        """What is stored there; asked for when it is read."""


class PartRows:
    """A matrix in parts.

    Args:
        shape: of the whole.
        dtype: of the whole.
        parts: they cover the whole.
    """

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, parts: Sequence[Part]) -> None:
        self.shape, self.dtype = shape, dtype
        self._parts = parts

    @property
    def stored(self) -> int:
        """Entries of all parts."""
        return sum(part.shape[0] * part.shape[1] for part in self._parts)

    @cached_property
    def _bounds(self) -> tuple[Tensor, Tensor]:
        return torch.tensor([p.place[0] for p in self._parts]), torch.tensor(
            [p.place[0] + p.shape[0] for p in self._parts]
        )

    def _touched(self, low: int, high: int, columns: range) -> Iterator[tuple[Part, range, slice]]:
        """The parts with rows between ``low`` and ``high``: which of their columns are wanted, and where these go."""
        firsts, ends = self._bounds
        for index in ((firsts < high) & (ends > low)).nonzero()[:, 0].tolist():
            part = self._parts[index]
            left = part.place[1]
            begin, end = max(left, columns.start), min(left + part.shape[1], columns.stop)
            if begin < end:
                yield part, range(begin - left, end - left), slice(begin - columns.start, end - columns.start)

    @torch.no_grad()
    def fill(self, rows: range | Tensor, columns: range, out: Tensor) -> None:
        """See :meth:`Rows.fill`."""
        _check(self.shape, rows, columns, out)
        if out.numel() == 0:
            return
        if _is_plain(rows):
            for part, wanted, where in self._touched(rows.start, rows.stop, columns):
                top = part.place[0]
                begin, end = max(top, rows.start), min(top + part.shape[0], rows.stop)
                target = out[begin - rows.start : end - rows.start, where]
                part.rows.fill(range(begin - top, end - top), wanted, target)
            return
        width = len(columns) * self.dtype.itemsize
        for first, ids in _numbers(rows, max(1, BLOCK_BYTES // max(width, 64))):
            for part, wanted, where in self._touched(int(ids.min()), int(ids.max()) + 1, columns):
                top = part.place[0]
                mine = ((ids >= top) & (ids < top + part.shape[0])).nonzero()[:, 0]
                if len(mine) == 0:
                    continue
                found = torch.empty(len(mine), len(wanted), dtype=self.dtype)
                part.rows.fill(ids[mine] - top, wanted, found)
                out[:, where].index_copy_(0, (mine + first).to(out.device), found.to(out.device, out.dtype))


@dataclass(frozen=True)
class Reshaped:
    """A matrix that is stored as one column, row by row.

    Attributes:
        column: the column.
        shape: of the matrix.
    """

    column: Rows
    shape: tuple[int, int]

    @property
    def dtype(self) -> torch.dtype:
        """See :class:`Rows`."""
        return self.column.dtype

    @torch.no_grad()
    def fill(self, rows: range | Tensor, columns: range, out: Tensor) -> None:
        """See :meth:`Rows.fill`."""
        _check(self.shape, rows, columns, out)
        width = self.shape[1]
        if out.numel() == 0:
            return
        for first, ids in _numbers(rows, max(1, BLOCK_BYTES // (16 * width))):
            wanted: range | Tensor = (ids[:, None] * width + torch.arange(width)).view(-1)
            if _is_plain(rows):
                wanted = range(int(ids[0]) * width, (int(ids[-1]) + 1) * width)
            block = torch.empty(len(ids) * width, 1, dtype=self.dtype)
            self.column.fill(wanted, range(1), block)
            out[first : first + len(ids)].copy_(block.view(len(ids), width)[:, columns.start : columns.stop])


def as_matrix(tensor: Tensor) -> Tensor:
    """A view of a vector as one column; a matrix as it is."""
    return tensor.unsqueeze(1) if tensor.dim() == 1 else tensor


def row_blocks(rows: Rows, limit: int = BLOCK_BYTES, dtype: torch.dtype | None = None) -> Iterator[tuple[int, Tensor]]:
    """The whole matrix in blocks of rows: number of the first, and the block; one is overwritten by the next.

    Args:
        rows: the matrix.
        limit: bytes of a block.
        dtype: of the blocks; default: as it is stored.
    """
    count, width = rows.shape
    dtype = rows.dtype if dtype is None else dtype
    step = max(1, limit // max(1, width * dtype.itemsize))
    block = torch.empty(min(step, count), width, dtype=dtype)
    for first, length in _blocks(count, step):
        rows.fill(range(first, first + length), range(width), block[:length])
        yield first, block[:length]


def _is_plain(rows: range | Tensor) -> TypeGuard[range]:
    return isinstance(rows, range) and rows.step == 1


def _blocks(total: int, limit: int) -> Iterator[tuple[int, int]]:
    for first in range(0, total, limit):
        yield first, min(limit, total - first)


def _numbers(rows: range | Tensor, limit: int) -> Iterator[tuple[int, Tensor]]:
    """Blocks of numbers of rows, each behind the place of its first."""
    for first, count in _blocks(len(rows), limit):
        part = rows[first : first + count]
        yield first, part.cpu() if isinstance(part, Tensor) else torch.arange(part.start, part.stop, part.step)


def _check(shape: tuple[int, int], rows: range | Tensor, columns: range, out: Tensor) -> None:
    if out.shape != (len(rows), len(columns)):
        raise IndexError(f"out has the shape {tuple(out.shape)} for {len(rows)} rows and {len(columns)} columns")
    if not len(rows) or not len(columns):
        return
    low, high = int(_low(rows)), int(_high(rows))
    if low < 0 or high >= shape[0]:
        raise IndexError(f"rows {low} to {high} were asked for of a tensor of {shape[0]} rows")
    if columns.step != 1 or columns.start < 0 or columns.stop > shape[1]:
        raise IndexError(f"columns {columns} were asked for of a tensor of {shape[1]} columns")


def _low(rows: range | Tensor) -> Any:
    """Smallest number of a range, or vector, that is not empty."""
    return rows.min() if isinstance(rows, Tensor) else min(rows[0], rows[-1])


def _high(rows: range | Tensor) -> Any:
    """Largest number of a range, or vector, that is not empty."""
    return rows.max() if isinstance(rows, Tensor) else max(rows[0], rows[-1])
