"""Rules for sums, products and reductions: what arithmetic does to changed dimensions.

See :mod:`dmt_plugin.passes.shape_rules` for what a rule is.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from dmt_plugin.passes.axes import Axes, Unsupported
from dmt_plugin.passes.shape_ops import name_of, shape_of, tensor_inputs
from dmt_plugin.passes.shape_sweep import Sweep


def elementwise(sweep: Sweep, node: fx.Node) -> Axes:
    """Entry by entry, with broadcasting: all inputs must have the entries that one of them has."""
    out = shape_of(node)
    result: Axes = {}
    inputs = tensor_inputs(node)
    for source in inputs:
        shift = len(out) - len(shape_of(source))
        for d, axis in sweep.states[source].axes.items():
            if shape_of(source)[d] == 1 and out[d + shift] != 1:
                raise Unsupported("broadcasts a changed dimension of size 1")
            if d + shift in result and result[d + shift].new != axis.new:
                raise Unsupported(f"combines {result[d + shift].new} with {axis.new} entries")
            result.setdefault(d + shift, axis)
    for source in inputs:
        shape = shape_of(source)
        shift = len(out) - len(shape)
        for d, axis in result.items():
            own = d - shift
            if own >= 0 and (shape[own] != 1 or out[d] == 1) and own not in sweep.states[source].axes:
                sweep.force(source, own, axis)
    return result


def reduction(sweep: Sweep, node: fx.Node) -> Axes:
    """Sums and the like: the dimensions reduced over are gone, what they held no longer matters."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    shape = shape_of(source)
    kwargs = dict(node.kwargs)
    position = 2 if name_of(node) == "norm" else 1
    given: Any = kwargs.get("dim", kwargs.get("axis", node.args[position] if len(node.args) > position else None))
    if isinstance(given, (fx.Node, bool)):
        raise Unsupported("reduces over a computed dimension")
    listed = range(len(shape)) if given is None else [given] if isinstance(given, int) else given
    gone = {int(d) % len(shape) for d in listed}
    keep = len(shape_of(node)) == len(shape)
    left = [d for d in range(len(shape)) if keep or d not in gone]
    axes = sweep.states[source].axes
    return {to: axes[d] for to, d in enumerate(left) if d in axes and d not in gone}


def matmul(sweep: Sweep, node: fx.Node) -> Axes:
    """Matrix products, also batched."""
    a, b = node.args[0], node.args[1] if len(node.args) > 1 else next(iter(node.kwargs.values()))
    assert isinstance(a, fx.Node) and isinstance(b, fx.Node)
    rank_a, rank_b = len(shape_of(a)), len(shape_of(b))
    if rank_a < 2 or rank_b < 2:
        raise Unsupported("multiplies by a vector")
    axes_a, axes_b = sweep.states[a].axes, sweep.states[b].axes
    contract(sweep, a, rank_a - 1, b, rank_b - 2)
    rank = len(shape_of(node))
    result: Axes = {}
    for axes, own in ((axes_a, rank_a), (axes_b, rank_b)):
        for d, axis in axes.items():
            if d < own - 2:
                result[d + rank - own] = axis
    if rank_a - 2 in axes_a:
        result[rank - 2] = axes_a[rank_a - 2]
    if rank_b - 1 in axes_b:
        result[rank - 1] = axes_b[rank_b - 1]
    return result


def contract(sweep: Sweep, a: fx.Node, dim_a: int, b: fx.Node, dim_b: int) -> None:
    """Two dimensions summed over together must have the same entries."""
    left, right = sweep.states[a].axes.get(dim_a), sweep.states[b].axes.get(dim_b)
    if left is not None and right is None:
        sweep.force(b, dim_b, left)
    if right is not None and left is None:
        sweep.force(a, dim_a, right)
    if left is not None and right is not None and left.new != right.new:
        raise Unsupported(f"contracts {left.new} with {right.new} entries")


def linear_function(sweep: Sweep, node: fx.Node) -> Axes:
    """``F.linear`` with weight and bias as parameters."""
    call = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | dict(node.kwargs)
    x, weight, bias = call["input"], call["weight"], call.get("bias")
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node)
    last = len(shape_of(x)) - 1
    contract(sweep, x, last, weight, 1)
    result = {d: axis for d, axis in sweep.states[x].axes.items() if d != last}
    out = sweep.states[weight].axes.get(0)
    if isinstance(bias, fx.Node):
        shift = sweep.states[bias].axes.get(0)
        if out is not None and shift is None:
            sweep.force(bias, 0, out)
        if shift is not None and out is None:
            sweep.force(weight, 0, shift)
    if out is not None:
        result[last] = out
    return result
