"""Tables, and how a table is divided between the lanes of its host.

1. A table is whole on one lane (table-wise), or divided into ranges of rows (row-wise) or of columns (column-wise),
   each on a lane of its own.
2. The ranges of a divided table must cover every row, or every column, exactly once; anything else is refused with
   the table's name.
3. What a lane holds is a part: a rectangle of the table, with a name by which lookups, states and messages speak of it.
   Parts put together give the table back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from dmt_plugin.core.errors import PlanError

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
    """

    name: str
    rows: int
    dim: int
    weight: str = ""
    first_row: int = 0

    @property
    def parameter(self) -> str:
        """Qualified name of the parameter that holds the table."""
        return self.weight or f"{self.name}.weight"

    def of(self, model: nn.Module) -> Tensor:
        """The table's rows in ``model``'s own parameter: a ``(rows, dim)`` view.

        Raises:
            AttributeError: the model has no such parameter.
        """
        return model.get_parameter(self.parameter).detach()[self.first_row : self.first_row + self.rows]


@dataclass(frozen=True)
class TableRange:
    """Rows, or columns, ``first .. end - 1`` of a table on one lane."""

    lane: int
    first: int
    end: int


@dataclass(frozen=True)
class TableSplit:
    """How a table is divided.

    Attributes:
        kind: ``"row_wise"`` or ``"column_wise"``.
        ranges: the ranges in rising order, each on another lane.
    """

    kind: Kind
    ranges: tuple[TableRange, ...]

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TableSplit:
        """Reads what ``dataclasses.asdict`` gave."""
        return cls(data["kind"], tuple(TableRange(**{k: int(v) for k, v in r.items()}) for r in data["ranges"]))


@dataclass(frozen=True)
class TablePart:
    """What one lane holds of a table: ``rows x columns`` entries from ``(first_row, first_column)`` on.

    Attributes:
        table: the table.
        kind: how the table is divided.
        lane: lane of the table's host.
        first_row: first row, counted in the table.
        rows: number of rows.
        first_column: first column.
        columns: number of columns.
    """

    table: TableSpec
    kind: Kind
    lane: int
    first_row: int
    rows: int
    first_column: int
    columns: int

    @property
    def name(self) -> str:
        """Unique name: the table's if it is whole, else with the range, e.g. ``"users[rows 0:500]"``."""
        if self.kind == "row_wise":
            return f"{self.table.name}[rows {self.first_row}:{self.first_row + self.rows}]"
        if self.kind == "column_wise":
            return f"{self.table.name}[columns {self.first_column}:{self.first_column + self.columns}]"
        return self.table.name

    def of(self, model: nn.Module) -> Tensor:
        """The part in ``model``'s own parameter: a ``(rows, columns)`` view."""
        return self.within(self.table.of(model))

    def within(self, table: Tensor) -> Tensor:
        """The part of a tensor with one entry per row ``(table rows,)``, or per value ``(table rows, dim)``."""
        rows = table[self.first_row : self.first_row + self.rows]
        return rows if table.dim() == 1 else rows[:, self.first_column : self.first_column + self.columns]


def parts_of(table: TableSpec, lane: int | None, split: TableSplit | None) -> tuple[TablePart, ...]:
    """The parts of a table: one if it is whole on ``lane``, else one per range, in rising order."""
    if split is None:
        assert lane is not None
        return (TablePart(table, "table_wise", lane, 0, table.rows, 0, table.dim),)
    if split.kind == "row_wise":
        return tuple(
            TablePart(table, "row_wise", r.lane, r.first, r.end - r.first, 0, table.dim) for r in split.ranges
        )
    return tuple(TablePart(table, "column_wise", r.lane, 0, table.rows, r.first, r.end - r.first) for r in split.ranges)


def assembled(parts: Mapping[TablePart, Tensor]) -> Tensor:
    """A whole table, or a whole state of one, from its parts.

    Args:
        parts: by part its values ``(rows, columns)``, or what it keeps per row ``(rows,)``.

    Returns:
        ``(table rows, dim)``, or ``(table rows,)``.

    Raises:
        PlanError: parts are missing or overlap.
    """
    table = next(iter(parts)).table
    sample = next(iter(parts.values()))
    whole = sample.new_empty((table.rows, table.dim) if sample.dim() == 2 else (table.rows,))
    by_column = any(part.kind == "column_wise" for part in parts)
    starts = [(p.first_column, p.columns) if by_column else (p.first_row, p.rows) for p in parts]
    spans = sorted((first, first + size) for first, size in starts)
    if not _cover(spans, table.dim if by_column else table.rows):
        raise PlanError(
            f"table {table.name!r} ({table.rows} x {table.dim}) cannot be put together from "
            f"{sorted(part.name for part in parts)}: each of its entries must be in one of them."
        )
    for part, values in parts.items():
        part.within(whole).copy_(values)
    return whole


def _cover(spans: Sequence[tuple[int, int]], size: int) -> bool:
    """Whether rising spans hold something each and cover ``0 .. size`` exactly once."""
    ends = [0, *(end for _, end in spans)]
    return ends[-1] == size and all(first == before < end for (first, end), before in zip(spans, ends, strict=False))


def check_places(
    tables: Iterable[TableSpec], lanes: Mapping[str, int], splits: Mapping[str, TableSplit], ranks_per_host: int
) -> None:
    """Refuses places that do not hold every row and every column of every table exactly once.

    Raises:
        PlanError: naming the tables.
    """
    tables = tuple(tables)
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
    for table in tables:
        if table.name in splits:
            _check_split(table, splits[table.name], ranks_per_host)


def _check_split(table: TableSpec, split: TableSplit, ranks_per_host: int) -> None:
    if split.kind not in ("row_wise", "column_wise"):
        raise PlanError(
            f"table {table.name!r} is divided {split.kind!r}; a divided table is 'row_wise' or 'column_wise', a whole "
            "one has an entry in table_lanes instead."
        )
    rows = split.kind == "row_wise"
    what, size = ("rows", table.rows) if rows else ("columns", table.dim)
    lanes = [r.lane for r in split.ranges]
    shown = ", ".join(f"{r.first}:{r.end} on lane {r.lane}" for r in split.ranges) or "nothing"
    outside = sorted({lane for lane in lanes if lane not in range(ranks_per_host)})
    if outside or len(set(lanes)) < len(lanes):
        raise PlanError(
            f"the {what} of table {table.name!r} are divided as {shown}; each range needs another lane "
            f"0..{ranks_per_host - 1} of its host."
        )
    if not _cover([(r.first, r.end) for r in split.ranges], size):
        raise PlanError(
            f"the {what} of table {table.name!r} are divided as {shown}; the ranges must rise, hold something and "
            f"cover 0:{size} exactly once."
        )
