"""Rules for sums, products and reductions: what arithmetic does to changed dimensions.

See :mod:`dmt_plugin.passes.ops.rules` for what a rule is.
"""

from __future__ import annotations

from torch import fx

from dmt_plugin.passes.ops.axes import Axes, Unsupported
from dmt_plugin.passes.ops.index_patterns import mask_anew
from dmt_plugin.passes.ops.names import kept_by_reduction, shape_of, tensor_inputs
from dmt_plugin.passes.ops.walk import Walk


def elementwise(walk: Walk, node: fx.Node) -> Axes:
    """Entry by entry, with broadcasting: all inputs must have the entries that one of them has."""
    out = shape_of(node)
    result: Axes = {}
    inputs = tensor_inputs(node)
    for source in inputs:
        shift = len(out) - len(shape_of(source))
        for d, axis in walk.states[source].axes.items():
            if shape_of(source)[d] == 1 and out[d + shift] != 1:
                raise Unsupported("broadcasts a changed dimension of size 1")
            before = result.get(d + shift)
            result[d + shift] = axis if before is None else before.with_layout_of(axis)
    for source in inputs:
        shape = shape_of(source)
        shift = len(out) - len(shape)
        followed = {
            d - shift: axis for d, axis in result.items() if d >= shift and (shape[d - shift] != 1 or out[d] == 1)
        }
        missing = walk.states[source].lacks(followed)
        if missing and not mask_anew(walk, node, source, missing):
            walk.impose(source, missing)
    return result


def extreme(walk: Walk, node: fx.Node) -> Axes:
    """``max`` and ``min`` that give one tensor: of two tensors entry by entry, or of a whole tensor."""
    return elementwise(walk, node) if len(tensor_inputs(node)) > 1 else {}


def reduction(walk: Walk, node: fx.Node) -> Axes:
    """Sums and the like: the dimensions reduced over are gone, what they held no longer matters."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    axes = walk.states[source].axes
    return {to: axes[d] for to, d in kept_by_reduction(node).items() if d in axes}
