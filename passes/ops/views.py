"""Rules for what only moves entries: views, transpositions, ``expand`` and ``repeat``.

1. A view whose input changed: its dimensions are aligned with those of the input in memory
   order, never by comparing sizes (:func:`dmt_plugin.passes.ops.axes.view_axes`); literal sizes
   are replaced, ``-1`` and sizes that the model computes stay.
2. A view whose input did not change, but which reads a size from a tensor that did (such
   as ``x.view(B, -1, d)`` with ``d`` the new width): it would cut ``x`` into other vectors.
   That is right only if ``x`` comes from a layer whose output has no vectors but these;
   so the layer is asked for them, starts anew, and anything else is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from dmt_plugin.passes.ops.axes import Axes, Axis, Segment, Unsupported
from dmt_plugin.passes.ops.joins import parts_of
from dmt_plugin.passes.ops.names import JOINS, dim_order, joined_parts, name_of, shape_of
from dmt_plugin.passes.ops.reshaping import align, view_axes
from dmt_plugin.passes.ops.walk import Walk

#: Operations that are views without sizes among their arguments.
_SIZELESS = ("flatten", "squeeze", "unsqueeze", "view_as", "reshape_as")


def view(walk: Walk, node: fx.Node) -> Axes:
    """``view``, ``reshape``, ``flatten`` and the like."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    axes = walk.states[source].axes
    found = view_axes(axes, shape_of(source), shape_of(node))
    if isinstance(found, tuple):
        dim, need = found
        _force_part(walk, source, dim, need.segment, need.size)
    assert isinstance(found, dict)
    _ask_for_vectors(walk, node, source, found)
    _edit_sizes(walk, node, found)
    return found


def _force_part(walk: Walk, join: fx.Node, dim: int, index: int, size: int) -> None:
    """Resizes one neighbour inside a joined dimension, found by its position in the join."""
    while name_of(join) not in JOINS - {"stack"}:
        sources = join.all_input_nodes
        if len(sources) != 1 or shape_of(sources[0]) != shape_of(join):
            raise Unsupported(f"a vector beside the streams must become {size} wide, but its join was not found")
        (join,) = sources
    entry = parts_of(joined_parts(join))[index][0]
    walk.force(entry, dim, Axis.of(shape_of(entry)[dim], size))


def _ask_for_vectors(walk: Walk, node: fx.Node, source: fx.Node, found: Axes) -> None:
    """Step 2 of the module's docstring."""
    old_in, old_out = shape_of(source), shape_of(node)
    given = _sizes(node)
    computed = {d: walk.states[s].value for d, s in enumerate(given) if isinstance(s, fx.Node)}
    computed = {d: s for d, s in computed.items() if s != old_out[d] and d not in found}
    for ins, outs in align(old_in, old_out):
        if not any(d in computed for d in outs):
            continue
        if len(ins) != 1 or len(outs) != 2:
            raise Unsupported(f"a view from {list(old_in)} to {list(old_out)} reads a size that changed")
        total, (rows, width) = old_in[ins[0]], (computed.get(d, given[d]) for d in outs)
        if -1 in (rows, width):
            known = width if rows == -1 else rows
            if total % known:
                raise Unsupported(f"cuts {total} entries by a size that became {known}, of which they are no multiple")
            rows, width = (total // known, known) if rows == -1 else (known, total // known)
        old_rows, old_width = (old_out[d] for d in outs)
        parts = Segment(
            total, rows * width, old_width, width, same_vectors=rows == old_rows, same_entries=width == old_width
        )
        walk.impose(source, {ins[0]: Axis((parts,))})


def _sizes(node: fx.Node) -> list[Any]:
    """The sizes a view or a reshape is given, one per dimension of its result, or none."""
    if name_of(node) not in ("view", "reshape"):
        return []
    given = next((node.kwargs[k] for k in ("shape", "size") if k in node.kwargs), node.args[1:])
    assert isinstance(given, (list, tuple))
    sizes = list(given[0]) if len(given) == 1 and isinstance(given[0], (list, tuple)) else list(given)
    return sizes if len(sizes) == len(shape_of(node)) else []


def _edit_sizes(walk: Walk, node: fx.Node, axes: Axes) -> None:
    if node.op == "call_module" or name_of(node) in _SIZELESS:
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
    walk.edits[node] = (tuple(args), kwargs)


def _size(size: Any, axis: Axis | None) -> Any:
    return axis.new if axis is not None and isinstance(size, int) and size != -1 else size


def move(walk: Walk, node: fx.Node, order: Callable[[int], list[int]]) -> Axes:
    """Dimensions in another order: ``order(rank)`` lists the old ones."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    axes = walk.states[source].axes
    return {to: axes[frm] for to, frm in enumerate(order(len(shape_of(source)))) if frm in axes}


def transpose(walk: Walk, node: fx.Node) -> Axes:
    """``transpose``, ``permute``, ``t``."""
    return move(walk, node, dim_order(node))
