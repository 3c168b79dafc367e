"""What each operation does to changed dimensions: one rule per operation.

A rule takes the walk and a node and returns the axes of the node's result. It may edit
literals (``sweep.edits``), ask for another size elsewhere (``sweep.force``) or raise
``Unsupported``. An operation without a rule is refused, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from dmt_plugin.passes.axes import Axes, Axis, Segment, Unsupported, view_axes
from dmt_plugin.passes.index_patterns import constant_value, regenerate
from dmt_plugin.passes.shape_arithmetic import elementwise, linear_function, matmul, reduction
from dmt_plugin.passes.shape_ops import (
    ELEMENTWISE,
    ELEMENTWISE_MODULES,
    NORMS,
    REDUCTIONS,
    SIZES,
    dim_order,
    is_linear,
    name_of,
    shape_of,
    tensor_inputs,
)
from dmt_plugin.passes.shape_sweep import SEED, Rule, Sweep


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
            return _view
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
        return _move(sweep, node, lambda rank: [*range(rank - 2), rank - 1, rank - 2])
    if node.args[1] in ("shape", "ndim", "dtype", "device"):
        return {}
    raise Unsupported(f"the attribute {node.args[1]} of a changed tensor")


# -- joins -----------------------------------------------------------------------------


def _parts(sweep: Sweep, entries: list[fx.Node]) -> list[tuple[fx.Node, tuple[str, int, int, int] | None, int]]:
    """Entries of a join; each run of one group's new streams is one part: (node, seed, number of streams)."""
    parts: list[tuple[fx.Node, tuple[str, int, int, int] | None, int]] = []
    for entry in entries:
        seed = entry.meta.get(SEED)
        if seed is not None and parts and parts[-1][1] is not None and parts[-1][1][0] == seed[0]:
            parts[-1] = (parts[-1][0], seed, parts[-1][2] + 1)
        else:
            parts.append((entry, seed, 1))
    return parts


def _join(sweep: Sweep, node: fx.Node) -> Axes:
    entries = list(node.args[0] if node.args else node.kwargs["tensors"])  # type: ignore[arg-type]
    stacked = name_of(node) == "stack"
    old = shape_of(node)
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    dim = int(given) % len(old)
    along: list[Axis | int] = []
    across: dict[int, Axis] = {}
    flat = not stacked and dim == len(old) - 1
    for entry, seed, count in _parts(sweep, entries):
        axes = sweep.states[entry].axes
        if seed is not None:
            _, features, width, new_width = seed
            if flat:
                along.append(Axis((Segment(features * width, count * new_width, width, new_width),)))
            else:
                along.append(Axis.of(features, count))
        elif stacked:
            along.append(1)
        else:
            along.append(axes.get(dim, shape_of(entry)[dim]))
        for d, axis in axes.items():
            place = d + (1 if stacked and d >= dim else 0)
            if stacked or d != dim:
                across.setdefault(place, axis)
    for entry in entries:
        for place, axis in across.items():
            d = place - (1 if stacked and place > dim else 0)
            own = sweep.states[entry].axes.get(d)
            if own is None:
                sweep.force(entry, d, axis)
            elif own.new != axis.new:
                raise Unsupported(f"joins widths {own.new} and {axis.new}")
    result = dict(across)
    joined = Axis.joined(along, unit=flat)
    if joined is not None:
        result[dim] = joined
    return result


# -- views -----------------------------------------------------------------------------


def _view(sweep: Sweep, node: fx.Node) -> Axes:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    axes = sweep.states[source].axes
    found = view_axes(axes, shape_of(source), shape_of(node))
    if isinstance(found, tuple):
        dim, need = found
        _force_part(sweep, source, dim, need.segment, need.size)
    assert isinstance(found, dict)
    _edit_sizes(sweep, node, found)
    return found


def _force_part(sweep: Sweep, join: fx.Node, dim: int, index: int, size: int) -> None:
    """Resizes one neighbour inside a joined dimension, found by its position in the join."""
    while name_of(join) not in ("cat", "concat", "concatenate"):
        sources = join.all_input_nodes
        if len(sources) != 1 or shape_of(sources[0]) != shape_of(join):
            raise Unsupported(f"a vector beside the streams must become {size} wide, but its join was not found")
        (join,) = sources
    entries = list(join.args[0] if join.args else join.kwargs["tensors"])  # type: ignore[arg-type]
    entry = _parts(sweep, entries)[index][0]
    sweep.force(entry, dim, Axis.of(shape_of(entry)[dim], size))


def _edit_sizes(sweep: Sweep, node: fx.Node, axes: Axes) -> None:
    if node.op == "call_module" or name_of(node) in ("flatten", "squeeze", "unsqueeze", "view_as", "reshape_as"):
        return
    args: list[Any] = list(node.args)
    kwargs: dict[str, Any] = dict(node.kwargs)
    key = next((k for k in ("shape", "size", "sizes") if k in kwargs), None)
    if name_of(node) == "unflatten":
        dim = int(args[1]) % len(shape_of(args[0]))
        args[2] = tuple(_size(s, axes.get(dim + i)) for i, s in enumerate(args[2]))
    elif key is not None:
        kwargs[key] = type(kwargs[key])(_size(s, axes.get(i)) for i, s in enumerate(kwargs[key]))
    elif len(args) == 2 and isinstance(args[1], (list, tuple)):
        args[1] = [_size(s, axes.get(i)) for i, s in enumerate(args[1])]
    else:
        args[1:] = [_size(s, axes.get(i)) for i, s in enumerate(args[1:])]
    sweep.edits[node] = (tuple(args), kwargs)


def _size(size: Any, axis: Axis | None) -> Any:
    return axis.new if axis is not None and isinstance(size, int) and size != -1 else size


def _move(sweep: Sweep, node: fx.Node, order: Callable[[int], list[int]]) -> Axes:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    axes = sweep.states[source].axes
    return {to: axes[frm] for to, frm in enumerate(order(len(shape_of(source)))) if frm in axes}


def _transpose(sweep: Sweep, node: fx.Node) -> Axes:
    return _move(sweep, node, dim_order(node))


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
    "cat": _join, "concat": _join, "concatenate": _join, "stack": _join,
    "view": _view, "reshape": _view, "flatten": _view, "unflatten": _view, "squeeze": _view, "unsqueeze": _view,
    "transpose": _transpose, "permute": _transpose, "t": _transpose, "swapaxes": _transpose,
    "matmul": matmul, "mm": matmul, "bmm": matmul, "linear": linear_function,
    "getitem": _index,
}  # fmt: skip
