"""Parts of a tensor: ``getitem``, ``select``, ``narrow``, ``index_select``, ``flip``.

Whole dimensions pass through. Of a dimension whose features changed nothing can be picked by position: an entry, a
slice or a list for the old features still exists after the change, and means something else. Only lists that enumerate
pairs of features are made for their new number (:mod:`dmt_plugin.passes.ops.index_patterns`,
:mod:`dmt_plugin.passes.ops.pair_patterns`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from dmt_plugin.fxtools.arguments import argument, arguments
from dmt_plugin.passes.ops.axes import Axes, Unsupported
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
    entries: dict[int, Any] = field(default_factory=dict)
    lists: list[int] = field(default_factory=list)
    covered: list[int] = field(default_factory=list)
    place: int = 0
    adds: bool = False


def _taken_apart(node: fx.Node) -> _Index:
    source, index = node.args
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
            found.kept[frm] = to
            if item != slice(None):
                found.slices[frm] = item
            frm, to = frm + 1, to + 1
        elif _is_number(item):
            found.entries[frm] = item
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
    if _dim_of(node) in walk.states[dims.terms[0][0]].axes:
        raise Unsupported("takes a part of a dimension whose features changed")
    return follow(walk, node, dims)


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
