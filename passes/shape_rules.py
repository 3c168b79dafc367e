"""What each operation does to changed dimensions: one rule per operation.

A rule takes the walk and a node and returns the axes of the node's result. It may edit
literals (``sweep.edits``), ask for another size elsewhere (``sweep.force``) or raise
``Unsupported``. An operation without a rule is refused, never guessed.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from dmt_plugin.passes.axes import Axes, Unsupported
from dmt_plugin.passes.index_patterns import constant_value, regenerate
from dmt_plugin.passes.shape_arithmetic import elementwise, linear_function, matmul, reduction
from dmt_plugin.passes.shape_joins import join
from dmt_plugin.passes.shape_ops import (
    ELEMENTWISE,
    ELEMENTWISE_MODULES,
    NORMS,
    REDUCTIONS,
    SIZES,
    is_linear,
    name_of,
    shape_of,
    tensor_inputs,
)
from dmt_plugin.passes.shape_sweep import Rule, Sweep
from dmt_plugin.passes.shape_views import move, transpose, view


def rule_of(sweep: Sweep, node: fx.Node) -> Rule | None:
    """The rule of a node, or ``None``."""
    if node.op == "call_module":
        module = sweep.gm.get_submodule(str(node.target))
        if is_linear(module):
            return _linear_module
        if isinstance(module, NORMS):
            return _norm_module
        if isinstance(module, ELEMENTWISE_MODULES):
            return elementwise
        if isinstance(module, nn.Flatten):
            return view
        return None
    name = name_of(node)
    if name == "getattr":
        return _attribute
    if not isinstance(node.meta.get("val"), Tensor):
        # Several tensors at once (a split, a sort) are not followed.
        return _plain if name in SIZES or not tensor_inputs(node) else None
    if name in ELEMENTWISE:
        return elementwise
    if name in REDUCTIONS:
        return reduction
    return _RULES.get(name)


def _plain(sweep: Sweep, node: fx.Node) -> Axes:
    """Sizes and Python arithmetic on them: simply evaluated again."""
    return {}


def _attribute(sweep: Sweep, node: fx.Node) -> Axes:
    if node.args[1] in ("T", "mT"):
        return move(sweep, node, lambda rank: [*range(rank - 2), rank - 1, rank - 2])
    if node.args[1] in ("shape", "ndim", "dtype", "device"):
        return {}
    raise Unsupported(f"the attribute {node.args[1]} of a changed tensor")


# -- modules -----------------------------------------------------------------------------


def _linear_module(sweep: Sweep, node: fx.Node) -> Axes:
    (source,) = node.all_input_nodes
    last = len(shape_of(source)) - 1
    axes = sweep.states[source].axes
    sweep.note_input(node, axes.get(last))
    result = {d: axis for d, axis in axes.items() if d != last}
    own = sweep.forced.get((node, last))
    if own is not None:
        result[last] = own
    return result


def _norm_module(sweep: Sweep, node: fx.Node) -> Axes:
    (source,) = node.all_input_nodes
    axes = sweep.states[source].axes
    module = sweep.gm.get_submodule(str(node.target))
    rank = len(shape_of(source))
    if isinstance(module, nn.LayerNorm):
        if len(module.normalized_shape) != 1:
            raise Unsupported("LayerNorm over several dimensions")
        sweep.note_input(node, axes.get(rank - 1))
    else:
        sweep.note_input(node, axes.get(1))
    return dict(axes)


# -- indexing ----------------------------------------------------------------------------


def _index(sweep: Sweep, node: fx.Node) -> Axes:
    source, index = node.args
    assert isinstance(source, fx.Node)
    if not isinstance(source.meta.get("val"), Tensor):
        return {}
    items = list(index) if isinstance(index, (tuple, list)) else [index]
    axes = sweep.states[source].axes
    shape = shape_of(source)
    if items[:1] == [Ellipsis]:
        consumed = sum(1 for item in items[1:] if item is not None)
        items = [slice(None)] * (len(shape) - consumed) + items[1:]
    result: Axes = {}
    advanced: list[int] = []
    covered: list[int] = []
    frm = to = 0
    for position, item in enumerate(items):
        if item is None:
            to += 1
        elif isinstance(item, slice):
            if frm in axes and item != slice(None):
                raise Unsupported(f"takes the slice {item} of a dimension whose features changed")
            if frm in axes:
                result[to] = axes[frm]
            frm, to = frm + 1, to + 1
        elif isinstance(item, int):
            if frm in axes:
                raise Unsupported(f"takes entry {item} of a dimension whose features changed")
            frm += 1
        else:
            advanced.append(position)
            constant = constant_value(sweep, item)
            span = constant.dim() if constant is not None and constant.dtype == torch.bool else 1
            covered.extend(range(frm, frm + span))
            frm += span
            to += 1 if len(advanced) == 1 else 0
    for rest in range(frm, len(shape)):
        if rest in axes:
            result[to + rest - frm] = axes[rest]
    if any(d in axes for d in covered):
        if any(item is None for item in items):
            raise Unsupported("indexes pairs of features and adds dimensions at once")
        result[covered[0]] = regenerate(sweep, node, advanced, items, axes, covered[0])
    return result


_RULES: dict[str, Rule] = {
    "cat": join, "concat": join, "concatenate": join, "stack": join,
    "view": view, "reshape": view, "flatten": view, "unflatten": view, "squeeze": view, "unsqueeze": view,
    "transpose": transpose, "permute": transpose, "t": transpose, "swapaxes": transpose,
    "matmul": matmul, "mm": matmul, "bmm": matmul, "linear": linear_function,
    "getitem": _index,
}  # fmt: skip
