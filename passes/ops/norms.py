"""Norms and ``prelu``: layers and functions, with one weight per feature, channel or entry.

The dimension that the weights belong to may change: then the layer is made for its new size, or the parameters are.
Functions over several dimensions, or over groups of channels, are refused.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from dmt_plugin.fxtools.arguments import arguments
from dmt_plugin.passes.ops.axes import Axes, Unsupported
from dmt_plugin.passes.ops.dims import Dims, Token, Tokens, leading, tensor
from dmt_plugin.passes.ops.names import shape_of
from dmt_plugin.passes.ops.registry import layer, op
from dmt_plugin.passes.ops.walk import Walk


@layer(nn.BatchNorm1d)
def _over_samples(node: fx.Node, module: nn.BatchNorm1d) -> Dims:
    (source,) = node.all_input_nodes
    tokens = leading(len(shape_of(source)))
    return Dims(((source, tokens),), tokens, mixed=frozenset(tokens), sized=tokens[1:2])


@layer(nn.LayerNorm, nn.RMSNorm)
def _over_last(node: fx.Node, module: nn.LayerNorm | nn.RMSNorm) -> Dims:
    (source,) = node.all_input_nodes
    tokens = leading(len(shape_of(source)))
    last = tokens[len(tokens) - len(module.normalized_shape) :]
    return Dims(((source, tokens),), tokens, mixed=frozenset(last), sized=last)


def _norm_arguments(node: fx.Node) -> tuple[fx.Node, Any, dict[str, Any]]:
    call = arguments(node, "input", "normalized_shape", "weight", "bias")
    size = call["normalized_shape"]
    return tensor(call["input"]), size.meta["val"] if isinstance(size, fx.Node) else size, call


def _norm_function(walk: Walk, node: fx.Node) -> Axes:
    """The literal size follows, and so do weight and bias."""
    source, captured, call = _norm_arguments(node)
    if not isinstance(captured, (list, tuple)) or len(captured) != 1:
        raise Unsupported("a norm over several dimensions")
    axes, last = walk.states[source].axes, len(shape_of(source)) - 1
    if last in axes:
        for name in ("weight", "bias"):
            parameter = call.get(name)
            if isinstance(parameter, fx.Node) and (missing := walk.states[parameter].lacks({0: axes[last]})):
                walk.impose(parameter, missing)
        size = call["normalized_shape"]
        literal = isinstance(size, (list, tuple)) and isinstance(size[0], int)
        followed = (axes[last].new,) if literal else size
        if len(node.args) > 1:
            walk.edits[node] = ((source, followed, *node.args[2:]), dict(node.kwargs))
        else:
            walk.edits[node] = (node.args, dict(node.kwargs) | {"normalized_shape": followed})
    return dict(axes)


@op("layer_norm", "rms_norm", forward=_norm_function)
def _normed(node: fx.Node) -> Dims:
    source, captured, call = _norm_arguments(node)
    if not isinstance(captured, (list, tuple)):
        raise Unsupported("a norm over computed dimensions")
    tokens = leading(len(shape_of(source)))
    last = tokens[len(tokens) - len(captured) :]
    weights = [call[name] for name in ("weight", "bias") if isinstance(call.get(name), fx.Node)]
    return Dims(((source, tokens), *((weight, last) for weight in weights)), tokens, mixed=frozenset(last))


def _channels(source: fx.Node) -> tuple[Tokens, frozenset[Token], Tokens]:
    """Tokens of a tensor, those along which ``prelu`` tells entries apart by place, and its channels."""
    tokens = leading(len(shape_of(source)))
    return tokens, frozenset(tokens if len(tokens) == 1 else ()), tokens[1:2]


@layer(nn.PReLU)
def _prelu_layer(node: fx.Node, module: nn.PReLU) -> Dims:
    """One slope, or one per channel."""
    (source,) = node.all_input_nodes
    tokens, mixed, channels = _channels(source)
    return Dims(((source, tokens),), tokens, mixed, sized=channels if module.num_parameters != 1 else ())


@op("prelu")
def _prelu(node: fx.Node) -> Dims:
    """One slope, or one per channel."""
    source, weight = (tensor(value) for value in (*node.args, *node.kwargs.values())[:2])
    tokens, mixed, channels = _channels(source)
    slopes: Tokens = channels if shape_of(weight) != (1,) else ("slope",)
    return Dims(((source, tokens), (weight, slopes)), tokens, mixed)
