"""Puts pass-through towers between the lookups of a group and its joins.

For every tower group of the plan:

1. what the streams are computed from is moved before the first use of any of them;
2. the streams of each tower are packed to ``(B, F_t, N)``, in the tower's order;
3. a pass-through tower module flattens them to ``(B, F_t*N)``;
4. the outputs are split into streams again, and each use gets back the stream it had.

The graph computes what it computed before, bit for bit, gradients included; that is what
"semantic-preserving" means, and it is checked at this point. Replacing the pass-through
modules by compressing ones is the next pass.
"""

from __future__ import annotations

import operator

from torch import fx

from dmt_plugin.fxtools.names import GROUP, tower_path
from dmt_plugin.nn.graph_ops import pack_streams, split_streams
from dmt_plugin.nn.towers import PassThroughTower
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.facts import StreamGroup


class InsertTowers(GraphPass):
    """See the module's docstring."""

    name = "insert_towers"
    contract = Contract(
        provides=frozenset({"towers"}), requires=frozenset({"plan"}), conflicts_with=frozenset({"towers"})
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Inserts pass-through towers for every tower group."""
        groups = [g for g in ctx.facts.groups if g.kind == "tower"]
        changed = sum(self._insert(ctx, group) for group in groups)
        return self.result(len(groups), changed)

    def _insert(self, ctx: PassContext, group: StreamGroup) -> int:
        assert ctx.plan is not None
        graph = ctx.gm.graph
        order = {node: i for i, node in enumerate(graph.nodes)}
        first_use = min(group.joins, key=order.__getitem__)
        bring_forward(group.streams, first_use, order)
        stream_by_feature = {lookup.feature: s for lookup, s in zip(group.lookups, group.streams, strict=True)}
        spec = next(g for g in ctx.plan.groups if g.name == group.name)
        outputs: list[fx.Node] = []
        shapes: list[tuple[tuple[int, ...], ...]] = []
        packed: list[fx.Node] = []
        with graph.inserting_before(first_use):
            for tower in range(len(ctx.plan.towers)):
                streams = [stream_by_feature[f] for f in ctx.plan.features_of(spec, tower)]
                if not streams:
                    continue
                value = streams[0].meta["val"]
                path = tower_path(group.name, tower)
                ctx.gm.add_submodule(path, PassThroughTower(len(streams), group.width))
                pack = graph.call_function(pack_streams, (streams,))
                pack.meta["val"] = value.new_empty(value.shape[0], len(streams), group.width)
                output = graph.call_module(path, (pack,))
                output.meta["val"] = value.new_empty(value.shape[0], len(streams) * group.width)
                outputs.append(output)
                shapes.append(tuple(tuple(s.meta["val"].shape[1:]) for s in streams))
                packed.extend(streams)
            split = graph.call_function(split_streams, (outputs, tuple(shapes)))
            split.meta["val"] = tuple(s.meta["val"] for s in packed)
            split.meta[GROUP] = group.name
            for i, old in enumerate(packed):
                new = graph.call_function(operator.getitem, (split, i))
                new.meta["val"] = old.meta["val"]
                for join in group.joins:
                    join.replace_input_with(old, new)
        return 2 * len(outputs) + 1 + len(packed)


def bring_forward(streams: list[fx.Node], point: fx.Node, order: dict[fx.Node, int]) -> None:
    """Moves the nodes that ``streams`` are computed from before ``point``, in their order."""
    pending, late = list(streams), set()
    while pending:
        node = pending.pop()
        if node not in late and order[node] > order[point]:
            late.add(node)
            pending.extend(node.all_input_nodes)
    for node in sorted(late, key=order.__getitem__):
        point.prepend(node)
