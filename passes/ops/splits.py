"""Operations with several results (``split``, ``chunk``, ``max``), and those that take or join these results.

1. ``split``, ``chunk`` and the like cut a dimension by position. One whose features changed may be cut only between its
   parts: beside streams that changed, or inside a neighbour that did not. Sizes among the arguments follow.
2. If a piece must have another size, the tensor that was cut must: equal parts all alike, listed ones each for itself.
3. ``max`` and the like with a dimension give values and positions; positions of features mean nothing after a change
   and must not be used.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx

from dmt_plugin.fxtools.arguments import argument
from dmt_plugin.passes.ops.axes import Axes, Axis, Segment, Unsupported
from dmt_plugin.passes.ops.dims import Asked
from dmt_plugin.passes.ops.names import name_of, shape_of
from dmt_plugin.passes.ops.registry import op_by_rules
from dmt_plugin.passes.ops.walk import Walk

_VALUES = {"values": 0, "indices": 1}
_CUTS = ("split", "split_with_sizes", "chunk", "tensor_split", "unbind")


def is_several(value: Any) -> bool:
    """Whether an example value is several tensors."""
    return isinstance(value, (tuple, list)) and bool(value) and all(isinstance(v, Tensor) for v in value)


def in_pieces(node: fx.Node) -> bool:
    """Whether a node gives several tensors, or is given a node that does."""
    return is_several(node.meta.get("val")) or any(is_several(n.meta.get("val")) for n in node.all_input_nodes)


# -- cuts ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cut:
    """A tensor cut into several along one dimension.

    Attributes:
        source: the tensor.
        dim: the dimension.
        sizes: of the pieces.
        gone: whether the pieces do not have the dimension (``unbind``).
        how: the argument that says where: a number, a list, or a node; ``None`` for ``unbind``.
    """

    source: fx.Node
    dim: int
    sizes: tuple[int, ...]
    gone: bool
    how: Any

    @property
    def equal(self) -> bool:
        """Whether one number says that all pieces are alike, and they are."""
        return isinstance(self.how, int) and len(set(self.sizes)) == 1


def cut_of(node: fx.Node) -> Cut | None:
    """How a node cuts a tensor; ``None`` if it does not.

    Raises:
        Unsupported: along a computed dimension.
    """
    name, source = name_of(node), node.args[0] if node.args else None
    if name not in _CUTS or not isinstance(source, fx.Node) or not is_several(node.meta.get("val")):
        return None
    gone = name == "unbind"
    given = argument(node, 1 if gone else 2, "dim|axis", 0)
    if type(given) is not int:
        raise Unsupported("cuts a computed dimension into pieces")
    dim = given % len(shape_of(source))
    sizes = tuple(1 if gone else int(piece.shape[dim]) for piece in node.meta["val"])
    how = None if gone else argument(node, 1, "|".join(_HOW))
    return Cut(source, dim, sizes, gone, how)


_HOW = ("split_size_or_sections", "split_size", "split_sizes", "chunks", "indices_or_sections", "indices", "sections")


def _pieces(walk: Walk, node: fx.Node) -> tuple[Axes, ...]:
    cut = cut_of(node)
    if cut is None:
        raise Unsupported("cuts something that is not one tensor of the graph")
    axes = walk.states[cut.source].axes
    own = {d - (cut.gone and d > cut.dim): axis for d, axis in axes.items() if d != cut.dim}
    if cut.dim not in axes:
        return tuple(dict(own) for _ in cut.sizes)
    if cut.gone:
        raise Unsupported("cuts a dimension whose features changed into pieces")
    pieces = axes[cut.dim].cut(cut.sizes)
    _edit(walk, node, cut, [piece.new if isinstance(piece, Axis) else piece for piece in pieces])
    return tuple(own | ({cut.dim: piece} if isinstance(piece, Axis) else {}) for piece in pieces)


def _edit(walk: Walk, node: fx.Node, cut: Cut, new: list[int]) -> None:
    """Sizes, or places, among the arguments follow; what is computed follows by itself."""
    name = name_of(node)
    if isinstance(cut.how, (list, tuple)):
        values = list(accumulate(new))[:-1] if name == "tensor_split" else new
        followed: Any = [new if isinstance(old, int) else old for old, new in zip(cut.how, values, strict=True)]
    elif name == "split" and isinstance(cut.how, int):
        followed = new[0] if len(set(new[:-1])) == 1 and new[-1] <= new[0] else new
    else:
        followed = cut.how
        if isinstance(followed, int):
            given = getattr(torch.empty(sum(new), device="meta"), name)(followed)
            if [len(piece) for piece in given] != new:
                raise Unsupported(f"cuts into {followed} equal parts what became parts of {new} entries")
    if len(node.args) > 1:
        walk.edits[node] = ((*node.args[:1], followed, *node.args[2:]), dict(node.kwargs))
    else:
        walk.edits[node] = (node.args, {k: followed if k in _HOW else v for k, v in node.kwargs.items()})


op_by_rules(*_CUTS, several=_pieces)


def whole_of(walk: Walk, taken: fx.Node, wanted: Axes) -> Asked:
    """What the tensor that was cut must give, for one of its pieces to be ``wanted``."""
    node, at = taken.args
    cut = cut_of(node) if isinstance(node, fx.Node) else None
    if cut is None or type(at) is not int:
        return []
    across = {d + (cut.gone and d >= cut.dim): axis for d, axis in wanted.items() if cut.gone or d != cut.dim}
    along = None if cut.gone else wanted.get(cut.dim)
    if along is None:
        return [(cut.source, across)]
    if not along.in_place or not (cut.equal or isinstance(cut.how, (list, tuple))):
        return []
    now = walk.states[node].parts  # type: ignore[index]
    segments: list[Segment] = []
    for place, size in enumerate(cut.sizes):
        mine = cut.equal or place == at % len(cut.sizes)
        piece = along if mine else now[place].get(cut.dim) if now else None
        segments.extend(piece.segments if piece is not None else (Segment.plain(size),))
    return [(cut.source, across | {cut.dim: Axis(tuple(segments)).standing(True)})]


# -- the rest --------------------------------------------------------------------------------


def extremes(walk: Walk, node: fx.Node) -> tuple[Axes, ...]:
    """``max``, ``min``, ``median`` along a dimension, ``sort`` and ``topk``: values and positions."""
    name = name_of(node)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    given = argument(node, 2 if name == "topk" else 1, "dim", -1)
    if isinstance(given, bool) or not isinstance(given, int):
        raise Unsupported("compares along a computed dimension")
    shape = shape_of(source)
    dim = given % len(shape)
    axes = walk.states[source].axes
    # ``values, _ = x.max(1)`` takes both; what nobody uses does not matter.
    positions = any(_VALUES.get(str(user.args[1]), user.args[1]) != 0 for user in node.users if user.users)
    if dim in axes and (name in ("sort", "topk") or positions):
        raise Unsupported("takes positions along a dimension whose features changed")
    fewer = node.meta["val"][0].dim() != len(shape)
    own = {d - (fewer and d > dim): axis for d, axis in axes.items() if d != dim}
    return own, dict(own)


op_by_rules("median", "sort", "topk", several=extremes)


def element(walk: Walk, node: fx.Node) -> Axes | tuple[Axes, ...]:
    """One of several tensors, or several of them."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return walk.states[source].part(node.args[1])


def piece_attribute(walk: Walk, node: fx.Node) -> Axes | tuple[Axes, ...]:
    """``.values`` and ``.indices`` of what a comparison gives."""
    source, name = node.args
    assert isinstance(source, fx.Node)
    if name not in _VALUES:
        raise Unsupported(f"the attribute {name} of several tensors")
    return walk.states[source].part(_VALUES[str(name)])


def joined_pieces(walk: Walk, node: fx.Node) -> Axes:
    """``stack`` and ``cat`` of all pieces, as many as before."""
    source = argument(node, 0, "tensors")
    if not isinstance(source, fx.Node) or not is_several(source.meta["val"]):
        raise Unsupported("joins several tensors with others")
    parts = walk.states[source].parts
    shapes = [tuple(v.shape) for v in source.meta["val"]]
    rank = len(shape_of(node))
    dim = int(argument(node, 1, "dim|axis", 0)) % rank
    if any({d: a.new for d, a in part.items()} != {d: a.new for d, a in parts[0].items()} for part in parts):
        raise Unsupported("joins pieces that changed in different ways")
    if name_of(node) == "stack":
        return {d + (d >= dim): axis for d, axis in parts[0].items()}
    result = {d: axis for d, axis in parts[0].items() if d != dim}
    along: list[Axis | int] = [part.get(dim, shape[dim]) for part, shape in zip(parts, shapes, strict=True)]
    joined = Axis.joined(along, unit=dim == rank - 1)
    return result if joined is None else result | {dim: joined}
