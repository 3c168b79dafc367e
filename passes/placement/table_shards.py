"""Places the lookups of sharded tables: what each rank looks up and sends, and how the receiver combines the shards.

1. A lookup of a whole table is sent by the table's owner. Of a table in row ranges every lane that holds a range sends
   full width: the sum over the ids of that range. Of a table in column ranges each sends those columns.
2. All of them travel as columns do. Where they arrive, row ranges are added up, which makes the exchange a
   reduce-scatter, and column ranges are put side by side in the table's order, vector by vector.
3. The backward pass is the transpose by itself: every row range gets the whole gradient, every column range its own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import fx

from dmt_plugin.nn.graph_ops import add_row_ranges, join_column_ranges
from dmt_plugin.passes.facts import Lookup
from dmt_plugin.passes.placement.sent_values import SentValue
from dmt_plugin.plan.tables import TableShard, check_by_sample
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.planner.load import ASSUMED_IDS
from dmt_plugin.topology.shape import Topology


@dataclass(frozen=True)
class SentShard:
    """What one rank sends of a value, from its shard of the table.

    Attributes:
        value: the lookup and the logical node that it is for.
        shard: the shard of the table.
        looked_up: entries per sample that the lookup in the shard gives.
        width: entries per sample that are sent.
    """

    value: SentValue
    shard: TableShard
    looked_up: int
    width: int


def shards_by_rank(
    values: Sequence[SentValue], plan: TowerPlan, topology: Topology, once: Collection[str] = ()
) -> tuple[list[SentShard], ...]:
    """For each rank what it sends, in the order of the values, but what frozen tables give behind the rest.

    Args:
        values: what is sent by sample.
        plan: where tables are.
        topology: hosts and lanes.
        once: tables whose rows travel once as well, and may be where these may be.
    """
    shards: tuple[list[SentShard], ...] = tuple([] for _ in range(topology.world_size))
    for value in values:
        lookup = value.lookup
        own = plan.shards_of(lookup.table)
        if lookup.table not in once:
            check_by_sample(own, plan.host_of_table(lookup.table))
        for shard in own:
            looked_up = lookup.width // lookup.dim * shard.columns
            width = value.width if value.region is not None else looked_up
            shards[topology.rank_of(shard.host, shard.lane)].append(SentShard(value, shard, looked_up, width))
    for sent in shards:
        sent.sort(key=lambda x: x.shard.table.frozen)
    return shards


def rows_widths(lookups: Sequence[Lookup], plan: TowerPlan, topology: Topology) -> list[int]:
    """For each rank the entries per sample that lookups give in its rows, where these travel once, at most.

    Ids may all be in one range of neighbouring rows. Rows by modulo are as many as others.
    """
    widths = [0] * topology.world_size
    for lookup in lookups:
        for shard in plan.shards_of(lookup.table):
            width = lookup.width // lookup.dim * shard.columns
            widths[topology.rank_of(shard.host, shard.lane)] += -(-width // shard.step)
    return widths


def rows_ids(lookups: Sequence[Lookup], plan: TowerPlan, topology: Topology) -> list[int]:
    """For each rank the ids per sample that ask for its rows, as :func:`rows_widths`."""
    ids = [0] * topology.world_size
    for lookup in lookups:
        for shard in plan.shards_of(lookup.table):
            ids[topology.rank_of(shard.host, shard.lane)] += -(-(lookup.hotness or ASSUMED_IDS) // shard.step)
    return ids


def arrived_columns(
    graph: fx.Graph, shards: Sequence[SentShard], columns: Sequence[fx.Node]
) -> list[tuple[SentValue, fx.Node]]:
    """Each value with its column, put together from what arrived, in the order of the first shards."""
    found: dict[fx.Node, list[tuple[SentShard, fx.Node]]] = {}
    for sent, column in zip(shards, columns, strict=True):
        found.setdefault(sent.value.node, []).append((sent, column))
    result = []
    for own in found.values():
        own.sort(key=lambda x: (x[0].shard.first_row, x[0].shard.first_column))
        first, column = own[0]
        if first.shard.kind == "row_wise":
            column = graph.call_function(add_row_ranges, ([c for _, c in own],))
        elif first.shard.kind == "column_wise":
            vectors = first.looked_up // first.shard.columns
            column = graph.call_function(join_column_ranges, ([c for _, c in own], vectors))
        result.append((first.value, column))
    return result
