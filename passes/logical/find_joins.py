"""Finds where the streams of a model are joined, and groups lookups by it.

1. A stream is what a feature brings in (:mod:`dmt_plugin.passes.logical.find_regions`): one vector per
   sample, ``(B, N)`` or ``(B, 1, N)``.
2. A join is an operation with a list argument, such as ``cat`` or ``stack``, that holds
   streams. Lookups whose streams enter the same joins form a group.
3. A group can go through towers if each of its streams is only used by those joins, once
   in each list, all in the same order, side by side behind the batch or stacked, all of
   one width above 1, and if there are enough of them.
4. The rest can go through towers too, where the configuration says so, if the model behind
   gets streams of the old shapes (``"decoder"``, ``"preserve"``): then it does not matter
   what uses them. :mod:`dmt_plugin.passes.logical.gather_streams` forms those groups.
5. What is left is transport only: moved by the hierarchical route, numbers unchanged. So are rows by id, and what
   else is looked up in their tables: they are asked for at the tables' owners, and towers see samples.
6. A plan that was given may group them otherwise (:mod:`dmt_plugin.passes.logical.planned_groups`).
7. Post-dominators (networkx on the reversed graph) say where all branches behind a
   group's joins have met; that bounds what a change of width can touch and is reported.

Rules look at the graph, never at the name of a class or of a variable.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import networkx as nx
import torch
from torch import fx

from dmt_plugin.fxtools.arguments import argument
from dmt_plugin.passes.analysis.marked_names import group_name
from dmt_plugin.passes.base import WAYS_OUT, Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.facts import Lookup, StreamGroup
from dmt_plugin.passes.logical.by_id import BY_ID, say_by_id
from dmt_plugin.passes.logical.gather_streams import FEWEST, Members, fallback_form, gather
from dmt_plugin.passes.logical.planned_groups import as_planned
from dmt_plugin.passes.ops.joins import joined_parts

_CONCATENATIONS: set[Callable[..., Any]] = {torch.cat, torch.concat, torch.concatenate}
_STACKS: set[Callable[..., Any]] = {torch.stack}


class FindJoins(GraphPass):
    """See the module's docstring."""

    name = "find_joins"
    contract = Contract(provides=frozenset({"groups"}), requires=frozenset({"regions"}))

    def run(self, ctx: PassContext) -> PassResult:
        """Fills ``ctx.facts.groups``."""
        lookups = ctx.facts.leading()
        streams = [ctx.facts.stream_of(lookup) for lookup in lookups]
        position = {node: i for i, node in enumerate(ctx.gm.graph.nodes)}
        by_id = {i for i, lookup in enumerate(lookups) if lookup.table in ctx.facts.tables_by_id}
        by_joins: dict[tuple[fx.Node, ...], list[int]] = {}
        for i, stream in enumerate(streams):
            if stream.users and i not in by_id:
                by_joins.setdefault(tuple(sorted(stream.users, key=position.__getitem__)), []).append(i)
        regular: list[list[int]] = []
        irregular: list[Members] = []
        for members in by_joins.values():
            own = [streams[i] for i in members]
            reason = _why_not([lookups[i] for i in members], own, list(own[0].users))
            if reason:
                irregular.append((members, reason))
            else:
                regular.append(members)
        form = fallback_form(ctx.config)
        gathered, left = gather(ctx, streams, irregular)
        could = {lookups[i].table for members, _ in gathered for i in members}
        found = [
            *((_in_order(members, streams), "native", "") for members in regular),
            *((members, form, reason) for members, reason in (gathered if form else ())),
            *((members, "", reason) for members, reason in (left if form else irregular)),
            *(([i], "", BY_ID) for i in sorted(by_id) if streams[i].users),
        ]
        found = as_planned(ctx, streams, found)
        behind = _post_dominators(ctx.gm.graph)
        for members, how, reason in sorted(found, key=lambda entry: min(entry[0])):
            users = sorted({u for i in members for u in streams[i].users}, key=position.__getitem__)
            group = _group(ctx, _name(ctx, [lookups[i] for i in members]), members, streams, users, how, reason)
            group.meeting_point = _meeting_point(behind, users)
            ctx.facts.groups.append(group)
        if ctx.config.towers.module != "none":
            self._report(ctx, [x.table for x, s in zip(lookups, streams, strict=True) if not s.users], could)
        note = ", ".join(f"{g.name}:{g.kind}x{len(g.lookups)}" for g in ctx.facts.groups)
        return self.result(len(ctx.facts.groups), note=note)

    def _report(self, ctx: PassContext, unused: list[str], could: set[str]) -> None:
        """Findings: lookups that are ``unused``, and groups that only move, though some ``could`` do more."""
        if unused:
            ctx.find("DMT301", "info", unused[0], f"the model does not use the rows of {unused}; they are in no group")
        joins = {join: g.name for g in ctx.facts.groups if g.kind == "tower" for join in g.joins}
        for group in (g for g in ctx.facts.groups if g.kind == "transport"):
            if group.reason == BY_ID:
                say_by_id(ctx, group.lookups[0])
                continue
            users = {user for x in group.lookups for user in ctx.facts.stream_of(x).users}
            joined = sorted({joins[user] for user in users if user in joins})
            if joined and users - joins.keys() and len(group.lookups) < FEWEST:
                outside = sorted(user.name for user in users - joins.keys())
                ctx.find(
                    "DMT306", "warning", group.lookups[0].table,
                    f"{[x.feature for x in group.lookups]} enter the join of {joined[0]}, and are used by {outside} "
                    "besides, which need the vectors as they are; so they move as they are",
                    "look the feature up in a table of its own for the other use, to have it in the tower",
                    at=[user for user in users if user not in joins],
                )  # fmt: skip
                continue
            if group.width == 1 or len(group.lookups) < FEWEST:
                ctx.find(
                    "DMT301", "info", group.lookups[0].table,
                    f"{group.name} ({len(group.lookups)} lookup(s)) moves as it is: {group.reason}",
                    "with others it could go through towers that keep its shape: set dmt.transform.on_unsupported to "
                    '"decoder" or "preserve"' if group.lookups[0].table in could else "",
                    at=group.lookups[0].node,
                )  # fmt: skip
                continue
            ctx.find(
                "DMT302", ctx.unsupported, group.lookups[0].table,
                f"{group.name} ({len(group.lookups)} lookups) cannot go through tower modules: {group.reason}",
                f"join the features with one torch.cat or torch.stack, or {WAYS_OUT}",
                at=[*sorted(users, key=lambda user: user.name), group.lookups[0].node],
            )  # fmt: skip
        if len(ctx.facts.groups) == 1 and len(ctx.facts.groups[0].lookups) == 1:
            (alone,) = ctx.facts.groups[0].lookups
            way = 'set dmt.towers.module to "none" with one tower, or train the model as it is'
            several = ""
            if alone.pooling == "none":
                several = f", and its {alone.hotness} ids a sample are taken for a sequence"
                way = (
                    "if each of these ids is a feature of its own, whose rows the data pipeline keeps apart, say how "
                    f'many rows each has: "lookup": {{"fields": {{"{alone.table}": [rows of the first, ...]}}}} in the '
                    f"dmt section; or {way}"
                )
            ctx.find(
                "DMT305", ctx.unsupported, alone.table,
                f"the model looks up this feature alone{several}; a tower compresses what several features have in "
                "common",
                way,
                at=alone.node,
            )  # fmt: skip
        elif not any(g.kind == "tower" for g in ctx.facts.groups):
            ctx.find(
                "DMT303", ctx.unsupported, "",
                "no group of features can go through tower modules, so the model would only be moved differently",
                f'{WAYS_OUT}; or set dmt.towers.module to "none" to use the hierarchical route alone',
                at=[user for lookup in ctx.facts.leading() for user in ctx.facts.stream_of(lookup).users],
            )  # fmt: skip


def _group(
    ctx: PassContext, name: str, members: list[int], streams: list[fx.Node], users: list[fx.Node], form: str, why: str
) -> StreamGroup:
    """A group; ``form`` is empty for one that only moves."""
    entering = ctx.facts.leading()
    lookups = [entering[i] for i in members]
    if form == "native" and name in ctx.blocked:
        form, why = fallback_form(ctx.config), ctx.blocked[name]
    elif form == "native" and ctx.config.towers.module == "preserve":
        form = "preserve"
    if form:
        own = [streams[i] for i in members]
        return StreamGroup(name, "tower", lookups, own, users, int(own[0].meta["val"].shape[-1]), why, form=form)
    moved = {streams[i] for i in members}
    lookups = [lookup for lookup, stream in zip(entering, streams, strict=True) if stream in moved]
    widths = {lookup.dim for lookup in lookups}
    width = widths.pop() if len(widths) == 1 else 0
    return StreamGroup(name, "transport", lookups, [x.node for x in lookups], [], width, why)


def _name(ctx: PassContext, lookups: list[Lookup]) -> str:
    """What the user's markers call the group, where they agree, else its number."""
    marked = {group_name(ctx, lookup.node) for lookup in lookups}
    name = marked.pop() if len(marked) == 1 else None
    free = name is not None and name.isidentifier() and all(group.name != name for group in ctx.facts.groups)
    return name if name is not None and free else f"group{len(ctx.facts.groups)}"


def _in_order(members: list[int], streams: list[fx.Node]) -> list[int]:
    """Members in the order in which they are joined."""
    entered = joined_parts(next(iter(streams[members[0]].users)))
    return sorted(members, key=lambda i: entered.index(streams[i]))


def _why_not(lookups: list[Lookup], streams: list[fx.Node], joins: list[fx.Node]) -> str:
    if len(streams) < FEWEST:
        return f"{len(streams)} feature(s) are too few to compress"
    shapes = {tuple(s.meta["val"].shape) for s in streams}
    widths = sorted({shape[-1] for shape in shapes})
    if any(shape[1:] not in ((shape[-1],), (1, shape[-1])) for shape in shapes):
        return "its features have several vectors a sample"
    if widths == [1]:
        return "first-order weights of width 1 cannot be compressed"
    if len(widths) > 1:
        return f"its features have the widths {widths}; a tower needs one width"
    if len({x.feature for x in lookups}) < len(lookups):
        return "one feature enters the join through several tables"
    if len(shapes) > 1:
        return f"its streams have different shapes {sorted(shapes)}"
    rank = len(next(iter(shapes)))
    orders = []
    for join in joins:
        entered = joined_parts(join)
        if join.op != "call_function" or join.target not in _CONCATENATIONS | _STACKS or not entered:
            return f"its features are used by {join.name} ({join.op} {join.target}), which is not a cat or stack"
        if any(entered.count(s) != 1 for s in streams):
            return f"{join.name} holds one of its features more than once"
        dim = argument(join, 1, "dim|axis", 0)
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
