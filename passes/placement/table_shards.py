"""Lookups of divided tables: what each rank looks up and sends, and what is made of it where it arrives.

1. A lookup of a whole table is one piece, at the table's owner. A lookup of a table in row ranges is a piece of full
   width on every lane that holds a range: the sum over the ids of that range. A lookup of a table in column ranges is
   a piece of those columns.
2. Pieces travel as all columns do. Where they arrive, row ranges are added up, which makes the exchange a
   reduce-scatter, and column ranges are put side by side in the table's order, vector by vector.
3. The backward pass is the transpose by itself: every row range gets the whole gradient, every column range its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from dmt_plugin.nn.graph_ops import add_row_ranges, join_column_ranges
from dmt_plugin.passes.placement.sent_values import Carrier
from dmt_plugin.plan.tables import TableShard, check_runnable
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.topology.shape import Topology


@dataclass(frozen=True)
class Piece:
    """What one rank contributes to a carrier.

    Attributes:
        carrier: the lookup and the logical node that it is for.
        part: the part of the table that the rank holds.
        looked_up: entries per sample that the lookup of the part gives.
        width: entries per sample that are sent.
    """

    carrier: Carrier
    part: TableShard
    looked_up: int
    width: int

    @property
    def divided(self) -> bool:
        """Whether it is less than the whole lookup."""
        return self.part.kind != "table_wise"


def pieces_by_rank(carriers: Sequence[Carrier], plan: TowerPlan, topology: Topology) -> tuple[list[Piece], ...]:
    """For each rank its pieces, in the order of the carriers."""
    pieces: tuple[list[Piece], ...] = tuple([] for _ in range(topology.world_size))
    for carrier in carriers:
        lookup = carrier.lookup
        shards = plan.shards_of(lookup.table)
        check_runnable(shards, plan.host_of_table(lookup.table))
        for part in shards:
            looked_up = lookup.width // lookup.dim * part.columns
            width = carrier.width if carrier.region is not None else looked_up
            pieces[topology.rank_of(part.host, part.lane)].append(Piece(carrier, part, looked_up, width))
    return pieces


def arrived_columns(
    graph: fx.Graph, pieces: Sequence[Piece], columns: Sequence[fx.Node]
) -> list[tuple[Carrier, fx.Node]]:
    """Each carrier with its column, put together from pieces that arrived, in the order of their first pieces."""
    found: dict[fx.Node, list[tuple[Piece, fx.Node]]] = {}
    for piece, column in zip(pieces, columns, strict=True):
        found.setdefault(piece.carrier.node, []).append((piece, column))
    result = []
    for own in found.values():
        own.sort(key=lambda x: (x[0].part.first_row, x[0].part.first_column))
        first, column = own[0]
        if first.part.kind == "row_wise":
            column = graph.call_function(add_row_ranges, ([c for _, c in own],))
        elif first.part.kind == "column_wise":
            vectors = first.looked_up // first.part.columns
            column = graph.call_function(join_column_ranges, ([c for _, c in own], vectors))
        result.append((first.carrier, column))
    return result
