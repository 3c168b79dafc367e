"""The rule for products of tensors (:mod:`dmt_plugin.passes.ops.products`), and for convolutions and bilinear layers.

1. Put the operation down in letters.
2. A letter whose dimension changed in one factor has changed in all: those that did not
   follow must (:meth:`Walk.force`), except where they are broadcast.
3. Summed letters are gone; what they held no longer matters.
"""

from __future__ import annotations

from torch import fx, nn

from dmt_plugin.passes.ops.axes import Axes, Axis, Unsupported
from dmt_plugin.passes.ops.names import name_of, shape_of
from dmt_plugin.passes.ops.products import Token, product_of
from dmt_plugin.passes.ops.walk import Walk


def product(walk: Walk, node: fx.Node) -> Axes:
    """Products of tensors: see the module's docstring."""
    found = product_of(node, name_of(node))
    axes: dict[Token, Axis] = {}
    for source, tokens in found.terms:
        for d, axis in walk.states[source].axes.items():
            token = tokens[d]
            if shape_of(source)[d] == 1 and found.size(token) != 1:
                raise Unsupported("broadcasts a changed dimension of size 1")
            before = axes.get(token)
            axes[token] = axis if before is None else before.with_layout_of(axis)
    for source, tokens in found.terms:
        shape = shape_of(source)
        followed = [d for d, token in enumerate(tokens) if shape[d] != 1 or found.size(token) == 1]
        if missing := walk.states[source].lacks({d: axes[tokens[d]] for d in followed if tokens[d] in axes}):
            walk.impose(source, missing)
    return {d: axes[token] for d, token in enumerate(found.result) if token in axes}


def is_convolution(module: nn.Module) -> bool:
    """Whether a layer computes what ``nn.Conv1d`` computes."""
    return isinstance(module, nn.Conv1d) and type(module).forward is nn.Conv1d.forward


def convolution(walk: Walk, node: fx.Node) -> Axes:
    """``nn.Conv1d``: a full product over the channels; positions pass through if each is taken by itself.

    Input ``(B, C, L)`` or ``(C, L)``, result ``(B, O, L')`` or ``(O, L')``.
    """
    (source,) = node.all_input_nodes
    module = walk.gm.get_submodule(str(node.target))
    assert isinstance(module, nn.Conv1d)
    axes = walk.states[source].axes
    positions = len(shape_of(source)) - 1
    channels = positions - 1
    window = (module.kernel_size, module.stride, module.padding)
    if positions in axes and window != ((1,), (1,), (0,)):
        raise Unsupported("slides a window over features, or over the entries of their vectors")
    if channels in axes and module.groups != 1:
        raise Unsupported("convolves groups of channels whose number changed")
    walk.note_input(node, axes.get(channels))
    result = {d: axis for d, axis in axes.items() if d != channels}
    own = walk.forced.get((node, channels))
    if own is not None:
        result[channels] = own
    return result


def is_bilinear(module: nn.Module) -> bool:
    """Whether a layer computes what ``nn.Bilinear`` computes."""
    return isinstance(module, nn.Bilinear) and type(module).forward is nn.Bilinear.forward


def bilinear(walk: Walk, node: fx.Node) -> Axes:
    """``nn.Bilinear``: ``(..., I)`` and ``(..., J)`` to ``(..., O)``; the widths may differ, the rest is common."""
    call = dict(zip(("input1", "input2"), node.args, strict=False)) | dict(node.kwargs)
    one, two = call["input1"], call["input2"]
    assert isinstance(one, fx.Node) and isinstance(two, fx.Node)
    last = len(shape_of(one)) - 1
    common: Axes = {}
    for source in (one, two):
        for d, axis in walk.states[source].axes.items():
            if d != last:
                common[d] = common[d].with_layout_of(axis) if d in common else axis
    for source in (one, two):
        if missing := walk.states[source].lacks(common):
            walk.impose(source, missing)
    walk.note_input(node, walk.states[one].axes.get(last), walk.states[two].axes.get(last))
    return common
