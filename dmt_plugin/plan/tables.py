"""Tables, and how a table is divided between ranks.

1. A table is whole on one rank (table-wise), by default a lane of its tower's host, or divided into rows (row-wise) or
   columns (column-wise), each range on a rank of its own.
2. The ranges of a divided table must cover every row, or every column, exactly once; anything else is refused with
   the table's name. Rows of one range are neighbours, or ``step`` apart: with as many ranges as the step, rows lie by
   modulo. A range may be on another host than the table's tower.
3. What a rank holds is a shard: row ``i`` of it is row ``first_row + i * step`` of the table. It has a name by which
   lookups, states and messages speak of it. Shards put together give the table back.
4. Rows that are looked up by sample are on their tower's host, those of a range next to each other
   (:func:`check_by_sample`). Rows that travel once may be anywhere; only what a tower module makes of them is made on
   its host (:func:`check_on_host`).

No torch is imported here: a plan is read where torch is not wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from dmt_plugin.core.errors import PlanError
from dmt_plugin.core.update_rule import WeightType
from dmt_plugin.topology.shape import Topology

if TYPE_CHECKING:
    from torch import Tensor, nn

Kind = Literal["table_wise", "row_wise", "column_wise"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class TableSpec:
    """One embedding table.

    Attributes:
        name: unique name: the layer's, or the weight's where it belongs to no embedding layer; with
            the range of rows where fields share a weight, e.g. ``"embedding[100:250]"``.
        rows: number of rows; valid ids are ``0 .. rows - 1``.
        dim: width of a row.
        weight: qualified name of the parameter that holds it; by default ``<name>.weight``.
        first_row: where it begins in that parameter.
        dtype: type of that parameter.
        frozen: it is not trained: its owners keep nothing for it, and no gradients travel. Such a table is the same
            table, so that it is not compared.
    """

    name: str
    rows: int
    dim: int
    weight: str = ""
    first_row: int = 0
    dtype: WeightType = "fp32"
    frozen: bool = field(default=False, compare=False)

    @property
    def parameter(self) -> str:
        """Qualified name of the parameter that holds the table."""
        return self.weight or f"{self.name}.weight"

    def to_dict(self) -> dict[str, Any]:
        """As plain data, without what is at its default: a plan keeps the fingerprint that it had before others."""
        known = (("dtype", "fp32"), ("frozen", False))
        return {key: value for key, value in vars(self).items() if (key, value) not in known}

    def of(self, model: nn.Module) -> Tensor:
        """The table's rows in ``model``'s own parameter: a ``(rows, dim)`` view.

        Raises:
            AttributeError: the model has no such parameter.
        """
        return model.get_parameter(self.parameter).detach()[self.first_row : self.first_row + self.rows]


@dataclass(frozen=True)
class TableRange:
    """Rows, or columns, ``first``, ``first + step``, ... below ``end`` of a table on one rank.

    Attributes:
        lane: lane of the host.
        first: first row or column.
        end: end of the range, not part of it.
        step: distance of neighbours; columns have 1.
        host: the host; None: that of the table's tower.
    """

    lane: int
    first: int
    end: int
    step: int = 1
    host: int | None = None

    @property
    def span(self) -> range:
        """Its rows or columns."""
        return range(self.first, self.end, self.step)


@dataclass(frozen=True)
class TableSplit:
    """How a table is divided.

    Attributes:
        kind: ``"row_wise"`` or ``"column_wise"``.
        ranges: the ranges in rising order, each on another rank.
    """

    kind: Kind
    ranges: tuple[TableRange, ...]

    @property
    def is_plain(self) -> bool:
        """Whether ranges are of neighbours, on the host of the table's tower."""
        return all(r.step == 1 and r.host is None for r in self.ranges)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, without what is at its default: a plan keeps its fingerprint when there is more to say."""
        known = {"step": 1, "host": None}.items()
        return {"kind": self.kind, "ranges": [dict(x for x in vars(r).items() if x not in known) for r in self.ranges]}


@dataclass(frozen=True)
class TableShard:
    """What one rank holds of a table.

    Attributes:
        table: the table.
        kind: how the table is divided.
        host: host of the rank.
        lane: lane of the rank.
        first_row: first row, counted in the table.
        step: row ``i`` of the shard is row ``first_row + i * step`` of the table.
        rows: number of rows.
        first_column: first column.
        columns: number of columns.
    """

    table: TableSpec
    kind: Kind
    host: int
    lane: int
    first_row: int
    step: int
    rows: int
    first_column: int
    columns: int

    @property
    def name(self) -> str:
        """Unique name: the table's if it is whole, else with the range, e.g. ``"users[rows 0:500]"``."""
        if self.kind == "table_wise":
            return self.table.name
        return f"{self.table.name}[{self.kind.removesuffix('_wise')}s {_shown(self.span)}]"

    @property
    def span(self) -> range:
        """Its columns where the table is divided by columns, else its rows."""
        if self.kind == "column_wise":
            return range(self.first_column, self.first_column + self.columns)
        return range(self.first_row, self.first_row + (self.rows - 1) * self.step + 1, self.step)

    @property
    def parameter_rows(self) -> range:
        """Its rows, counted in the parameter that holds the table."""
        first = self.table.first_row + self.first_row
        return range(first, first + self.rows * self.step, self.step)

    @property
    def parameter_columns(self) -> range:
        """Its columns."""
        return range(self.first_column, self.first_column + self.columns)

    def of(self, model: nn.Module) -> Tensor:
        """The shard in ``model``'s own parameter: a ``(rows, columns)`` view."""
        return self.within(self.table.of(model))

    def within(self, table: Tensor) -> Tensor:
        """The shard of a tensor with one entry per row ``(table rows,)``, or per value ``(table rows, dim)``."""
        rows = table[self.first_row : self.first_row + self.rows * self.step : self.step]
        return rows if table.dim() == 1 else rows[:, self.first_column : self.first_column + self.columns]


def shards_of(table: TableSpec, host: int, lane: int | None, split: TableSplit | None) -> tuple[TableShard, ...]:
    """The shards of a table.

    Args:
        table: the table.
        host: the host that holds it whole, or that of its tower.
        lane: lane of that host that holds the whole table; None where it is divided.
        split: how it is divided; None where it is whole.

    Returns:
        One shard if it is whole, else one per range, in the order of the ranges.
    """
    if split is None:
        assert lane is not None
        return (TableShard(table, "table_wise", host, lane, 0, 1, table.rows, 0, table.dim),)
    shards = []
    for r in split.ranges:
        count = len(r.span)
        rows, columns = ((r.first, r.step, count), (0, table.dim))
        if split.kind == "column_wise":
            rows, columns = (0, 1, table.rows), (r.first, count)
        shards.append(TableShard(table, split.kind, host if r.host is None else r.host, r.lane, *rows, *columns))
    return tuple(shards)


def assembled(shards: Mapping[TableShard, Tensor]) -> Tensor:
    """A whole table, or a whole state of one, from its shards.

    Args:
        shards: by shard its values ``(rows, columns)``, or what it keeps per row ``(rows,)``.

    Returns:
        ``(table rows, dim)``, or ``(table rows,)``.

    Raises:
        PlanError: shards are missing or overlap.
    """
    first, sample = next(iter(shards.items()))
    table, size = first.table, first.table.dim if first.kind == "column_wise" else first.table.rows
    whole = sample.new_empty((table.rows, table.dim) if sample.dim() == 2 else (table.rows,))
    if not _cover(sorted((shard.span for shard in shards), key=lambda span: span.start), size):
        raise PlanError(
            f"table {table.name!r} ({table.rows} x {table.dim}) cannot be put together from "
            f"{sorted(shard.name for shard in shards)}: each of its entries must be in one of them."
        )
    for shard, values in shards.items():
        shard.within(whole).copy_(values)
    return whole


def _cover(spans: Sequence[range], size: int) -> bool:
    """Whether spans of one step, in rising order, hold something each and cover ``0 .. size`` exactly once."""
    step = spans[0].step if spans else 1
    if step > max(len(spans), 1):
        return False
    due = list(range(step))  # of the rows that are equal modulo the step, the next one
    for span in spans:
        if span.step != step or not span or due[span.start % step] != span.start:
            return False
        due[span.start % step] = span[-1] + step
    return all(size <= end < size + step for end in due)


def _shown(span: range) -> str:
    return f"{span.start}:{span.stop}" + (f":{span.step}" if span.step != 1 else "")


def check_by_sample(shards: Iterable[TableShard], host: int) -> None:
    """Refuses shards of one table that cannot be looked up by sample.

    Args:
        shards: all of the table.
        host: host of its tower.

    Raises:
        PlanError: naming the table, and what to set.
    """
    for shard in shards:
        wrong = f"on host {shard.host}" if shard.host != host else f"{shard.step} rows apart" if shard.step > 1 else ""
        if wrong:
            raise PlanError(
                f"the plan has {shard.name} {wrong}. That is for tables whose rows travel once, and those of "
                f'{shard.table.name!r} do not: set dmt.comm.dedup to "on" (or dmt.comm.dedup_features for its '
                "features, and for all features of its tower where a tower module reads it), or make a new plan: it "
                f"then has ranges of neighbouring rows on the lanes of host {host}, where its tower is."
            )


def check_on_host(shards: Iterable[TableShard], host: int) -> None:
    """Refuses shards of one table that are elsewhere than the tower module that their rows go through.

    Args:
        shards: all of the table.
        host: host of its tower.

    Raises:
        PlanError: naming the table, and what its plan may say instead.
    """
    for shard in shards:
        if shard.host != host:
            raise PlanError(
                f"the plan has {shard.name} on host {shard.host}, but its rows go through a tower module on host "
                f"{host}, whose weights are there. Give table {shard.table.name!r} lanes of host {host}, or make a new "
                "plan."
            )


def check_places(
    tables: Iterable[TableSpec],
    lanes: Mapping[str, int],
    splits: Mapping[str, TableSplit],
    hosts: Mapping[str, int],
    host_of: Mapping[str, int],
    topology: Topology,
) -> None:
    """Refuses places that do not hold every row and every column of every table exactly once.

    Args:
        tables: every table of the model.
        lanes: lane of each whole table.
        splits: how the others are divided.
        hosts: host of the whole tables that are elsewhere than their tower.
        host_of: host of each table's tower.
        topology: hosts and lanes.

    Raises:
        PlanError: naming the tables.
    """
    tables = tuple(tables)
    ranks_per_host = topology.ranks_per_host
    known = {t.name for t in tables}
    unplaced = sorted(known - set(lanes) - set(splits))
    wrong = {t: lane for t, lane in lanes.items() if t in known and lane not in range(ranks_per_host)}
    if unplaced or wrong:
        raise PlanError(
            f"every table needs a lane 0..{ranks_per_host - 1} of its host: without one {unplaced}, out of range "
            f"{wrong}."
        )
    twice = sorted(set(lanes) & set(splits))
    if twice:
        raise PlanError(
            f"the plan has the table(s) {twice} both whole (table_lanes) and divided (table_splits); keep one of them."
        )
    outside = {t: host for t, host in hosts.items() if t in known and host not in range(topology.hosts)}
    if divided := sorted(set(hosts) & set(splits)) or outside:
        raise PlanError(
            f"table_hosts says where whole tables are, on the hosts 0..{topology.hosts - 1}: found {divided}"
            + ("." if outside else ", which are divided; their ranges say the host.")
        )
    for table in tables:
        if table.name in splits:
            _check_split(table, splits[table.name], host_of[table.name], topology)


def _check_split(table: TableSpec, split: TableSplit, host: int, topology: Topology) -> None:
    if split.kind not in ("row_wise", "column_wise"):
        raise PlanError(
            f"table {table.name!r} is divided {split.kind!r}; a divided table is 'row_wise' or 'column_wise', a whole "
            "one has an entry in table_lanes instead."
        )
    rows = split.kind == "row_wise"
    what, size = ("rows", table.rows) if rows else ("columns", table.dim)
    ranks = [(host if r.host is None else r.host, r.lane) for r in split.ranges]
    most = size if rows else 1
    if steps := sorted({r.step for r in split.ranges if not 1 <= r.step <= most}):
        raise PlanError(f"the {what} of table {table.name!r} are divided with the step {steps}; 1..{most} is possible.")
    on_host = {r: "" if r.host is None else f"host {r.host}, " for r in split.ranges}
    shown = ", ".join(f"{_shown(r.span)} on {on_host[r]}lane {r.lane}" for r in split.ranges) or "nothing"
    hosts, lanes = range(topology.hosts), range(topology.ranks_per_host)
    if not all(h in hosts and lane in lanes for h, lane in ranks) or len(set(ranks)) < len(ranks):
        own = all(r.host is None for r in split.ranges)
        raise PlanError(
            f"the {what} of table {table.name!r} are divided as {shown}; each range needs another lane "
            f"0..{topology.ranks_per_host - 1} of " + ("its host." if own else f"the hosts 0..{topology.hosts - 1}.")
        )
    if not _cover([r.span for r in split.ranges], size):
        raise PlanError(
            f"the {what} of table {table.name!r} are divided as {shown}; the ranges must rise, hold something and "
            f"cover 0:{size} exactly once."
        )
