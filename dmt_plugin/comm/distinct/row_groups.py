"""Groups of tables whose distinct rows travel together, and the numbers by which ranks ask for them.

1. The tables of a group have one width and one update rule. What a rank holds of them lies one below the other: the
   rank's *stack*. A row of a table has one owner, and one place in the stack of that owner.
2. The *code* of a row is ``position of its owner * span + place in the owner's stack``, where no stack is longer than
   ``span``. On the hierarchical route owners are numbered lane by lane and inside a lane host by host, on the flat
   route by rank. Sorted codes therefore lie owner by owner, and what goes to one rank is a contiguous slice.
3. Codes are int32 wherever the largest fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from dmt_plugin.comm.distinct.first_use import FirstUses, all_uses, first_uses
from dmt_plugin.topology.shape import Topology

Route = Literal["hierarchical", "flat"]


@dataclass(frozen=True)
class RowPart:
    """Rows of one table that one rank holds.

    Attributes:
        rank: the owner.
        first_row: number of the first row in the table.
        step: distance of neighbours: row ``i`` of the part is row ``first_row + i * step`` of the table.
        rows: number of rows.
        base: place of its first row in the owner's stack.
    """

    rank: int
    first_row: int
    step: int
    rows: int
    base: int


@dataclass(frozen=True)
class GroupTable:
    """A table, or a range of its columns, in a group.

    Attributes:
        name: unique in the group.
        rows: valid ids are ``0 .. rows - 1``.
        parts: its rows by owner, each row in one of them.
    """

    name: str
    rows: int
    parts: tuple[RowPart, ...]


@dataclass(frozen=True)
class Read:
    """One lookup in a table of a group.

    Attributes:
        slot: index of the id stream.
        table: index of the table in the group.
        pooling: ``"sum"`` or ``"mean"`` of a bag; ``"none"`` for a vector per id.
        weighted: the ids have weights.
        padding: with ``"none"``, the id whose vector is zero and takes no gradient.
        by_id: of the ids it is not known which are of which sample (with ``"none"``).
    """

    slot: int
    table: int
    pooling: str = "sum"
    weighted: bool = False
    padding: int | None = None
    by_id: bool = False


@dataclass(frozen=True)
class RowGroup:
    """Tables whose rows travel together.

    Attributes:
        name: prefix of its exchanges.
        width: entries of a row.
        tables: the tables.
        reads: the lookups in them.
        trained: whether gradients come back; not for frozen tables.
        once: whether a row travels once, however many ids of a host (on the flat route: a rank) need it; else it
            travels for each of them.
    """

    name: str
    width: int
    tables: tuple[GroupTable, ...]
    reads: tuple[Read, ...]
    trained: bool = True
    once: bool = True

    def uses(self, needed: Sequence[Tensor]) -> FirstUses:
        """The codes to ask for, by block, from those that each block needs."""
        return first_uses(needed) if self.once else all_uses(needed)

    @cached_property
    def stacks(self) -> dict[int, int]:
        """Rows of the group by rank, of the ranks that hold any."""
        found: dict[int, int] = {}
        for table in self.tables:
            for part in table.parts:
                found[part.rank] = found.get(part.rank, 0) + part.rows
        return found

    def stack_rows(self, rank: int) -> int:
        """Rows that a rank holds of the group."""
        return sum(part.rows for table in self.tables for part in table.parts if part.rank == rank)


class RowCodes:
    """Turns ids into codes, and codes into places of a stack.

    Args:
        group: the tables.
        topology: hosts and lanes.
        route: which order of owners.
        rank: this rank.
    """

    def __init__(self, group: RowGroup, topology: Topology, route: Route, rank: int) -> None:
        self.group = group
        world = range(topology.world_size)
        self.span = max([group.stack_rows(rank) for rank in world] + [1])
        self.dtype = torch.int32 if len(world) * self.span < 2**31 else torch.int64
        machines = topology.by_machine
        self._position = {
            rank: machines.lane_of(rank) * machines.hosts + machines.host_of(rank) if route == "hierarchical" else rank
            for rank in world
        }
        self._own = self._position[rank] * self.span
        self._tables = [_coder(table, [self._first_code(part) for part in table.parts]) for table in group.tables]
        coders = [self._tables[read.table] for read in group.reads]
        dealt = [coder.codes for coder in coders if not isinstance(coder, _ByRange)]
        self._together = _Together(dealt) if dealt and len(dealt) == len(coders) else None

    def _first_code(self, part: RowPart) -> int:
        return self._position[part.rank] * self.span + part.base

    def of(self, read: Read, ids: Tensor) -> Tensor:
        """Codes of the rows that a lookup reads, ``(n,)``."""
        return self._tables[read.table](ids.to(self.dtype))

    @property
    def together(self) -> bool:
        """Whether ``of_all`` can be asked: no table lies in several ranges."""
        return self._together is not None

    def of_all(self, ids: Tensor) -> Tensor:
        """Codes of the rows that all lookups read, each ``n`` of them: ``(reads, n)`` from ids of that shape."""
        assert self._together is not None
        return self._together(ids.to(self.dtype))

    def counts(self, codes: Tensor, members: int, owners: int, first: int = 0) -> list[int]:
        """How many of these sorted codes belong to each member of a group.

        Args:
            codes: ``(n,)``.
            members: ranks in the group.
            owners: owners behind each member, next to each other.
            first: position of the first owner.
        """
        borders = torch.arange(members + 1, dtype=codes.dtype, device=codes.device) * owners + first
        return torch.searchsorted(codes, borders * self.span).diff().tolist()

    def by_owner(self, codes: Tensor) -> dict[int, int]:
        """How many of these sorted codes belong to each rank."""
        counted = self.counts(codes, len(self._position), 1)
        return {rank: counted[position] for rank, position in self._position.items()}

    def rows_of_stack(self, asked: Sequence[Tensor]) -> Tensor:
        """Rows of this rank's stack, from the codes that the members of a group ask for."""
        return torch.cat(list(asked)) - self._own


class _OneOwner:
    """A table that lies whole in one stack."""

    def __init__(self, code: int) -> None:
        self.codes = [code]

    def __call__(self, ids: Tensor) -> Tensor:
        return ids + self.codes[0]


class _ByRange:
    """A table in ranges of neighbouring rows."""

    def __init__(self, starts: Sequence[int], codes: Sequence[int]) -> None:
        self._starts = torch.tensor(starts)
        self._shift = torch.tensor([code - start for start, code in zip(starts, codes, strict=True)])

    def __call__(self, ids: Tensor) -> Tensor:
        self._starts, self._shift = self._starts.to(ids), self._shift.to(ids)
        part = torch.bucketize(ids.contiguous(), self._starts[1:], right=True)
        return ids + self._shift[part]


class _ByModulo:
    """A table whose rows are dealt out by their number modulo the number of parts."""

    def __init__(self, codes: Sequence[int]) -> None:
        self.codes = list(codes)
        self._codes = torch.tensor(codes)

    def __call__(self, ids: Tensor) -> Tensor:
        self._codes = self._codes.to(ids)
        step = len(self._codes)
        return self._codes[(ids % step).long()] + torch.div(ids, step, rounding_mode="floor")


class _Together:
    """Tables of several lookups in a few operations; one that lies whole in a stack is dealt out to one part.

    Args:
        codes: for each lookup the first code of each part of its table.
    """

    def __init__(self, codes: Sequence[Sequence[int]]) -> None:
        most = max(map(len, codes))
        self._codes = torch.tensor([[*own, *[0] * (most - len(own))] for own in codes])
        self._parts = torch.tensor([[len(own)] for own in codes])
        self._first = torch.arange(len(codes)).unsqueeze(1) * most

    def __call__(self, ids: Tensor) -> Tensor:
        self._codes = self._codes.to(ids)
        if self._codes.shape[1] == 1:
            return ids + self._codes
        self._parts, self._first = self._parts.to(ids), self._first.to(ids)
        first = self._codes.view(-1).index_select(0, (ids % self._parts + self._first).view(-1))
        return first.view_as(ids).add_(torch.div(ids, self._parts, rounding_mode="floor"))


def _coder(table: GroupTable, codes: Sequence[int]) -> _OneOwner | _ByRange | _ByModulo:
    steps = {part.step for part in table.parts}
    if steps == {1}:
        order = sorted(range(len(codes)), key=lambda i: table.parts[i].first_row)
        starts = [table.parts[i].first_row for i in order]
        ordered = [codes[i] for i in order]
        return _OneOwner(ordered[0]) if len(ordered) == 1 else _ByRange(starts, ordered)
    by_residue = {part.first_row: code for part, code in zip(table.parts, codes, strict=True)}
    if steps != {len(codes)} or sorted(by_residue) != list(range(len(codes))):
        raise ValueError(
            f"table '{table.name}': parts with the steps {sorted(steps)} cannot be asked for by distinct rows; ranges "
            "of neighbouring rows, or one part for each remainder, are expected"
        )
    return _ByModulo([by_residue[r] for r in range(len(codes))])
