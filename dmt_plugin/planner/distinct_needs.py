"""How many distinct rows owners are asked for, from counts by table: whoever asks, and in proportion to what they own.

What was counted says how many rows of a table a rank, and a host, needs in a step (:mod:`dmt_plugin.plan.row_shares`);
which of them belong to which owner it does not say. Rows that are dealt out by modulo are asked for evenly, and those
of a whole table of one owner alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from dmt_plugin.comm.distinct.row_groups import GroupTable, RowGroup
from dmt_plugin.plan.row_shares import RowShares, TableRows
from dmt_plugin.planner.distinct_cost import ByOwner, Needs
from dmt_plugin.topology.shape import Topology


def needs_of(groups: Sequence[RowGroup], shares: RowShares, topology: Topology) -> tuple[Needs, ...] | None:
    """What the owners of each group are asked for; None where a table was not counted, or its rows go for every id.

    Args:
        groups: the tables.
        shares: what was counted, for as many samples per rank and as many lanes.
        topology: hosts and lanes.
    """
    if not all(group.once for group in groups):
        return None
    found = []
    for group in groups:
        rank, host = [0.0] * topology.world_size, [0.0] * topology.world_size
        for table in group.tables:
            counted = _counted(table, shares)
            if counted is None:
                return None
            for part in table.parts:
                rank[part.rank] += counted.rank * part.rows / table.rows
                host[part.rank] += counted.host * part.rows / table.rows
        found.append(Needs(ByOwner(topology.world_size, rank), ByOwner(topology.by_machine.hosts, host)))
    return tuple(found)


def _counted(table: GroupTable, shares: RowShares) -> TableRows | None:
    """The count of a table, or of the table that it is a range of columns of."""
    return shares.of_table(table.name) or shares.of_table(table.name.partition("[columns ")[0])
