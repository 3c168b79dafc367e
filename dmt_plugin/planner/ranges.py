"""Cuts one table into ranges of rows or columns, one per lane.

1. A table is cut into as many ranges as there are lanes, or fewer where it has not as many rows, or columns.
2. Columns are cut at multiples of four, FBGEMM's unit, where that leaves at least two ranges.
3. If there are fewer ranges than lanes, they go to the lanes that carry least so far.
"""

from __future__ import annotations

from collections.abc import Sequence

from dmt_plugin.plan.tables import Kind, TableRange, TableSpec, TableSplit

_UNIT = 4


def divisible(table: TableSpec, kind: Kind) -> bool:
    """Whether a table has two ranges in it."""
    return (table.rows if kind == "row_wise" else table.dim) >= 2


def divide(table: TableSpec, kind: Kind, costs: Sequence[float]) -> TableSplit:
    """The ranges of a divided table.

    Args:
        table: the table; :func:`divisible`.
        kind: ``"row_wise"`` or ``"column_wise"``.
        costs: what each lane carries so far.
    """
    size, unit = (table.rows, 1) if kind == "row_wise" else (table.dim, _UNIT if table.dim >= 2 * _UNIT else 1)
    units = -(-size // unit)
    count = min(len(costs), units)
    lanes = sorted(sorted(range(len(costs)), key=lambda lane: (costs[lane], lane))[:count])
    ends = [min(size, (i + 1) * units // count * unit) for i in range(count)]
    starts = [0, *ends[:-1]]
    return TableSplit(kind, tuple(map(TableRange, lanes, starts, ends)))
