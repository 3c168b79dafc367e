"""Rules for norms: layers and functions, with one weight per feature, channel or entry.

The dimension that the weights belong to may change: then the layer is made anew, or its
parameters are. Functions over several dimensions, or over groups of channels, are refused.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from dmt_plugin.passes.ops.axes import Axes, Unsupported
from dmt_plugin.passes.ops.names import shape_of
from dmt_plugin.passes.ops.walk import Walk


def norm_module(walk: Walk, node: fx.Node) -> Axes:
    """``BatchNorm1d`` over dimension 1; ``LayerNorm`` and ``RMSNorm`` over the last ones."""
    (source,) = node.all_input_nodes
    axes = walk.states[source].axes
    module = walk.gm.get_submodule(str(node.target))
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        rank = len(shape_of(source))
        walk.note_input(node, *(axes.get(d) for d in range(rank - len(module.normalized_shape), rank)))
    else:
        walk.note_input(node, axes.get(1))
    return dict(axes)


def norm_function(walk: Walk, node: fx.Node) -> Axes:
    """``F.layer_norm`` and ``F.rms_norm``: the literal size follows, and so do weight and bias."""
    names = ("input", "normalized_shape", "weight", "bias")
    call: dict[str, Any] = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    source, size = call["input"], call["normalized_shape"]
    axes, last = walk.states[source].axes, len(shape_of(source)) - 1
    captured = size.meta["val"] if isinstance(size, fx.Node) else size
    if not isinstance(captured, (list, tuple)) or len(captured) != 1:
        raise Unsupported("a norm over several dimensions")
    if last in axes:
        for name in ("weight", "bias"):
            parameter = call.get(name)
            if isinstance(parameter, fx.Node) and (missing := walk.states[parameter].lacks({0: axes[last]})):
                walk.impose(parameter, missing)
        literal = isinstance(size, (list, tuple)) and isinstance(size[0], int)
        followed = (axes[last].new,) if literal else size
        if len(node.args) > 1:
            walk.edits[node] = ((source, followed, *node.args[2:]), dict(node.kwargs))
        else:
            walk.edits[node] = (node.args, dict(node.kwargs) | {"normalized_shape": followed})
    return dict(axes)


def prelu_module(walk: Walk, node: fx.Node) -> Axes:
    """``nn.PReLU``: one slope, or one per channel."""
    (source,) = node.all_input_nodes
    axes = walk.states[source].axes
    module = walk.gm.get_submodule(str(node.target))
    assert isinstance(module, nn.PReLU)
    if module.num_parameters != 1:
        walk.note_input(node, axes.get(1))
    return dict(axes)


def prelu(walk: Walk, node: fx.Node) -> Axes:
    """``F.prelu``: one slope, or one per channel."""
    source, weight = (*node.args, *node.kwargs.values())[:2]
    assert isinstance(source, fx.Node) and isinstance(weight, fx.Node)
    axes = walk.states[source].axes
    if 1 in axes and shape_of(weight) != (1,) and (missing := walk.states[weight].lacks({0: axes[1]})):
        walk.impose(weight, missing)
    return dict(axes)
