"""Spells operations of a captured graph in the terms of simpler ones that torch itself computes them with.

``repeat_interleave(x, n, dim)`` with one number for all entries is, in torch, a new dimension behind ``dim``, expanded
to ``n`` copies and flattened into it. Written so in the graph, what spreads a gate over the entries of a vector is seen
as what it is: copies of one entry, whose number may follow the vector's width. Values and gradients are the same bit
for bit. A size times one (``einops`` makes such) is the size.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from dmt_plugin.fxtools.arguments import arguments

_INTERLEAVES = ("repeat_interleave", torch.repeat_interleave)


def spell_in_simpler_terms(graph: fx.Graph) -> None:
    """Rewrites ``repeat_interleave`` with one number of copies and one dimension; drops products of sizes with one."""
    for node in list(graph.nodes):
        if node.target in _INTERLEAVES:
            _interleaved(graph, node)
        elif node.target is operator.mul and 1 in node.args and type(node.meta.get("val")) is int:
            (size,) = node.all_input_nodes
            node.replace_all_uses_with(size)
            graph.erase_node(node)


def _interleaved(graph: fx.Graph, node: fx.Node) -> None:
    call = arguments(node, "input|self", "repeats", "dim")
    source, copies, dim = call.get("input"), call.get("repeats"), call.get("dim")
    value = source.meta.get("val") if isinstance(source, fx.Node) else None
    number = copies.meta.get("val") if isinstance(copies, fx.Node) else copies
    if not isinstance(value, Tensor) or type(number) is not int or type(dim) is not int or "output_size" in call:
        return
    dim %= value.dim()

    def recorded(method: str, args: tuple[Any, ...], example: Tensor) -> fx.Node:
        made = graph.call_method(method, args)
        made.meta = {**node.meta, "val": example}
        return made

    shape = list(value.shape)
    with graph.inserting_before(node):
        apart = recorded("unsqueeze", (source, dim + 1), value.new_empty([*shape[: dim + 1], 1, *shape[dim + 1 :]]))
        sizes = [-1] * (value.dim() + 1)
        wide = recorded(
            "expand",
            (apart, *sizes[: dim + 1], copies, *sizes[dim + 2 :]),
            value.new_empty([*shape[: dim + 1], number, *shape[dim + 1 :]]),
        )
        flat = recorded("flatten", (wide, dim, dim + 1), node.meta["val"])
    node.replace_all_uses_with(flat)
    graph.erase_node(node)
