"""Parts of a tensor: ``getitem``, ``select``, ``narrow``, ``index_select``, ``flip``.

Whole dimensions pass through. Of a dimension whose features changed nothing of what changed can be picked by position:
an entry, a slice or a list for the old features still exists after the change, and means something else. What stands
beside them in a join, or all of them together, can be: its place follows. Only lists that enumerate pairs of features
are made for their new number (:mod:`dmt_plugin.passes.ops.index_patterns`, :mod:`dmt_plugin.passes.ops.pair_patterns`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from dmt_plugin.fxtools.arguments import argument, arguments
from dmt_plugin.fxtools.assigned import assigned
from dmt_plugin.passes.ops.axes import Axes, Axis, Unsupported
from dmt_plugin.passes.ops.dims import Asked, Dims, Token, Tokens, asked_of, follow, is_tensor, leading, tensor
from dmt_plugin.passes.ops.index_patterns import regenerate
from dmt_plugin.passes.ops.names import name_of, shape_of
from dmt_plugin.passes.ops.pair_patterns import new_list
from dmt_plugin.passes.ops.registry import never, op
from dmt_plugin.passes.ops.splits import element, whole_of
from dmt_plugin.passes.ops.walk import Walk


@dataclass
class _Index:
    """An index taken apart.

    Attributes:
        items: one entry per dimension; no ellipsis.
        kept: dimension of the source -> of the result, for dimensions taken by a slice or not named.
        places: positions among ``items`` of slices and entries, by dimension.
        slices: slices of part of a dimension, by dimension.
        entries: single entries, by dimension.
        lists: positions among ``items`` of index tensors and lists.
        covered: dimensions that they pick from.
        place: first dimension of the result that they make.
        adds: whether the index adds dimensions.
    """

    items: list[Any]
    kept: dict[int, int] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)
    slices: dict[int, slice] = field(default_factory=dict)
    entries: dict[int, Any] = field(default_factory=dict)
    lists: list[int] = field(default_factory=list)
    covered: list[int] = field(default_factory=list)
    place: int = 0
    adds: bool = False


def _taken_apart(node: fx.Node) -> _Index:
    source, index = node.args[:2]
    rank = len(shape_of(tensor(source)))
    found = _Index(list(index) if isinstance(index, tuple) or _has_slices(index) else [index])  # type: ignore[arg-type]
    if any(item is Ellipsis for item in found.items):
        at = next(i for i, item in enumerate(found.items) if item is Ellipsis)
        consumed = sum(_span(item) for item in found.items if item is not Ellipsis)
        found.items[at : at + 1] = [slice(None)] * (rank - consumed)
    frm = to = 0
    for position, item in enumerate(found.items):
        if item is None:
            found.adds = True
            to += 1
        elif isinstance(item, slice):
            found.kept[frm], found.places[frm] = to, position
            if item != slice(None):
                found.slices[frm] = item
            frm, to = frm + 1, to + 1
        elif _is_number(item):
            found.entries[frm], found.places[frm] = item, position
            frm += 1
        else:
            if not found.lists:
                found.place = to
                to += _rank(item)
            elif position != found.lists[-1] + 1:
                raise Unsupported("indexes by lists that are not side by side")
            found.lists.append(position)
            span = _span(item)
            found.covered.extend(range(frm, frm + span))
            frm += span
    found.kept.update({d: to + d - frm for d in range(frm, rank)})
    return found


def _has_slices(index: Any) -> bool:
    return isinstance(index, list) and any(not isinstance(item, int) for item in index)


def _is_number(item: Any) -> bool:
    value = item.meta.get("val") if isinstance(item, fx.Node) else item
    return isinstance(value, int) and not isinstance(value, bool)


def _span(item: Any) -> int:
    """How many dimensions of the source an item takes: a boolean mask takes as many as it has."""
    if item is None:
        return 0
    value = item.meta.get("val") if isinstance(item, fx.Node) else item
    return value.dim() if isinstance(value, Tensor) and value.dtype == torch.bool else 1


def _rank(item: Any) -> int:
    value = item.meta.get("val") if isinstance(item, fx.Node) else item
    if isinstance(value, Tensor):
        return 1 if value.dtype == torch.bool else value.dim()
    if isinstance(item, fx.Node):
        raise Unsupported("indexes by what is no tensor")
    return torch.as_tensor(value).dim()


def _index(walk: Walk, node: fx.Node) -> Axes | tuple[Axes, ...]:
    if not is_tensor(node.args[0]):
        return element(walk, node)  # of a layer's several results, of which some may be None
    axes = walk.states[node.args[0]].axes
    if not axes:
        return {}
    found = _taken_apart(node)
    result = {to: axes[frm] for frm, to in found.kept.items() if frm in axes and frm not in found.slices}
    moved: dict[int, Any] = {}
    for d, part in found.slices.items():
        if d in axes:
            moved[found.places[d]], axis = _slice_of(walk, axes[d], part)
            result |= {found.kept[d]: axis} if axis is not None else {}
    for d, entry in found.entries.items():
        if d in axes:
            moved[found.places[d]] = _entry_of(axes[d], entry)
    if moved:
        if found.lists:
            raise Unsupported("takes a part of a dimension whose features changed, and picks by lists besides")
        items = tuple(moved.get(at, item) for at, item in enumerate(found.items))
        walk.edits[node] = ((node.args[0], items), {})
    if any(d in axes for d in found.covered):
        if found.adds:
            raise Unsupported("indexes pairs of features and adds dimensions at once")
        result |= _picked(walk, node, found, axes)
    return result


def _slice_of(walk: Walk, axis: Axis, part: slice) -> tuple[slice, Axis | None]:
    """A slice for the new features that takes what the old one took, and what became of the dimension.

    Bounds that the model computes from shapes must come to the same.
    """
    before_and_now = [_bound(walk, bound) for bound in (part.start, part.stop)]
    if part.step not in (None, 1):
        raise Unsupported(f"takes the slice {part} of a dimension whose features changed")
    start, stop, _ = slice(*(old for old, _ in before_and_now)).indices(axis.old)
    try:
        before, own, _ = axis.cut([start, max(stop - start, 0), axis.old - max(stop, start)])
    except Unsupported:
        raise Unsupported(f"takes the slice {part} of a dimension whose features changed") from None
    first = before.new if isinstance(before, Axis) else before
    size = own.new if isinstance(own, Axis) else own
    computed = slice(*(now for _, now in before_and_now)).indices(axis.new)[:2]
    for bound, follows, mine in zip((part.start, part.stop), (first, first + size), computed, strict=True):
        if isinstance(bound, fx.Node) and mine != follows:
            raise Unsupported("takes a slice of a dimension whose features changed, up to a place that is computed")
    return slice(first, first + size), own if isinstance(own, Axis) else None


def _bound(walk: Walk, bound: Any) -> tuple[int | None, int | None]:
    """A bound of a slice before and now; a literal has not changed yet."""
    if isinstance(bound, fx.Node):
        old, new = bound.meta["val"], walk.states[bound].value
        if type(old) is int and type(new) is int:
            return old, new
    elif bound is None or isinstance(bound, int):
        return bound, bound
    raise Unsupported("takes a slice of a dimension whose features changed, up to a place that depends on data")


def _entry_of(axis: Axis, entry: Any) -> int:
    """The place of an entry that did not change, beside features that did."""
    if isinstance(entry, int) and -axis.old <= entry < axis.old:
        place = entry % axis.old
        try:
            before, own, _ = axis.cut([place, 1, axis.old - place - 1])
        except Unsupported:
            own = axis
        if not isinstance(own, Axis):
            return before.new if isinstance(before, Axis) else before
    raise Unsupported(f"takes entry {entry} of a dimension whose features changed")


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


def _asked(walk: Walk, node: fx.Node, wanted: Axes) -> Asked:
    """An element of several tensors asks for the tensor that was cut into them."""
    source = node.args[0]
    if not is_tensor(source):
        return whole_of(walk, node, wanted)
    dims = _indexed(node)
    return asked_of(dims, wanted) if dims is not None else []


@op("getitem", forward=_index, several=element, producers=_asked)
def _indexed(node: fx.Node) -> Dims | None:
    """Whole dimensions pass through; what is picked is the result's alone."""
    source = node.args[0]
    if not is_tensor(source):
        return None
    found = _taken_apart(node)
    tokens = leading(len(shape_of(source)))
    kept: dict[int, Token] = {to: tokens[frm] for frm, to in found.kept.items() if frm not in found.slices}
    result = tuple(kept.get(d, f"picked{d}") for d in range(len(shape_of(node))))
    return Dims(((source, tokens),), result)


def _assign(walk: Walk, node: fx.Node) -> Axes:
    dims = _assigned(node)
    found = _taken_apart(node)
    touched = {d for d in range(len(shape_of(node))) if d not in found.kept or d in found.slices}
    for source, tokens in dims.terms:
        if any(isinstance(tokens[d], str) or tokens[d] in dims.mixed for d in walk.states[source].axes):
            raise Unsupported("assigns to single places of a dimension whose features changed")
    axes = follow(walk, node, dims)
    if touched & axes.keys():
        raise Unsupported("assigns to single places of a dimension whose features changed")
    return axes


@op(f"{assigned.__module__}.{assigned.__name__}", forward=_assign)
def _assigned(node: fx.Node) -> Dims:
    """Whole dimensions run together with those of what is assigned; along others entries are told apart by place."""
    source, value = tensor(node.args[0]), node.args[2]
    found, tokens = _taken_apart(node), leading(len(shape_of(source)))
    mixed = frozenset(t for d, t in enumerate(tokens) if d not in found.kept or d in found.slices)
    terms = [(source, tokens)]
    if is_tensor(value):
        shape: dict[int, Token] = {to: tokens[frm] for frm, to in found.kept.items() if frm not in found.slices}
        rank = len(found.kept) + (_rank(found.items[found.lists[0]]) if found.lists else 0)
        given = tuple(shape.get(d, f"picked{d}") for d in range(rank))
        terms.append((value, given[rank - len(shape_of(value)) :]))
    if found.adds:
        raise Unsupported("assigns by an index that adds dimensions")
    return Dims(tuple(terms), tokens, mixed=mixed)


def _dim_of(node: fx.Node) -> int:
    dim = argument(node, 1, "dim")
    if not isinstance(dim, int):
        raise Unsupported("takes a part of a computed dimension")
    return dim % len(shape_of(tensor(node.args[0] if node.args else node.kwargs["input"])))


def _index_select(walk: Walk, node: fx.Node) -> Axes:
    call, dim = arguments(node, "input", "dim", "index"), _dim_of(node)
    axes = dict(walk.states[call["input"]].axes)
    if dim in axes:
        value, made = new_list(walk, node, axes[dim])
        axes[dim] = made[0]
        walk.edits[node] = ((call["input"], dim, value), {})
    return axes


def _part(walk: Walk, node: fx.Node) -> Axes:
    dims = _one_dimension(node)
    (source, _), dim = dims.terms[0], _dim_of(node)
    axes = dict(walk.states[source].axes)
    if dim not in axes:
        return follow(walk, node, dims)
    axis = axes.pop(dim)
    if name_of(node) == "select":
        place = _entry_of(axis, argument(node, 2, "index"))
        walk.edits[node] = ((source, dim, place), {})
        return {d - (d > dim): own for d, own in axes.items()}
    first, size = argument(node, 2, "start"), argument(node, 3, "length")
    old_size, new_size = _bound(walk, size)
    if not isinstance(first, int) or old_size is None:
        raise Unsupported("takes a part of a dimension whose features changed, from a place that is computed")
    part, kept = _slice_of(walk, axis, slice(first % axis.old, first % axis.old + old_size))
    if isinstance(size, fx.Node) and part.stop - part.start != new_size:
        raise Unsupported("takes a part of a dimension whose features changed, of a size that is computed")
    walk.edits[node] = ((source, dim, part.start, part.stop - part.start), {})
    return axes | ({dim: kept} if kept is not None else {})


@op("index_select", forward=_index_select)
@op("select", "narrow", forward=_part)
def _one_dimension(node: fx.Node) -> Dims:
    """One entry of a dimension, which is gone then, or several of them."""
    source = tensor(node.args[0] if node.args else node.kwargs["input"])
    tokens = leading(len(shape_of(source)))
    gone = tokens[_dim_of(node)]
    one = name_of(node) == "select"
    result: Tokens = tuple("part" if t == gone else t for t in tokens if not one or t != gone)
    return Dims(((source, tokens),), result)


def _flip(walk: Walk, node: fx.Node) -> Axes:
    """Not along dimensions of features, whose order a layer behind may know."""
    dims = _flipped(node)
    (source, tokens) = dims.terms[0]
    axes = walk.states[source].axes
    if any(tokens[d] in dims.mixed for d in axes):
        raise Unsupported("reverses the order of features, or of the entries of their vectors")
    return dict(axes)


@op("flip", forward=_flip, per_sample=never)
def _flipped(node: fx.Node) -> Dims:
    source = tensor(node.args[0] if node.args else node.kwargs["input"])
    given: Any = node.args[1:] or node.kwargs["dims"]
    dims = given[0] if len(given) == 1 and isinstance(given[0], (list, tuple)) else given
    if not all(isinstance(d, int) for d in dims):
        raise Unsupported("takes a part of a computed dimension")
    tokens = leading(len(shape_of(source)))
    return Dims(((source, tokens),), tokens, mixed=frozenset(tokens[d] for d in dims))
