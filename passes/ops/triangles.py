"""``torch.triu_indices`` and ``torch.tril_indices``: index pairs of a triangle, whose number follows its sizes."""

from __future__ import annotations

from torch import fx

from dmt_plugin.fxtools.arguments import argument
from dmt_plugin.passes.ops.axes import Axes, Axis, Unsupported
from dmt_plugin.passes.ops.names import shape_of
from dmt_plugin.passes.ops.registry import op_by_rules
from dmt_plugin.passes.ops.walk import Walk


def _pairs(walk: Walk, node: fx.Node) -> Axes:
    offset = argument(node, 2, "offset", 0)
    computed = any(isinstance(n.meta.get("val"), int) for n in node.all_input_nodes)
    if not computed or not isinstance(offset, int) or len(node.args) < 2:
        raise Unsupported("a triangle of pairs of a computed kind")
    new = [walk.states[size].value if isinstance(size, fx.Node) else size for size in node.args[:2]]
    assert callable(node.target)
    return {1: Axis.of(shape_of(node)[1], node.target(*new, offset).shape[1])}


op_by_rules("tril_indices", "triu_indices", forward=_pairs)
