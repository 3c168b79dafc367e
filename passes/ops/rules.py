"""What each operation does to changed dimensions: one rule per operation.

A rule takes the walk and a node and returns the axes of the node's result. It may edit
literals (``walk.edits``), ask for another size elsewhere (``walk.force``) or raise
``Unsupported``. An operation without a rule is refused, never guessed.
"""

from __future__ import annotations

from torch import Tensor, fx, nn

from dmt_plugin.passes.ops.arithmetic import elementwise, extreme, reduction
from dmt_plugin.passes.ops.attention import rule_of_sequence_layer
from dmt_plugin.passes.ops.axes import Axes, Unsupported
from dmt_plugin.passes.ops.index_patterns import triangle
from dmt_plugin.passes.ops.indexing import flip, index, index_select, part
from dmt_plugin.passes.ops.joins import join
from dmt_plugin.passes.ops.matmul import bilinear, convolution, is_bilinear, is_convolution, product
from dmt_plugin.passes.ops.names import (
    ELEMENTWISE,
    ELEMENTWISE_MODULES,
    FILLS,
    NORMS,
    REDUCTIONS,
    SIZES,
    is_linear,
    name_of,
    shape_of,
    tensor_inputs,
)
from dmt_plugin.passes.ops.norms import norm_function, norm_module, prelu, prelu_module
from dmt_plugin.passes.ops.products import PRODUCTS
from dmt_plugin.passes.ops.repeats import filled, interleaved, repeats
from dmt_plugin.passes.ops.splits import PIECES, in_pieces
from dmt_plugin.passes.ops.views import move, transpose, view
from dmt_plugin.passes.ops.walk import Rule, Walk


def rule_of(walk: Walk, node: fx.Node) -> Rule | None:
    """The rule of a node, or ``None``."""
    if node.op == "call_module":
        module = walk.gm.get_submodule(str(node.target))
        if is_linear(module):
            return _linear_module
        if is_convolution(module):
            return convolution
        if is_bilinear(module):
            return bilinear
        if isinstance(module, NORMS):
            return norm_module
        if isinstance(module, nn.PReLU):
            return prelu_module
        if isinstance(module, ELEMENTWISE_MODULES):
            return elementwise
        if isinstance(module, nn.Flatten):
            return view
        return rule_of_sequence_layer(module)
    name = name_of(node)
    if in_pieces(node):
        return PIECES.get(name)
    if name == "getattr":
        return _attribute
    if not isinstance(node.meta.get("val"), Tensor):
        return _plain if name in SIZES or not tensor_inputs(node) else None
    if name in ELEMENTWISE:
        return elementwise
    if name in REDUCTIONS:
        return reduction
    if name in PRODUCTS:
        return product
    if name in FILLS:
        return filled
    return _RULES.get(name)


def _plain(walk: Walk, node: fx.Node) -> Axes:
    """Sizes and Python arithmetic on them: simply evaluated again."""
    return {}


def _attribute(walk: Walk, node: fx.Node) -> Axes:
    if node.args[1] in ("T", "mT"):
        return move(walk, node, lambda rank: [*range(rank - 2), rank - 1, rank - 2])
    if node.args[1] in ("shape", "ndim", "dtype", "device"):
        return {}
    raise Unsupported(f"the attribute {node.args[1]} of a changed tensor")


# -- modules -----------------------------------------------------------------------------


def _linear_module(walk: Walk, node: fx.Node) -> Axes:
    (source,) = node.all_input_nodes
    last = len(shape_of(source)) - 1
    axes = walk.states[source].axes
    walk.note_input(node, axes.get(last))
    result = {d: axis for d, axis in axes.items() if d != last}
    own = walk.forced.get((node, last))
    if own is not None:
        result[last] = own
    return result


_RULES: dict[str, Rule] = {
    "cat": join, "concat": join, "concatenate": join, "stack": join,
    "view": view, "reshape": view, "flatten": view, "unflatten": view, "squeeze": view, "unsqueeze": view,
    "transpose": transpose, "permute": transpose, "t": transpose, "swapaxes": transpose, "swapdims": transpose,
    "movedim": transpose, "moveaxis": transpose, "max": extreme, "min": extreme,
    "layer_norm": norm_function, "rms_norm": norm_function, "prelu": prelu,
    "expand": repeats, "broadcast_to": repeats, "repeat": repeats, "tile": repeats, "repeat_interleave": interleaved,
    "tril_indices": triangle, "triu_indices": triangle,
    "getitem": index, "index_select": index_select, "select": part, "narrow": part, "flip": flip,
}  # fmt: skip
