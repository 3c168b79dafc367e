"""Makes the graph of one rank from the logical tower graph: sharded lookups, and nodes for every exchange.

Hierarchical route, on rank ``(host, lane)``:

1. every id stream of the model is read in one common form and enters the input distribution
   (peers first, then the lanes of the host);
2. this rank's tables are looked up for the whole batch that arrives: ``(rows, own widths)``;
3. the exchange inside the host brings every lane the columns of all its tables, and those of
   divided tables are put together (:mod:`dmt_plugin.passes.placement.table_shards`);
4. the tower modules of this host run on them; features without a tower module are columns
   that pass by;
5. the peer exchange sends each host its rows of this host's outputs, and brings the
   outputs of every other host: ``(B, sum of O_t)``;
6. what was a tower's output or a lookup in the logical graph is now a column of that.

Flat route: one exchange of the looked-up rows between all ranks; towers, if there are
any, run where the samples are. The rest of the graph is untouched in both.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from dmt_plugin.comm.input_dist.input_dist import InputDist
from dmt_plugin.comm.output_dist.output_dist import OutputDist
from dmt_plugin.comm.wire.transport import Group
from dmt_plugin.fxtools.attributes import attribute
from dmt_plugin.fxtools.names import EXCHANGE_META, EXCHANGES, LOOKUP, SHAPE_META, start_path, wait_path
from dmt_plugin.fxtools.order import drop_unused, sort_nodes
from dmt_plugin.nn.graph_ops import pack_streams, side_by_side, split_columns
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.facts import Lookup, Region
from dmt_plugin.passes.placement.distinct_tables import TowerReads, once_in_words, tower_reads
from dmt_plugin.passes.placement.sent_values import SentValue, copied_region, sent_values_of, shaped, slot_ids
from dmt_plugin.passes.placement.slots import READERS, sites_of, slots_of
from dmt_plugin.passes.placement.table_placement import host_rows, lane_loads
from dmt_plugin.passes.placement.table_shards import SentShard, arrived_columns, rows_widths, shards_by_rank
from dmt_plugin.passes.placement.travels_once import check_asked, travelling_once
from dmt_plugin.passes.rank.distinct_rows import add_distinct_rows
from dmt_plugin.passes.rank_facts import RowTower, SentColumn


class Place(GraphPass):
    """See the module's docstring."""

    name = "place"
    contract = Contract(
        provides=frozenset({"placed"}), requires=frozenset({"no_pass_through"}), conflicts_with=frozenset({"placed"})
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Rewrites ``ctx.gm`` for ``ctx.rank``; fills ``ctx.placement``."""
        before = len(ctx.gm.graph.nodes)
        _Rewrite(ctx)
        sort_nodes(ctx.gm.graph)
        drop_unused(ctx.gm.graph)
        changed = abs(len(ctx.gm.graph.nodes) - before)
        said = f"; {ctx.placement.once}" if ctx.placement.once else ""
        return self.result(len(ctx.facts.lookups), changed, f"rank {ctx.rank}{said}")


@dataclass(frozen=True)
class _Column:
    """What crosses hosts: a tower's output, or a lookup that passes by.

    Attributes:
        node: the logical node whose value it is.
        width: entries per sample.
        tower: path of the tower module, or ``""``.
        trained: whether anything behind it, on the way to the tables, is trained.
    """

    node: fx.Node
    width: int
    tower: str = ""
    trained: bool = True


class _Rewrite:
    """One graph that is specialised."""

    def __init__(self, ctx: PassContext) -> None:
        assert ctx.plan is not None
        self.ctx, self.plan, self.topology, self.rank = ctx, ctx.plan, ctx.topology, ctx.rank
        self.graph, self.placement = ctx.gm.graph, ctx.placement
        values = sent_values_of(ctx)
        self.region_of = {region.stream: region for region in ctx.facts.regions.values()}
        self.placement.route = ctx.config.comm.route
        self.towers = tower_reads(ctx)
        found = travelling_once(ctx, self.towers)
        once = found.towers
        check_asked(ctx.config, ctx.facts.lookups, once)
        self.placement.once, self.placement.choices = once_in_words(ctx, found), found.choices
        self.values = [value for value in values if value.lookup.table not in found.alone]
        self.shards = shards_by_rank(self.values, self.plan, self.topology, once)
        ctx.gm.add_submodule(LOOKUP, nn.Identity())  # replaced by the sharded lookup
        self._say_loads(once)
        # Of calls of towers whose other outputs travel by sample: the columns that came by rows.
        self.row_parts: dict[fx.Node, list[fx.Node]] = {}
        with self.graph.inserting_before(next(n for n in reversed(self.graph.nodes) if n.op == "output")):
            if once:
                self.row_parts = add_distinct_rows(ctx, found, self._substitute)
            by_row = {tower.path: tower for tower in once.values() if tower is not None}
            self.placement.at_samples = tuple(tower.path for tower in found.at_samples)
            gone = {*self.placement.at_samples, *(path for path, tower in by_row.items() if not tower.mixed)}
            self.towers = [tower for tower in self.towers if tower.path not in gone]
            if self.topology.hosts > 1:
                host = self.topology.host_of(self.rank)
                own = [tower for tower in by_row.values() if tower.host == host and not tower.mixed]
                self.placement.tower_paths = tuple(tower.path for tower in own)
            self.placement.row_towers = tuple(
                RowTower(tower.path, tower.host, len(tower.lookups), tower.width) for tower in by_row.values()
            )
            if not self.values:
                self.placement.rank_widths = self.placement.rank_gradients = (0,) * self.topology.world_size
                return
            routed, layout = self._distribute()
            rows = self._look_up(routed)
            if ctx.config.comm.route == "flat":
                self._flat(rows, layout)
            else:
                self._hierarchical(rows, layout)

    # -- steps ---------------------------------------------------------------------------

    def _distribute(self) -> tuple[fx.Node, fx.Node]:
        slots = slots_of([value.lookup for value in self.values], self.plan)
        exchange = InputDist([s for s, _ in slots.values()], self.topology, self.rank, self.ctx.config.comm.route)
        keys = list(slots)
        self.slot_by_key = {keys[slot]: i for i, slot in enumerate(exchange.owned)}
        self.placement.slots = tuple(slot for slot, _ in slots.values())
        self.placement.sites = sites_of(self.shards[self.rank], self.slot_by_key)
        self.placement.rank_widths = tuple(map(_width, self.shards))
        self.placement.rank_gradients = tuple(map(_gradients, self.shards))
        ids = [self.graph.call_function(READERS[name], args, kwargs) for _, (name, args, kwargs) in slots.values()]
        self._add("index", exchange)
        routed = self._exchange("index", tuple(ids), f"{len(exchange.owned)} id stream(s), H*L*B rows")
        layout = self.graph.call_function(getattr, (routed, "layout"))
        return routed, layout

    def _look_up(self, routed: fx.Node) -> fx.Node:
        """This rank's rows, and what their features make of them here."""
        mine = self.shards[self.rank]
        rows = self.graph.call_module(LOOKUP, (routed,))
        rows.meta[SHAPE_META] = f"(H*L*B, {sum(sent.looked_up for sent in mine)})"
        values = [sent.value for sent in mine]
        if not any(c.region for c in values):
            return rows
        columns = self._split([rows], [[sent.looked_up for sent in mine]])
        parts = [
            column if c.region is None else self._at_owner(c.lookup, c.region, column, routed)
            for c, column in zip(values, columns, strict=True)
        ]
        pooled = self._side_by_side(parts)
        pooled.meta[SHAPE_META] = f"(H*L*B, {_width(mine)})"
        return pooled

    def _at_owner(self, lookup: Lookup, region: Region, column: fx.Node, routed: fx.Node) -> fx.Node:
        slot = self.slot_by_key[lookup.key]

        def ids(index: fx.Node) -> fx.Node:
            value = index.meta["val"]
            return self.graph.call_function(slot_ids, (routed, slot, tuple(value.shape[1:]), value.dtype))

        stream = copied_region(self.graph, region, lambda node: shaped(self.graph, column, node), ids)
        return self.graph.call_method("flatten", (stream, 1))

    def _hierarchical(self, rows: fx.Node, layout: fx.Node) -> None:
        host, lane = self.topology.host_of(self.rank), self.topology.lane_of(self.rank)
        by_lane = [self.shards[self.topology.rank_of(host, j)] for j in range(self.topology.ranks_per_host)]
        widths, back = [_width(x) for x in by_lane], [_gradients(x) for x in by_lane]
        self._add("lanes", self._rows("lanes", widths[lane], widths, back))
        blocks = self._exchange("lanes", (rows, layout), f"(H*B, {sum(_width(x) for x in by_lane)})")
        column_of = {value.node: column for value, column in self._arrived(blocks, by_lane)}
        items = [self._columns_of(h) for h in range(self.topology.hosts)]
        own_outputs = [
            self._tower(column, column_of) if column.tower else column_of[column.node] for column in items[host]
        ]
        if not own_outputs:  # nothing of this host travels by sample: a block of no columns
            own_outputs = [self.graph.call_function(operator.getitem, (blocks, 0))]
        sent = self._side_by_side(own_outputs)
        widths = [sum(c.width for c in own) for own in items]
        back = [sum(c.width for c in own if c.trained) for own in items]
        self._add("peers", self._rows("peers", widths[host], widths, back))
        sent.meta[SHAPE_META] = f"(H*B, {widths[host]})"
        arrived = self._exchange("peers", (sent, layout), f"(B, {sum(widths)})")
        parts = self._split(arrived, [[c.width for c in own] for own in items])
        for column, part in zip((c for own in items for c in own), parts, strict=True):
            first = self.row_parts.get(column.node)
            self._substitute(column.node, self._side_by_side([*first, part]) if first else part)
        self.placement.host_columns = tuple(
            tuple(SentColumn(c.node.name, c.width, c.tower, c.trained) for c in own) for own in items
        )
        if self.topology.hosts > 1:
            layers = [[path for c in own if c.tower for path in self._layers_of(c)] for own in items]
            self.placement.feature_layers = tuple(path for own in layers for path in own)
            read = [[name for c in own if c.tower for name in self._parameters_of(c)] for own in items]
            self.placement.feature_parameters = tuple(name for own in read for name in own)
            self.placement.own_parameters = tuple(read[host])
            towers = [c.tower for c in items[host] if c.tower]
            self.placement.tower_paths += (*towers, *layers[host])

    def _flat(self, rows: fx.Node, layout: fx.Node) -> None:
        widths = self.placement.rank_widths
        self._add("world", self._rows("world", widths[self.rank], widths, self.placement.rank_gradients))
        blocks = self._exchange("world", (rows, layout), f"(B, {sum(widths)})")
        for value, column in self._arrived(blocks, self.shards):
            self._substitute(value.node, column)

    def _arrived(self, blocks: fx.Node, shards: Sequence[Sequence[SentShard]]) -> list[tuple[SentValue, fx.Node]]:
        """Values and their columns, out of one block per sender."""
        columns = self._split(blocks, [[sent.width for sent in own] for own in shards])
        return arrived_columns(self.graph, [sent for own in shards for sent in own], columns)

    def _tower(self, column: _Column, column_of: dict[fx.Node, fx.Node]) -> fx.Node:
        """The tower module of this host on the rows of its peers."""
        pack = column.node.args[0]
        assert isinstance(pack, fx.Node) and pack.target is pack_streams
        streams = [self._in_tower(stream, column_of) for stream in pack.args[0]]  # type: ignore[union-attr]
        packed = self.graph.call_function(pack_streams, (streams,))
        packed.meta[SHAPE_META] = "(H*B, " + ", ".join(map(str, pack.meta["val"].shape[1:])) + ")"
        part: dict[str, Any] = {"part": "per_tower"} if column.node in self.row_parts else {}
        output = self.graph.call_module(column.tower, (packed,), part)
        output.meta[SHAPE_META] = f"(H*B, {column.width})"
        return output

    def _in_tower(self, stream: Any, column_of: dict[fx.Node, fx.Node]) -> fx.Node:
        """A stream of a tower from the columns of its lookups."""
        if stream in column_of:
            return column_of[stream]
        region = self.region_of[stream]
        return copied_region(self.graph, region, lambda node: shaped(self.graph, column_of[node], node))

    def _say_loads(self, once: Mapping[str, TowerReads | None]) -> None:
        """What each rank holds and looks up, whichever way its rows travel."""
        lookups = [lookup for lookup in self.ctx.facts.lookups if lookup.table in once]
        widths = rows_widths(lookups, self.plan, self.topology)
        by_sample = [sum(sent.looked_up for sent in own) for own in self.shards]
        self.placement.looked_up = tuple(a + b for a, b in zip(by_sample, widths, strict=True))
        self.placement.loads = lane_loads(self.ctx, self.shards, once)
        self.placement.owners = host_rows(self.ctx, once)

    # -- helpers -------------------------------------------------------------------------

    def _columns_of(self, host: int) -> list[_Column]:
        """What a host sends: outputs of its tower modules, then lookups without one; last what has no gradients."""
        columns: list[_Column] = []
        packed = {node for tower in self.towers for node in tower.lookups}
        for tower in (tower for tower in self.towers if tower.host == host):
            pack = tower.output.args[0]
            assert isinstance(pack, fx.Node)
            trained = self._trained(tower.output, pack.args[0])
            width = tower.mixed if tower.output in self.row_parts else int(tower.output.meta["val"].shape[1])
            columns.append(_Column(tower.output, width, tower.path, trained))
        columns.extend(
            _Column(c.node, c.width, trained=not c.lookup.frozen)
            for c in self.values
            if c.lookup.node not in packed and self.plan.host_of_table(c.lookup.table) == host
        )
        return sorted(columns, key=lambda column: not column.trained)

    def _trained(self, output: fx.Node, packed: Any) -> bool:
        """Whether a tower module, a layer of one of its features or a table that it reads is trained."""
        regions = [self.region_of[stream] for stream in packed if stream in self.region_of]
        inside = {node for region in regions for node in (*region.nodes, *_inputs(region.nodes))}
        read = {*packed, *(node for region in regions for node in region.lookups)}
        if any(not lookup.frozen for lookup in self.ctx.facts.lookups if lookup.node in read):
            return True
        if any(attribute(self.ctx.gm, name).requires_grad for region in regions for name in region.parameters):
            return True
        return any(getattr(p, "requires_grad", False) for node in (output, *inside) for p in self._parameters(node))

    def _parameters(self, node: fx.Node) -> list[Any]:
        if node.op == "call_module":
            return list(self.ctx.module(node).parameters())
        return [attribute(self.ctx.gm, str(node.target))] if node.op == "get_attr" else []

    def _layers_of(self, column: _Column) -> list[str]:
        """The user's layers with parameters that a tower runs: those of one of its features alone."""
        nodes = [n for region in self._regions_of(column) for n in region.nodes if n.op == "call_module"]
        return [str(n.target) for n in nodes if any(True for _ in self.ctx.module(n).parameters())]

    def _parameters_of(self, column: _Column) -> list[str]:
        """The user's parameters that a tower reads for one of its features alone."""
        return [name for region in self._regions_of(column) for name in region.parameters]

    def _regions_of(self, column: _Column) -> list[Region]:
        pack = column.node.args[0]
        assert isinstance(pack, fx.Node)
        packed: Any = pack.args[0]
        return [self.region_of[s] for s in packed if s in self.region_of]

    def _add(self, name: str, exchange: nn.Module) -> None:
        self.ctx.gm.add_submodule(f"{EXCHANGES}.{name}", exchange)
        self.placement.exchanges[name] = exchange

    def _rows(self, group: Group, own: int, widths: Sequence[int], back: Sequence[int]) -> OutputDist:
        return OutputDist(group, group, own, widths, self.ctx.config.comm.formats_of(group), back)

    def _exchange(self, name: str, args: tuple[Any, ...], arrives: str) -> fx.Node:
        start = self.graph.call_module(start_path(name), args)
        wait = self.graph.call_module(wait_path(name), (start,))
        start.meta[EXCHANGE_META] = wait.meta[EXCHANGE_META] = name
        wait.meta[SHAPE_META] = arrives
        return wait

    def _side_by_side(self, parts: Sequence[fx.Node]) -> fx.Node:
        return self.graph.call_function(side_by_side, (list(parts),))

    def _split(self, blocks: fx.Node | list[fx.Node], widths: Sequence[Sequence[int]]) -> list[fx.Node]:
        parts = self.graph.call_function(split_columns, (blocks, tuple(tuple(own) for own in widths)))
        count = sum(len(own) for own in widths)
        return [self.graph.call_function(operator.getitem, (parts, i)) for i in range(count)]

    def _substitute(self, old: fx.Node, new: fx.Node) -> None:
        """Puts a column in the place of a logical node; a lookup may have given ``(B, L, N)``."""
        value = old.meta["val"]
        new = shaped(self.graph, new, old)
        new.meta["val"] = value
        old.replace_all_uses_with(new)


def _width(shards: Sequence[SentShard]) -> int:
    return sum(sent.width for sent in shards)


def _gradients(shards: Sequence[SentShard]) -> int:
    return sum(sent.width for sent in shards if not sent.shard.table.frozen)


def _inputs(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    return [source for node in nodes for source in node.all_input_nodes]
