"""Rewrites pairs of features that are listed as vectors to pairs gathered by index from one join.

Product networks build two lists of vectors in Python, ``[v0, v0, v1]`` and ``[v1, v2, v2]``,
and join each. The lists hold features several times, so they cannot take other streams as
they are. The same values come of one join of all vectors and two index lists:

1. Find joins of streams along one dimension of their own: ``stack`` of ``(B, N)``, ``cat`` of
   ``(B, 1, N)``, both giving ``(B, pairs, N)``, of streams only.
2. Two such joins of the same length belong together if side by side they are a known
   enumeration of the pairs of the streams that they hold, in the order in which another join
   holds them, else in the model's order; and if besides such lists all of them have the same
   uses, so that the group can become regular.
3. Put one join of those streams before them, and ``join[:, list]`` in the place of each.

The rest is that of a model written with index lists: the group is regular, and the shape
repair makes new lists. Values are the same bit for bit; the gradient of a vector is
added up in another order, so this is done only where tower modules change the model anyway.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from dmt_plugin.fxtools.arguments import argument
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.logical.gather_streams import computed_alone
from dmt_plugin.passes.logical.insert_towers import bring_forward
from dmt_plugin.passes.ops.axes import Axis, Unsupported
from dmt_plugin.passes.ops.index_patterns import enumerated_anew

_STACKS: set[Callable[..., Any]] = {torch.stack}
_CONCATENATIONS: set[Callable[..., Any]] = {torch.cat, torch.concat, torch.concatenate}


class PickPairs(GraphPass):
    """See the module's docstring."""

    name = "pick_pairs"
    contract = Contract(
        provides=frozenset({"picked_pairs"}), requires=frozenset({"regions"}), conflicts_with=frozenset({"groups"})
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Rewrites every two joins that enumerate pairs."""
        if ctx.config.towers.module in ("none", "preserve"):
            return self.result(0)
        streams = list(dict.fromkeys(ctx.facts.stream_of(lookup) for lookup in ctx.facts.leading()))
        joins = {node: held for node in ctx.gm.graph.nodes if (held := _held(node, set(streams)))}
        lists = [node for node, held in joins.items() if len(set(held)) < len(held)]
        alone = computed_alone(ctx)
        done: set[fx.Node] = set()
        for rows, columns in itertools.combinations(lists, 2):
            if {rows, columns} & done or len(joins[rows]) != len(joins[columns]):
                continue
            used = {*joins[rows], *joins[columns]}
            whole = (held for held in joins.values() if len(held) == len(used) and set(held) == used)
            order = next(whole, [s for s in streams if s in used])
            elsewhere = {frozenset(set(s.users) - set(lists)) for s in order}
            if len(elsewhere) == 1 and all(alone[s] for s in order) and _enumerates(joins[rows], joins[columns], order):
                _rewrite(ctx.gm.graph, rows, columns, order, joins)
                done |= {rows, columns}
        return self.result(len(lists), len(done))


def _held(node: fx.Node, streams: set[fx.Node]) -> list[fx.Node]:
    """The streams that a join lays along a dimension of their own, ``(B, n, N)``; empty for any other node."""
    if node.op != "call_function" or node.target not in _STACKS | _CONCATENATIONS:
        return []
    held, dim = argument(node, 0, "tensors"), argument(node, 1, "dim|axis", 0)
    if not isinstance(held, (list, tuple)) or any(entry not in streams for entry in held):
        return []
    rank = 2 if node.target in _STACKS else 3
    shapes = {tuple(entry.meta["val"].shape[1:]) for entry in held}
    own = len(shapes) == 1 and all(len(s) == rank - 1 and s[: rank - 2] == (1,) * (rank - 2) for s in shapes)
    return list(held) if own and isinstance(dim, int) and dim % 3 == 1 else []


def _enumerates(rows: list[fx.Node], columns: list[fx.Node], order: list[fx.Node]) -> bool:
    number = {stream: i for i, stream in enumerate(order)}
    halves = torch.tensor([[number[s] for s in half] for half in (rows, columns)])
    same = Axis.of(len(order), len(order))
    try:
        return any(enumerated_anew(pairs, same) is not None for pairs in (halves, halves.flip(0)))
    except Unsupported:  # several kinds of pairs look like this; the group is irregular then
        return False


def _rewrite(
    graph: fx.Graph, rows: fx.Node, columns: fx.Node, order: list[fx.Node], joins: dict[fx.Node, list[fx.Node]]
) -> None:
    position = {node: i for i, node in enumerate(graph.nodes)}
    first = min(rows, columns, key=position.__getitem__)
    bring_forward(order, first, position)
    with graph.inserting_before(first):
        whole = graph.call_function(rows.target, (list(order), 1))  # type: ignore[arg-type]
    value = rows.meta["val"]
    whole.meta["val"] = value.new_empty(value.shape[0], len(order), value.shape[2])
    number = {stream: i for i, stream in enumerate(order)}
    for join in (rows, columns):
        index = (slice(None), [number[stream] for stream in joins[join]])
        with graph.inserting_before(join):
            picked = graph.call_function(operator.getitem, (whole, index))
        picked.meta["val"] = join.meta["val"]
        join.replace_all_uses_with(picked)
        graph.erase_node(join)
