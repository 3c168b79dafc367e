"""Adds to a rank's graph what brings the rows that are asked for: requests, lookup, exchanges, and rows by sample.

1. ids go into the requests (:mod:`dmt_plugin.comm.distinct.requests`);
2. per group of tables: the rows that are asked for are looked up, go back to the peers that asked, are spread to the
   lanes there, and expanded to what each lookup of the model gives; on the flat route they go straight to the rank
   (all as one block; :mod:`dmt_plugin.passes.rank.split_blocks` makes it several);
3. that takes the place of the lookup in the logical graph. What the model does to a feature's rows before it meets
   others runs where the samples are, as it is written;
4. rows by id stay one for each id, in the order of the ids, or are pooled bag by bag if their weights are trained;
5. rows that go through a tower module do so at their owner, each once, and what comes back takes the place of the
   tower's output, or of the first part of it, where the rest is made of all its features together.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from dmt_plugin.comm.distinct.requests import RowRequests
from dmt_plugin.comm.distinct.row_groups import RowGroup
from dmt_plugin.comm.output_dist.output_dist import OutputDist
from dmt_plugin.fxtools.names import (
    BY_ID_META,
    EXCHANGE_META,
    EXCHANGES,
    LOOKUP,
    REQUESTS,
    SHAPE_META,
    start_path,
    wait_path,
)
from dmt_plugin.nn.distinct_rows import ExpandRows, SpreadRows, asked_rows, block_requests, no_rows
from dmt_plugin.nn.graph_ops import bags_of_rows, join_column_ranges, join_vectors, rows_of_ids, side_by_side
from dmt_plugin.passes.base import PassContext
from dmt_plugin.passes.facts import Lookup
from dmt_plugin.passes.placement.distinct_tables import DistinctRowsMaker, Key, TowerReads
from dmt_plugin.passes.placement.slots import READERS, slots_of
from dmt_plugin.passes.placement.table_shards import rows_ids, rows_widths
from dmt_plugin.passes.placement.travels_once import TravelsOnce
from dmt_plugin.topology.group_names import Group, group_ranks, groups_of_rows_once


def add_distinct_rows(
    ctx: PassContext, once: TravelsOnce[TowerReads], substitute: Callable[[fx.Node, fx.Node], None]
) -> dict[fx.Node, list[fx.Node]]:
    """Rewrites the lookups in these tables at the current insertion point; fills ``ctx.placement``.

    Args:
        ctx: the rank's model.
        once: the tables whose rows are asked for.
        substitute: puts a flat column ``(B, width)`` in the place of a logical node.

    Returns:
        For the calls of tower modules of which only a part is made of rows: columns ``(B, c*D)``, feature by feature.
    """
    return _Rewrite(ctx, once).run(substitute)


class _Rewrite:
    def __init__(self, ctx: PassContext, once: TravelsOnce[TowerReads]) -> None:
        assert ctx.plan is not None
        self.tables, self.for_each = once.towers, once.for_each
        self.lookups = [lookup for lookup in ctx.facts.lookups if lookup.table in once.towers]
        self.ctx, self.plan, self.graph, self.placement = ctx, ctx.plan, ctx.gm.graph, ctx.placement

    def run(self, substitute: Callable[[fx.Node, fx.Node], None]) -> dict[fx.Node, list[fx.Node]]:
        lookups = self.lookups
        topology, rank, route = self.ctx.topology, self.ctx.rank, self.ctx.config.comm.route
        slots = slots_of(lookups, self.plan)
        number = {key: i for i, key in enumerate(slots)}
        found = DistinctRowsMaker(self.plan, self.ctx.config, topology, self.tables, self.for_each).of(lookups, number)
        exchange = RowRequests([slot for slot, _ in slots.values()], found.groups, topology, rank, route)
        self._add(REQUESTS, exchange)
        self.placement.distinct_slots, self.placement.groups = exchange.slots, found.groups
        self.placement.stacks = found.stacks(rank)
        self.placement.distinct_widths = tuple(rows_widths(lookups, self.plan, topology))
        self.placement.distinct_ids = tuple(rows_ids(lookups, self.plan, topology))
        ids = [self.graph.call_function(READERS[name], args, kwargs) for _, (name, args, kwargs) in slots.values()]
        requests = self._exchange(REQUESTS, tuple(ids), f"distinct rows of {len(ids)} id stream(s)")
        self.ctx.gm.add_submodule(f"{LOOKUP}.distinct", nn.Identity())  # comes with the sharded lookup
        rows = self.graph.call_module(f"{LOOKUP}.distinct", (requests,))
        expanded = [self._group(i, key, requests, rows) for i, key in enumerate(found.keys)]
        column_of: dict[fx.Node, fx.Node] = {}
        for lookup, reads in zip(lookups, found.columns, strict=True):
            columns = [self._item(expanded[group], read) for group, read in reads]
            column = columns[0]
            if len(columns) > 1:
                column = self.graph.call_function(join_column_ranges, (columns, 1))
            vectors = lookup.width // lookup.dim
            if vectors > 1:
                column = self.graph.call_function(join_vectors, (column, vectors))
            column_of[lookup.node] = column
            if lookup.by_id:
                self._rows_by_id(lookup, column)
            elif self.tables[lookup.table] is None:
                substitute(lookup.node, column)
        outputs = {tower: [column_of[node] for node in tower.lookups] for tower in self._towers()}
        for tower, columns in outputs.items():
            if not tower.mixed:
                substitute(tower.output, self.graph.call_function(side_by_side, (columns,)))
        return {tower.output: columns for tower, columns in outputs.items() if tower.mixed}

    def _rows_by_id(self, lookup: Lookup, column: fx.Node) -> None:
        """Puts the rows of all ids, in the shape of the ids or pooled, in the place of a lookup."""
        column.meta[BY_ID_META] = True
        ids, bags = lookup.ids[1][0], lookup.bags
        if bags is None:
            result = self.graph.call_function(rows_of_ids, (column, ids))
        else:
            given = (column, ids, bags.weights, bags.offsets, bags.include_last_offset)
            result = self.graph.call_function(bags_of_rows, given)
        result.meta["val"] = lookup.node.meta["val"]
        lookup.node.replace_all_uses_with(result)

    def _towers(self) -> list[TowerReads]:
        """The tower modules that rows go through, each once."""
        return list({tower.path: tower for tower in self.tables.values() if tower is not None}.values())

    def _group(self, i: int, key: Key, requests: fx.Node, rows: fx.Node) -> fx.Node:
        """What the lookups in one group of tables give, one column each."""
        group, topology = self.placement.groups[i], self.ctx.topology
        own = self.graph.call_function(block_requests, (requests, i, 0))
        asked = self._through_tower(key, self.graph.call_function(asked_rows, (rows, i, 0)))
        far, near = groups_of_rows_once(topology)
        last: Group = "world" if self.ctx.config.comm.route == "flat" else far
        blocks = self._rows(group, last, asked, self._part(own, "owners"))
        if last == far and topology.by_machine.ranks_per_host > 1:
            self.ctx.gm.add_submodule(f"{EXCHANGES}.{group.name}.spread", SpreadRows())
            spread = self.graph.call_module(f"{EXCHANGES}.{group.name}.spread", (blocks, own, None))
            spread.meta[SHAPE_META] = f"(rows for the lanes, {group.width})"
            blocks = self._rows(group, near, self._part(spread, "rows"), self._part(own, "lanes"))
        self.ctx.gm.add_submodule(f"{EXCHANGES}.{group.name}.expand", ExpandRows())
        expanded = self.graph.call_module(f"{EXCHANGES}.{group.name}.expand", (blocks, own, None))
        return self._part(expanded, "columns")

    def _through_tower(self, key: Key, rows: fx.Node) -> fx.Node:
        """What this host's tower makes of rows that are asked for; rows of tables outside of towers as they are."""
        if key.tower < 0:
            return rows
        here = [t for t in self._towers() if t.host == self.ctx.topology.host_of(self.ctx.rank)]
        for tower in here:
            if (tower.place, tower.width) == (key.tower, key.width):
                part: dict[str, Any] = {"part": "per_feature"} if tower.mixed else {}
                output = self.graph.call_module(tower.path, ((rows,), (0,)), part)
                output.meta[SHAPE_META] = f"(distinct rows, {key.width})"
                return output
        return self.graph.call_function(no_rows, (rows, key.width))

    def _rows(self, tables: RowGroup, group: Group, rows: fx.Node, counts: fx.Node) -> fx.Node:
        topology, width, name = self.ctx.topology, tables.width, f"{tables.name}.{group}"
        members = len(group_ranks(topology, self.ctx.rank, group))
        formats, back = self.ctx.config.comm.formats_of(group), [width * tables.trained] * members
        self._add(name, OutputDist(name, group, width, [width] * members, formats, back, joined=True))
        return self._exchange(name, (rows, counts), f"(distinct rows, {width})")

    def _add(self, name: str, exchange: RowRequests | OutputDist) -> None:
        self.ctx.gm.add_submodule(f"{EXCHANGES}.{name}", exchange)
        self.placement.exchanges[name] = exchange

    def _exchange(self, name: str, args: tuple[fx.Node, ...], arrives: str) -> fx.Node:
        start = self.graph.call_module(start_path(name), args)
        wait = self.graph.call_module(wait_path(name), (start,))
        start.meta[EXCHANGE_META] = wait.meta[EXCHANGE_META] = name
        wait.meta[SHAPE_META] = arrives
        return wait

    def _part(self, whole: fx.Node, name: str) -> fx.Node:
        return self.graph.call_function(getattr, (whole, name))

    def _item(self, several: fx.Node, i: int) -> fx.Node:
        return self.graph.call_function(operator.getitem, (several, i))
