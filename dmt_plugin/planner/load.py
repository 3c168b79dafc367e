"""What tables cost the lanes that hold them, predicted from shapes alone.

Per sample that arrives at a lane, with ``k`` ids looked up in a table of width ``N`` that gives ``W`` entries:

1. exchange: ``W`` entries go out as rows and their gradients come back, in the wire formats of the exchange; what
   stays on the lane itself is not sent;
2. ids: ``k`` ids of 4 bytes arrive (they are counted for every table, although tables may share them);
3. pooling: ``k`` rows of ``N`` entries are read, and read and written again by the update. A byte of memory is far
   cheaper than a byte on a link between ranks: :data:`MEMORY_BYTE`.

A frozen table has no gradients and no update, and keeps nothing for one.

A range of rows reads its share of the ids, if ids are spread evenly, but gets all of them and sends full width. A range
of columns reads all ids and sends its own columns. Memory is that of the values and of the optimizer's state.

Of a table whose rows travel once a host asks for each row that its batches need. With ``d`` such rows per sample of a
host, ``d`` ids arrive per sample, ``d`` rows are read and go to the other hosts, and as many gradients come back. A row
has one owner: a range of rows has its share of all of that. Where a tower module also makes something of its features
together, their rows go to it by sample, inside the host, beside that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from dmt_plugin.comm.formats import Format, bytes_per_entry, row_bytes
from dmt_plugin.core.update_rule import ASSUMED, BYTES_OF, Rule
from dmt_plugin.plan.tables import TableShard, TableSpec

MEMORY_BYTE = 1 / 8
"""Cost of a byte read or written in memory, in bytes on the wire inside a host (NVLink beside HBM: about this)."""

_UPDATE_PASSES = 2
"""How often a looked-up row moves in the update."""

_ID_BYTES = 4
_FP32 = 4

ASSUMED_IDS = 4
"""Ids per sample assumed for a feature whose number of ids varies."""


@dataclass(frozen=True)
class TableUse:
    """One table, and all that is looked up in it.

    Attributes:
        table: the table.
        ids: ids per sample, over all its lookups.
        width: entries per sample that they give together.
        whole: why the table cannot be divided; empty if it can.
        whole_rows: why it cannot be divided by rows, where it can be by columns.
        rows: of a table whose rows travel once: the distinct rows that the batches of a host need, per sample of
            these; None where a row travels for every sample.
        row_width: entries that travel for such a row, if they are not the row itself: what a tower module makes of it.
        mixed: whether its rows are looked up by sample as well, for what a tower module makes of them together.
        free: whether the table may be on any host, as no tower module reads it before its rows cross hosts.
    """

    table: TableSpec
    ids: float
    width: int
    whole: str = ""
    whole_rows: str = ""
    rows: float | None = None
    row_width: int = 0
    mixed: bool = False
    free: bool = False

    def why_not(self, kind: str) -> str:
        """Why the table cannot be divided like that; empty if it can."""
        return self.whole or (self.whole_rows if kind == "row_wise" else "")


@dataclass(frozen=True)
class Load:
    """What a lane, or a shard of a table, has to carry.

    Attributes:
        memory: bytes of values and optimizer state.
        lookups: rows read per sample.
        ids: ids that arrive per sample.
        width: entries sent per sample.
        read: bytes of rows read per sample.
        back: entries per sample whose gradients come back.
        updated: bytes of rows updated per sample.
        once: bytes per sample of the rows that travel once, and of their gradients, to and from other ranks.
    """

    memory: int = 0
    lookups: float = 0.0
    ids: float = 0.0
    width: int = 0
    read: float = 0.0
    back: int = 0
    updated: float = 0.0
    once: float = 0.0

    def __add__(self, other: Load) -> Load:
        return Load(
            self.memory + other.memory,
            self.lookups + other.lookups,
            self.ids + other.ids,
            self.width + other.width,
            self.read + other.read,
            self.back + other.back,
            self.updated + other.updated,
            self.once + other.once,
        )


@dataclass(frozen=True)
class CostModel:
    """Turns loads into one number.

    Attributes:
        rule_of: update rule of a table.
        members: ranks that an output distribution is between (``L``, or ``G`` on the flat route).
        formats: its wire formats, forward and backward.
        once_members: ranks between which rows travel once (``H``, or ``G`` on the flat route).
        once_formats: the wire formats there, forward and backward.
    """

    rule_of: Callable[[TableSpec], Rule] = lambda table: ASSUMED
    members: int = 2
    formats: tuple[Format, Format] = ("fp32", "fp32")
    once_members: int = 2
    once_formats: tuple[Format, Format] = ("fp32", "fp32")

    def memory(self, table: TableSpec, rows: int, columns: int) -> int:
        """Bytes of a rectangle of a table and of its optimizer state."""
        rule = self.rule_of(table)
        return rows * (BYTES_OF[rule.dtype] * columns + _FP32 * rule.state_entries(columns))

    def load(self, use: TableUse, shard: TableShard) -> Load:
        """What a lane with this shard of a table carries."""
        if use.rows is None:
            return self._load_by_sample(use, shard)
        once = self._load_once(use, shard, use.rows)
        return once + replace(self._load_by_sample(use, shard), memory=0) if use.mixed else once

    def _load_by_sample(self, use: TableUse, shard: TableShard) -> Load:
        lookups = use.ids * shard.rows / use.table.rows
        width = use.width // use.table.dim * shard.columns
        memory = self.memory(shard.table, shard.rows, shard.columns)
        read = lookups * shard.columns * BYTES_OF[self.rule_of(shard.table).dtype]
        frozen = use.table.frozen
        return Load(memory, lookups, use.ids, width, read, 0 if frozen else width, 0.0 if frozen else read)

    def _load_once(self, use: TableUse, shard: TableShard, rows: float) -> Load:
        rows = rows * shard.rows / use.table.rows
        frozen, width = use.table.frozen, use.row_width or shard.columns
        forward, backward = self.once_formats
        sent = row_bytes(forward, width) + row_bytes(backward, 0 if frozen else width)
        read = rows * shard.columns * BYTES_OF[self.rule_of(shard.table).dtype]
        return Load(
            memory=self.memory(shard.table, shard.rows, shard.columns),
            lookups=rows,
            ids=rows,
            read=read,
            updated=0.0 if frozen else read,
            once=(self.once_members - 1) / self.once_members * rows * sent,
        )

    def exchange(self, load: Load) -> float:
        """Bytes per sample that the lane sends to other ranks as rows and gets back as gradients."""
        away = (self.members - 1) / self.members
        forward, backward = self.formats
        return away * (row_bytes(forward, load.width) + row_bytes(backward, load.back)) + load.once

    def between_hosts(self, use: TableUse) -> float:
        """Bytes per sample of one host that it and the host of a table send each other: rows, gradients and ids."""
        forward, backward = self.once_formats
        width, count = (use.width, 1.0) if use.rows is None else (use.row_width or use.table.dim, use.rows)
        sent = row_bytes(forward, width) + row_bytes(backward, 0 if use.table.frozen else width)
        return count * sent + _ID_BYTES * (use.ids if use.rows is None else use.rows)

    def cost(self, load: Load) -> float:
        """Cost of a step per sample, in bytes on the wire; the cost of a sum is the sum of the costs."""
        away = (self.members - 1) / self.members
        forward, backward = map(bytes_per_entry, self.formats)
        sent = away * (forward * load.width + backward * load.back)
        return sent + load.once + _ID_BYTES * load.ids + MEMORY_BYTE * (load.read + _UPDATE_PASSES * load.updated)


@dataclass(frozen=True)
class LaneLoad:
    """The predicted load of one rank, for people.

    Attributes:
        host: its host.
        lane: its lane.
        tables: tables that it holds, whole or in part.
        bytes: bytes of their values and optimizer state.
        lookups: rows that it reads per sample that arrives.
        exchange: bytes of rows it sends to other ranks, and of gradients it gets back, per sample that arrives.
    """

    host: int
    lane: int
    tables: int
    bytes: int
    lookups: float
    exchange: float


@dataclass(frozen=True)
class HostRows:
    """What the owners on one host have to send, for people: of tables whose rows travel once, as they were counted.

    Attributes:
        host: the host.
        whole: tables that it has whole.
        parts: tables that it has parts of.
        rows: rows that each host's batches need of it in a step.
        bytes: of these rows, their gradients and their numbers, to and from all other hosts in a step.
        to_mean: its bytes to the mean over hosts.
    """

    host: int
    whole: int
    parts: int
    rows: float
    bytes: float
    to_mean: float


def total(loads: Iterable[Load]) -> Load:
    """The sum of loads."""
    result = Load()
    for load in loads:
        result = result + load
    return result
