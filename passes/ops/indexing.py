"""Rules for taking parts of a tensor: ``getitem``, ``select``, ``narrow``, ``index_select``, ``flip``.

Whole dimensions pass through. Of a dimension whose features changed nothing can be picked by
position: an entry, a slice or a list for the old features still exists after the change, and
means something else. Only lists that enumerate pairs of features are made anew
(:mod:`dmt_plugin.passes.ops.index_patterns`, :mod:`dmt_plugin.passes.ops.pair_patterns`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from dmt_plugin.passes.ops.axes import Axes, Unsupported
from dmt_plugin.passes.ops.index_patterns import constant_value, regenerate
from dmt_plugin.passes.ops.names import name_of, shape_of
from dmt_plugin.passes.ops.pair_patterns import new_list
from dmt_plugin.passes.ops.walk import Walk


@dataclass
class _Index:
    """An index taken apart.

    Attributes:
        items: one entry per dimension; no ellipsis.
        kept: dimension of the source -> of the result, for dimensions taken by a slice or not named.
        slices: slices of part of a dimension, by dimension.
        entries: single entries, by dimension.
        lists: positions among ``items`` of index tensors and lists.
        covered: dimensions that they pick from.
        place: first dimension of the result that they make.
        adds: whether the index adds dimensions.
    """

    items: list[Any]
    kept: dict[int, int] = field(default_factory=dict)
    slices: dict[int, slice] = field(default_factory=dict)
    entries: dict[int, int] = field(default_factory=dict)
    lists: list[int] = field(default_factory=list)
    covered: list[int] = field(default_factory=list)
    place: int = 0
    adds: bool = False


def _taken_apart(walk: Walk, node: fx.Node) -> _Index:
    source: Any = node.args[0]
    index: Any = node.args[1]
    rank = len(shape_of(source))
    found = _Index(list(index) if isinstance(index, tuple) or _has_slices(index) else [index])
    if any(item is Ellipsis for item in found.items):
        at = next(i for i, item in enumerate(found.items) if item is Ellipsis)
        consumed = sum(_span(walk, item) for item in found.items if item is not Ellipsis)
        found.items[at : at + 1] = [slice(None)] * (rank - consumed)
    frm = to = 0
    for position, item in enumerate(found.items):
        if item is None:
            found.adds = True
            to += 1
        elif isinstance(item, slice):
            found.kept[frm] = to
            if item != slice(None):
                found.slices[frm] = item
            frm, to = frm + 1, to + 1
        elif isinstance(item, int) and not isinstance(item, bool):
            found.entries[frm] = item
            frm += 1
        else:
            if not found.lists:
                found.place = to
                to += _rank(item)
            elif position != found.lists[-1] + 1:
                raise Unsupported("indexes by lists that are not side by side")
            found.lists.append(position)
            span = _span(walk, item)
            found.covered.extend(range(frm, frm + span))
            frm += span
    found.kept.update({d: to + d - frm for d in range(frm, rank)})
    return found


def _has_slices(index: Any) -> bool:
    return isinstance(index, list) and any(not isinstance(item, int) for item in index)


def _span(walk: Walk, item: Any) -> int:
    """How many dimensions of the source an item takes: a boolean mask takes as many as it has."""
    if item is None:
        return 0
    value = constant_value(walk, item) if isinstance(item, (fx.Node, Tensor, list)) else None
    if value is None and isinstance(item, fx.Node) and isinstance(item.meta.get("val"), Tensor):
        value = item.meta["val"]
    return value.dim() if value is not None and value.dtype == torch.bool else 1


def _rank(item: Any) -> int:
    value = item.meta.get("val") if isinstance(item, fx.Node) else item
    if isinstance(value, Tensor):
        return 1 if value.dtype == torch.bool else value.dim()
    if isinstance(item, fx.Node):
        raise Unsupported("indexes by a computed number")
    return torch.as_tensor(value).dim()


def index(walk: Walk, node: fx.Node) -> Axes | tuple[Axes, ...]:
    """``x[...]`` of a tensor, or an element of a list, a shape or several tensors."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    state = walk.states[source]
    if not isinstance(source.meta.get("val"), Tensor):
        return state.part(node.args[1])
    axes = state.axes
    if not axes:
        return {}
    found = _taken_apart(walk, node)
    for d, part in found.slices.items():
        if d in axes:
            raise Unsupported(f"takes the slice {part} of a dimension whose features changed")
    for d, entry in found.entries.items():
        if d in axes:
            raise Unsupported(f"takes entry {entry} of a dimension whose features changed")
    result = {to: axes[frm] for frm, to in found.kept.items() if frm in axes}
    if any(d in axes for d in found.covered):
        if found.adds:
            raise Unsupported("indexes pairs of features and adds dimensions at once")
        result |= _picked(walk, node, found, axes)
    return result


def _picked(walk: Walk, node: fx.Node, found: _Index, axes: Axes) -> Axes:
    if len(found.covered) > 1:
        axis = regenerate(walk, node, found.lists, found.items, axes, found.covered[0])
        return {found.place: axis}
    (position,) = found.lists
    value, made = new_list(walk, node, axes[found.covered[0]])
    items = list(found.items)
    items[position] = value
    walk.edits[node] = ((node.args[0], tuple(items)), {})
    return {found.place + d: axis for d, axis in made.items()}


def index_select(walk: Walk, node: fx.Node) -> Axes:
    """``index_select(x, dim, index)``."""
    call: dict[str, Any] = dict(zip(("input", "dim", "index"), node.args, strict=False)) | dict(node.kwargs)
    source, dim = call["input"], _dim(call["dim"], shape_of(call["input"]))
    axes = dict(walk.states[source].axes)
    if dim in axes:
        value, made = new_list(walk, node, axes[dim])
        axes[dim] = made[0]
        walk.edits[node] = ((source, dim, value), {})
    return axes


def part(walk: Walk, node: fx.Node) -> Axes:
    """``select`` (one entry) and ``narrow`` (a range) of a dimension."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    dim = _dim(given, shape_of(source))
    axes = walk.states[source].axes
    if dim in axes:
        raise Unsupported("takes a part of a dimension whose features changed")
    gone = name_of(node) == "select"
    return {d - (1 if gone and d > dim else 0): axis for d, axis in axes.items()}


def flip(walk: Walk, node: fx.Node) -> Axes:
    """Reversed dimensions: not those of features, whose order a layer behind may know."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    given: Any = node.args[1:] or node.kwargs["dims"]
    dims = given[0] if len(given) == 1 and isinstance(given[0], (list, tuple)) else given
    axes = walk.states[source].axes
    if any(_dim(d, shape_of(source)) in axes for d in dims):
        raise Unsupported("reverses the order of features, or of the entries of their vectors")
    return dict(axes)


def _dim(given: Any, shape: tuple[int, ...]) -> int:
    if not isinstance(given, int):
        raise Unsupported("takes a part of a computed dimension")
    return given % len(shape)
