"""Replaces a torchrec ``EmbeddingBagCollection`` by the bags it holds.

A collection is one module with one jagged input and one wide output. Later passes know
single lookups only, so:

1. for every (table, feature) of the collection, read the feature's ids, offsets and
   weights from the jagged input and call the table's own ``nn.EmbeddingBag``, in the
   collection's order; that is what the collection's forward does, so the values are the
   same bit for bit;
2. forward the uses of the output: ``to_dict()[key]``, ``[key]`` and ``values()`` become the
   bags themselves (``keys()`` and ``length_per_key()`` were answered during capture);
3. any other use is a finding.

The bags keep their names: ``...embedding_bags.<table>.weight``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from dmt_plugin.capture import graph_module_over
from dmt_plugin.capture.leaves import is_bag_collection, pooled_columns
from dmt_plugin.capture.source_lines import described
from dmt_plugin.nn.graph_ops import jagged_offsets, jagged_values, jagged_weights
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult


class DissolveCollections(GraphPass):
    """See the module's docstring."""

    name = "dissolve_collections"
    contract = Contract(provides=frozenset({"single_lookups"}), conflicts_with=frozenset({"towers"}))

    def run(self, ctx: PassContext) -> PassResult:
        """Dissolves every collection of the graph."""
        nodes = [n for n in ctx.gm.graph.nodes if n.op == "call_module" and is_bag_collection(ctx.module(n))]
        changed = sum(self._dissolve(ctx, node) for node in nodes)
        if changed:  # the collection is the user's object: keep its tables, not the collection
            ctx.captured.graph_module = graph_module_over(ctx.gm, ctx.gm.graph)
        return self.result(len(nodes), changed)

    def _dissolve(self, ctx: PassContext, node: fx.Node) -> int:
        module = ctx.module(node)
        graph = ctx.gm.graph
        (features,) = [*node.args, *node.kwargs.values()]
        weighted = bool(getattr(module, "is_weighted", lambda: False)())
        value = node.meta["val"]
        read: dict[str, tuple[fx.Node, ...]] = {}
        streams: dict[str, fx.Node] = {}
        with graph.inserting_before(node):
            for key, feature, table, _ in pooled_columns(module):
                if feature not in read:
                    functions: list[Callable[..., Any]] = [jagged_values, jagged_offsets]
                    read[feature] = tuple(
                        graph.call_function(f, (features, feature))
                        for f in functions + ([jagged_weights] if weighted else [])
                    )
                values, offsets, *weights = read[feature]
                target = f"{node.target}.embedding_bags.{table}"
                stream = graph.call_module(
                    target, (values, offsets), {"per_sample_weights": weights[0]} if weights else {}
                )
                stream.meta = {**node.meta, "val": value[key]}
                streams[key] = stream
        for parts in read.values():
            for part in parts:
                part.meta["val"] = None
        self._forward_uses(ctx, node, streams)
        if not node.users:
            graph.erase_node(node)
        return len(streams)

    def _forward_uses(self, ctx: PassContext, node: fx.Node, streams: dict[str, fx.Node]) -> None:
        graph = ctx.gm.graph
        for user in list(node.users):
            if user.op == "call_method" and user.target == "to_dict":
                if all(_is_key_read(u, user) for u in user.users):
                    for read in list(user.users):
                        _replace(graph, read, streams[str(read.args[1])])
                    graph.erase_node(user)
                    continue
            elif _is_key_read(user, node):
                _replace(graph, user, streams[str(user.args[1])])
                continue
            elif user.op == "call_method" and user.target == "values" and not user.args[1:]:
                with graph.inserting_before(user):
                    joined = graph.call_function(torch.cat, (list(streams.values()),), {"dim": 1})
                joined.meta["val"] = user.meta["val"]
                _replace(graph, user, joined)
                continue
            what = "leaves the model as it is" if user.op == "output" else f"is handed to {described(user)}"
            ctx.find(
                "DMT210", "error", str(node.target),
                f"the pooled output of this collection {what}, so that it is not known which of its vectors are used",
                "give tensors instead: kt.values(), kt[key], or the dict kt.to_dict()",
                at=user if user.op != "output" else node,
            )  # fmt: skip


def _is_key_read(node: fx.Node, source: fx.Node) -> bool:
    return node.target is operator.getitem and node.args[0] is source and isinstance(node.args[1], str)


def _replace(graph: fx.Graph, node: fx.Node, by: fx.Node) -> None:
    node.replace_all_uses_with(by)
    graph.erase_node(node)
