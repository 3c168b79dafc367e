"""Decides, per feature, whether a table's owner sends looked-up rows or the feature's finished stream.

Work on one feature alone (:mod:`dmt_plugin.passes.logical.find_regions`) may run in two places:

* at the table's owner, right behind the lookup, where the ids are as well: a masked sum of a
  sequence. One table, whole on its lane, no parameters, and either the ids are needed or the
  result is smaller.
* in the tower, where all rows of the feature meet: a product of quotient and remainder rows, a
  projection to the common width.

In both cases the nodes are copied, with rows (and ids) of other samples as inputs; the nodes
of the logical graph are dropped once nothing uses them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from dmt_plugin.nn.graph_ops import graph_function
from dmt_plugin.passes.base import PassContext
from dmt_plugin.passes.facts import Lookup, Region


@dataclass(frozen=True)
class SentValue:
    """One lookup, and the logical node whose value its owner sends.

    Attributes:
        lookup: the lookup.
        node: the node: the lookup's own, or the stream behind it.
        width: entries per sample.
        region: the work that the owner does, if any.
    """

    lookup: Lookup
    node: fx.Node
    width: int
    region: Region | None = None


def sent_values_of(ctx: PassContext) -> list[SentValue]:
    """One value per lookup of ``ctx``, in their order."""
    plan = ctx.plan
    assert plan is not None
    return [
        _sent_value(lookup, ctx.facts.regions.get(lookup.node), plan.kind_of(lookup.table) == "table_wise")
        for lookup in ctx.facts.lookups
    ]


def _sent_value(lookup: Lookup, region: Region | None, whole: bool) -> SentValue:
    # No owner of a divided table has the rows that the region works on; table_placement refuses one that needs ids.
    if whole and region is not None and len(region.lookups) == 1 and not region.layers:
        width = math.prod(region.stream.meta["val"].shape[1:])
        if region.ids or width < lookup.width:
            return SentValue(lookup, region.stream, width, region)
    return SentValue(lookup, lookup.node, lookup.width)


def width_by_sample(ctx: PassContext, lookup: Lookup) -> int:
    """Entries per sample that the owner of a lookup's table sends, if it holds all of it."""
    return _sent_value(lookup, ctx.facts.regions.get(lookup.node), whole=True).width


@graph_function
def slot_ids(routed: Any, slot: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The ids of one slot as the model has them.

    Args:
        routed: ids that arrived at this rank (:class:`dmt_plugin.comm.input_dist.input_dist.RoutedIds`).
        slot: which of this rank's slots; its number of ids per sample is fixed.
        shape: their shape behind the samples.
        dtype: their type in the model.
    """
    values: Tensor = routed.values[slot]
    return values.view(routed.layout.rows, *shape).to(dtype)


def shaped(graph: fx.Graph, column: fx.Node, like: fx.Node) -> fx.Node:
    """A flat column ``(rows, W)`` in the shape of a logical node, ``(rows, L, N)`` for a sequence."""
    shape = tuple(like.meta["val"].shape)
    return column if len(shape) == 2 else graph.call_method("unflatten", (column, 1, shape[1:]))


def copied_region(graph: fx.Graph, region: Region, rows: Callable[[fx.Node], fx.Node], ids: Any = None) -> fx.Node:
    """The stream of a region, computed from other rows.

    Args:
        graph: where the copies go, at the current insertion point.
        region: the work.
        rows: gives the rows in place of a lookup, in its shape.
        ids: gives the ids in place of an index node.
    """
    copies: dict[fx.Node, fx.Node] = {node: rows(node) for node in region.lookups}
    copies.update({node: ids(node) for node in region.ids})

    def input_of(node: fx.Node) -> fx.Node:
        if node not in copies:  # an index that was made for other sizes; or a constant, which is no sample's
            copies[node] = graph.node_copy(node) if node.op == "get_attr" else node
        return copies[node]

    for node in region.nodes:
        copies[node] = graph.node_copy(node, input_of)
    return copies[region.stream]
