"""Finds where the streams of a model are joined, and groups lookups by it.

1. The stream of a lookup is its result behind any ``unsqueeze``/``squeeze``/``view`` that
   keeps one vector per sample: ``(B, N)`` or ``(B, 1, N)``.
2. A join is an operation with a list argument, such as ``cat`` or ``stack``, that holds
   streams. Lookups whose streams enter the same joins form a group.
3. A group can go through towers if each of its streams is only used by those joins, once
   in each list, all in the same order, side by side behind the batch or stacked, all of
   one width above 1, and if there are enough of them. Otherwise it is transport only:
   moved by the hierarchical route, numbers unchanged.
4. Post-dominators (networkx on the reversed graph) tell where all branches behind a
   group's joins have met; that bounds what a change of width can touch and is reported.

Rules look at the graph, never at the name of a class or of a variable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import torch
from torch import fx

from dmt_plugin.passes.base import Contract, GraphPass, Lookup, PassContext, PassResult, StreamGroup

_VIEWS = {
    "unsqueeze", "squeeze", "view", "reshape", "flatten", "contiguous", "float",
    torch.unsqueeze, torch.squeeze, torch.reshape, torch.flatten,
}  # fmt: skip
_CONCATENATIONS: set[Callable[..., Any]] = {torch.cat, torch.concat, torch.concatenate}
_STACKS: set[Callable[..., Any]] = {torch.stack}


class FindJoins(GraphPass):
    """See the module's docstring."""

    name = "find_joins"
    contract = Contract(provides=frozenset({"groups"}), requires=frozenset({"lookups"}))

    def run(self, ctx: PassContext) -> PassResult:
        """Fills ``ctx.groups``."""
        streams = [_stream_of(lookup.node) for lookup in ctx.lookups]
        position = {node: i for i, node in enumerate(ctx.gm.graph.nodes)}
        by_joins: dict[tuple[fx.Node, ...], list[int]] = {}
        for i, stream in enumerate(streams):
            by_joins.setdefault(tuple(sorted(stream.users, key=position.__getitem__)), []).append(i)
        behind = _post_dominators(ctx.gm.graph)
        wanted = ctx.config.towers.module != "none"
        for members in by_joins.values():
            group = self._group(
                ctx, f"group{len(ctx.groups)}", [ctx.lookups[i] for i in members], [streams[i] for i in members]
            )
            group.meeting_point = _meeting_point(behind, group.joins or [n for s in group.streams for n in s.users])
            ctx.groups.append(group)
            if group.kind == "transport" and wanted:
                self._report(ctx, group)
        if wanted and not any(g.kind == "tower" for g in ctx.groups):
            ctx.find(
                "DMT303",
                "warning" if ctx.config.transform.on_unsupported == "transport" else "error",
                "",
                "no group of features can go through tower modules, so the model would only be moved differently",
                'set dmt.towers.module to "none" to use the hierarchical route alone',
            )
        return self.result(len(ctx.groups), note=", ".join(f"{g.name}:{g.kind}x{len(g.lookups)}" for g in ctx.groups))

    def _group(
        self, ctx: PassContext, name: str, lookups: list[Lookup], streams: list[fx.Node]
    ) -> StreamGroup:
        joins = list(streams[0].users)
        reason = ctx.blocked.get(name) or _why_not(lookups, streams, joins)
        widths = {lookup.dim for lookup in lookups}
        width = widths.pop() if len(widths) == 1 else 0
        if reason:
            return StreamGroup(name, "transport", lookups, [x.node for x in lookups], [], width, reason)
        entered = _list_argument(joins[0])
        order = sorted(range(len(streams)), key=lambda i: entered.index(streams[i]))
        return StreamGroup(name, "tower", [lookups[i] for i in order], [streams[i] for i in order], joins, width)

    def _report(self, ctx: PassContext, group: StreamGroup) -> None:
        if group.width == 1 or len(group.lookups) < 3:
            ctx.find(
                "DMT301",
                "info",
                group.lookups[0].table,
                f"{group.name} ({len(group.lookups)} lookup(s)) moves as it is: {group.reason}",
            )
            return
        ctx.find(
            "DMT302",
            "warning" if ctx.config.transform.on_unsupported == "transport" else "error",
            group.lookups[0].table,
            f"{group.name} ({len(group.lookups)} lookups) cannot go through tower modules: {group.reason}",
            'set dmt.transform.on_unsupported to "transport" to move this group unchanged, dmt.towers.module to '
            '"none" to do so for all, or join the features with one torch.cat or torch.stack',
        )


def _stream_of(node: fx.Node) -> fx.Node:
    """Follows views that keep one vector per sample."""
    while len(node.users) == 1:
        (user,) = node.users
        width = node.meta["val"].shape[-1]
        value = user.meta.get("val")
        if user.target not in _VIEWS or not isinstance(value, torch.Tensor) or user.args[:1] != (node,):
            break
        if any(isinstance(a, fx.Node) for a in user.args[1:]) or user.kwargs.keys() - {"dim", "start_dim"}:
            break
        shape = tuple(value.shape)
        if shape[1:] not in ((width,), (1, width)) or shape[0] != node.meta["val"].shape[0]:
            break
        node = user
    return node


def _list_argument(node: fx.Node) -> list[Any]:
    first = node.args[0] if node.args else node.kwargs.get("tensors")
    return list(first) if isinstance(first, (list, tuple)) else []


def _dim_of(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))


def _why_not(lookups: list[Lookup], streams: list[fx.Node], joins: list[fx.Node]) -> str:
    if len(streams) < 3:
        return f"{len(streams)} feature(s) are too few to compress"
    widths = sorted({lookup.dim for lookup in lookups})
    if widths == [1]:
        return "first-order weights of width 1 cannot be compressed"
    if len(widths) > 1:
        return f"its features have the widths {widths}; a tower needs one width"
    if len({x.feature for x in lookups}) < len(lookups):
        return "one feature enters the join through several tables"
    if not joins:
        return "its lookups are not used"
    shapes = {tuple(s.meta["val"].shape) for s in streams}
    if len(shapes) > 1:
        return f"its streams have different shapes {sorted(shapes)}"
    rank = len(next(iter(shapes)))
    orders = []
    for join in joins:
        entered = _list_argument(join)
        if join.op != "call_function" or join.target not in _CONCATENATIONS | _STACKS or not entered:
            return f"its features are used by {join.name} ({join.op} {join.target}), which is not a cat or stack"
        if any(entered.count(s) != 1 for s in streams):
            return f"{join.name} holds one of its features more than once"
        dim = _dim_of(join)
        # (B, 1, N) streams lie side by side along either dimension behind the batch.
        allowed = {1, 1 - rank, rank - 1, -1} if join.target in _CONCATENATIONS else {1, -rank}
        if dim not in allowed or (join.target in _STACKS and rank != 2):
            return f"{join.name} joins along dimension {dim!r}, not side by side"
        orders.append([s for s in entered if s in set(streams)])
    if any(order != orders[0] for order in orders):
        return f"the joins {[j.name for j in joins]} hold its features in different orders"
    return ""


def _post_dominators(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Immediate post-dominator of each node that reaches the output."""
    reversed_graph: nx.DiGraph[fx.Node] = nx.DiGraph()
    output = next(n for n in reversed(graph.nodes) if n.op == "output")
    reversed_graph.add_node(output)
    for node in graph.nodes:
        for user in node.users:
            reversed_graph.add_edge(user, node)
    return dict(nx.immediate_dominators(reversed_graph, output))


def _meeting_point(behind: dict[fx.Node, fx.Node], joins: list[fx.Node]) -> str:
    chains = []
    for join in joins:
        chain = [join]
        while chain[-1] in behind and behind[chain[-1]] not in (chain[-1], None):
            chain.append(behind[chain[-1]])
        chains.append(chain)
    if not chains:
        return ""
    common = [n for n in chains[0] if all(n in chain for chain in chains[1:])]
    return common[0].name if common else ""
