"""Cuts one table into ranges of rows or columns, one per lane; or deals its rows out by modulo.

1. A table is cut into as many ranges as there are lanes, or fewer where it has not as many rows, or columns.
2. Columns are cut at multiples of four, FBGEMM's unit, where that leaves at least two ranges.
3. If there are fewer ranges than lanes, they go to the lanes that carry least so far.
4. Rows that travel once are dealt out by their number modulo the number of owners: ids are often sorted by how frequent
   they are, and the first range would be hot. The owner of row 0 is another one for each table.
"""

from __future__ import annotations

from collections.abc import Sequence

from dmt_plugin.plan.tables import Kind, TableRange, TableSpec, TableSplit
from dmt_plugin.topology.shape import Topology

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


def deal_rows(table: TableSpec, owners: Sequence[tuple[int | None, int]], start: int) -> TableSplit:
    """The rows of a table by modulo.

    Args:
        table: the table.
        owners: host and lane of each owner; host None for that of the table's tower.
        start: which of them, modulo their number, has row 0; the next one has row 1, and so on.
    """
    count = min(len(owners), table.rows)
    chosen = [owners[(start + i) % len(owners)] for i in range(count)]
    return TableSplit(
        "row_wise", tuple(TableRange(lane, i, table.rows, count, host) for i, (host, lane) in enumerate(chosen))
    )


def all_ranks(topology: Topology) -> list[tuple[int | None, int]]:
    """Host and lane of every rank, neighbours on different hosts: as owners of rows by modulo."""
    return [(host, lane) for lane in range(topology.ranks_per_host) for host in range(topology.hosts)]
