"""Operations that arrange the same entries in other dimensions: ``view``, ``reshape``, ``flatten`` and the like.

1. A view whose input changed: its dimensions are aligned with those of the input in memory order, never by comparing
   sizes (:func:`dmt_plugin.passes.ops.reshaping.view_axes`), forward and backward alike; literal sizes are replaced,
   ``-1`` and sizes that the model computes stay.
2. A view whose input did not change, but which reads a size from a tensor that did (such as ``x.view(B, -1, d)`` with
   ``d`` the new width): it would cut ``x`` into other vectors. That is right only if ``x`` comes from a layer whose
   output has no vectors but these; so the layer is asked for them, starts again, and anything else is refused.
3. Samples stay apart where the batch stays in front whatever its size: an open size, or the batch's own, stands there.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from dmt_plugin.fxtools.arguments import argument
from dmt_plugin.passes.ops.axes import Axes, Axis, Segment, Unsupported
from dmt_plugin.passes.ops.dims import Asked, is_samples, is_tensor
from dmt_plugin.passes.ops.joins import CONCATENATIONS, joined_parts, parts_of
from dmt_plugin.passes.ops.names import name_of, shape_of, tensor_inputs
from dmt_plugin.passes.ops.registry import layer_by_rules, op_by_rules
from dmt_plugin.passes.ops.reshaping import align, view_axes
from dmt_plugin.passes.ops.shapes import free_of_batch, names_batch
from dmt_plugin.passes.ops.sizes import sizes_of
from dmt_plugin.passes.ops.walk import Walk


def _view(walk: Walk, node: fx.Node) -> Axes:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    found = view_axes(walk.states[source].axes, shape_of(source), shape_of(node))
    if isinstance(found, tuple):
        dim, need = found
        _force_part(walk, source, dim, need.segment, need.size)
    assert isinstance(found, dict)
    if name_of(node) in _SIZED:
        sizes = sizes_of(node)
        if name_of(node) != "unflatten" and len(sizes.given) == len(shape_of(node)):
            _ask_for_vectors(walk, node, source, found, sizes.given)
        first = int(argument(node, 1, "dim")) % len(shape_of(source)) if name_of(node) == "unflatten" else 0
        walk.edits[node] = sizes.replaced(lambda at, size: _followed(size, found.get(first + at)))
    return found


def _followed(size: Any, axis: Axis | None) -> Any:
    return axis.new if axis is not None and isinstance(size, int) and size != -1 else size


def _force_part(walk: Walk, join: fx.Node, dim: int, index: int, size: int) -> None:
    """Resizes one neighbour inside a joined dimension, found by its position in the join."""
    while name_of(join) not in CONCATENATIONS:
        sources = join.all_input_nodes
        if len(sources) != 1 or shape_of(sources[0]) != shape_of(join):
            raise Unsupported(f"a vector beside the streams must become {size} wide, but its join was not found")
        (join,) = sources
    entry = parts_of(joined_parts(join))[index][0]
    walk.force(entry, dim, Axis.of(shape_of(entry)[dim], size))


def _ask_for_vectors(walk: Walk, node: fx.Node, source: fx.Node, found: Axes, given: tuple[Any, ...]) -> None:
    """Step 2 of the module's docstring."""
    old_in, old_out = shape_of(source), shape_of(node)
    computed = {d: walk.states[s].value for d, s in enumerate(given) if isinstance(s, fx.Node)}
    computed = {d: s for d, s in computed.items() if s != old_out[d] and d not in found}
    for ins, outs in align(old_in, old_out):
        if not any(d in computed for d in outs):
            continue
        if len(ins) != 1 or len(outs) != 2:
            raise Unsupported(f"a view from {list(old_in)} to {list(old_out)} reads a size that changed")
        total, (rows, width) = old_in[ins[0]], (_now(walk, given[d]) for d in outs)
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


def _now(walk: Walk, size: Any) -> int:
    """A size among a view's arguments, a number or computed in the graph."""
    return int(walk.states[size].value if isinstance(size, fx.Node) else size)


def _viewed(walk: Walk, node: fx.Node, wanted: Axes) -> Asked:
    source = tensor_inputs(node)[0]
    before = view_axes(wanted, shape_of(node), shape_of(source))
    return [(source, before)] if isinstance(before, dict) else []


# -- samples stay apart ----------------------------------------------------------------------


def alone(node: fx.Node) -> bool:
    """Whether the first argument holds samples, and no other does."""
    first = node.args[0] if node.args else None
    return is_samples(first) and not any(is_samples(n) for n in node.all_input_nodes if n is not first)


def keeps_batch_in_front(node: fx.Node, batch: int) -> bool:
    """Whether a ``view``, ``reshape`` or ``expand`` keeps the batch in front, whatever its size ``batch``."""
    source = node.args[0] if node.args else None
    if not is_tensor(source) or not alone(node) or not (len(node.args) > 1 or node.kwargs):
        return False
    sizes = sizes_of(node)
    front = sizes.whole if sizes.whole is not None else sizes.given[0]
    if not all(free_of_batch(n) for n in node.all_input_nodes if n is not source and n is not front):
        return False
    if name_of(node) == "expand" and len(shape_of(node)) != len(shape_of(source)):
        return False  # a new dimension in front
    if not isinstance(front, fx.Node):
        return bool(front == -1)  # any other number is the size of the example's batch alone
    return names_batch(front, batch) and front not in sizes.given[1:]


def _behind_batch(node: fx.Node, batch: int) -> bool:
    """Whether the first dimension that changes is given, and is not the batch."""
    first = argument(node, 1, "dim|start_dim")
    if not alone(node) or not isinstance(first, int):
        return False
    if not all(is_tensor(n) or free_of_batch(n) for n in node.all_input_nodes):
        return False
    return first % (len(shape_of(node.all_input_nodes[0])) + (name_of(node) == "unsqueeze")) != 0


_SIZED = ("view", "reshape", "unflatten")
op_by_rules(
    "view", "reshape",
    forward=_view, producers=_viewed, per_sample=keeps_batch_in_front, traits=("keeps_ids",),
)  # fmt: skip
op_by_rules("unflatten", forward=_view, producers=_viewed, per_sample=_behind_batch)
op_by_rules(
    "flatten", "squeeze", "unsqueeze",
    forward=_view, producers=_viewed, per_sample=_behind_batch, traits=("keeps_ids",),
)  # fmt: skip
layer_by_rules(
    nn.Flatten, forward=_view, producers=_viewed, per_sample=lambda module, rank: module.start_dim % rank != 0
)
op_by_rules("view_as", "reshape_as", traits=("reads_first",))
