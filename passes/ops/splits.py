"""Rules for several tensors at once: what splits a tensor into them, and what takes or joins them.

``split`` and ``chunk`` cut a dimension by position, so it must not be one whose features
changed. Each piece keeps the other dimensions. ``max`` and the like with a dimension give
values and positions; positions of features mean nothing after a change and must not be used.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx

from dmt_plugin.passes.ops.axes import Axes, Axis, Unsupported
from dmt_plugin.passes.ops.indexing import index
from dmt_plugin.passes.ops.names import name_of, shape_of
from dmt_plugin.passes.ops.walk import Rule, Walk

_VALUES = {"values": 0, "indices": 1}


def _several(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and bool(value) and all(isinstance(v, Tensor) for v in value)


def in_pieces(node: fx.Node) -> bool:
    """Whether a node gives several tensors, or is given a node that does."""
    return _several(node.meta.get("val")) or any(_several(n.meta.get("val")) for n in node.all_input_nodes)


def _cut(walk: Walk, node: fx.Node) -> tuple[Axes, ...]:
    """``split``, ``chunk``, ``tensor_split``, ``unbind``."""
    name = name_of(node)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    at = 1 if name == "unbind" else 2
    given: Any = node.args[at] if len(node.args) > at else node.kwargs.get("dim", 0)
    axes = walk.states[source].axes
    if not isinstance(given, int):
        raise Unsupported("cuts a computed dimension into pieces")
    dim = given % len(shape_of(source))
    if dim in axes:
        raise Unsupported("cuts a dimension whose features changed into pieces")
    gone = name == "unbind"
    own = {d - (1 if gone and d > dim else 0): axis for d, axis in axes.items()}
    return tuple(dict(own) for _ in node.meta["val"])


def _extremes(walk: Walk, node: fx.Node) -> tuple[Axes, ...]:
    """``max``, ``min``, ``median`` along a dimension, ``sort`` and ``topk``: values and positions."""
    name = name_of(node)
    source = node.args[0]
    assert isinstance(source, fx.Node)
    at, default = (2, -1) if name == "topk" else (1, -1)
    given: Any = node.args[at] if len(node.args) > at else node.kwargs.get("dim", default)
    if isinstance(given, bool) or not isinstance(given, int):
        raise Unsupported("compares along a computed dimension")
    shape = shape_of(source)
    dim = given % len(shape)
    axes = walk.states[source].axes
    # ``values, _ = x.max(1)`` takes both; what nobody uses does not matter.
    positions = any(_VALUES.get(str(user.args[1]), user.args[1]) != 0 for user in node.users if user.users)
    if dim in axes and (name in ("sort", "topk") or positions):
        raise Unsupported("takes positions along a dimension whose features changed")
    if node.meta["val"][0].dim() == len(shape):
        own = {d: axis for d, axis in axes.items() if d != dim}
    else:
        own = {d - (1 if d > dim else 0): axis for d, axis in axes.items() if d != dim}
    return own, dict(own)


def piece_attribute(walk: Walk, node: fx.Node) -> Axes | tuple[Axes, ...]:
    """``.values`` and ``.indices`` of what a comparison gives."""
    source, name = node.args
    assert isinstance(source, fx.Node)
    if name not in _VALUES:
        raise Unsupported(f"the attribute {name} of several tensors")
    return walk.states[source].part(_VALUES[str(name)])


def _joined(walk: Walk, node: fx.Node) -> Axes:
    """``stack`` and ``cat`` of all pieces, as many as before."""
    source = node.args[0] if node.args else node.kwargs["tensors"]
    if not isinstance(source, fx.Node) or not _several(source.meta["val"]):
        raise Unsupported("joins several tensors with others")
    parts = walk.states[source].parts
    shapes = [tuple(v.shape) for v in source.meta["val"]]
    rank = len(shape_of(node))
    given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    dim = int(given) % rank
    if any({d: a.new for d, a in part.items()} != {d: a.new for d, a in parts[0].items()} for part in parts):
        raise Unsupported("joins pieces that changed in different ways")
    if name_of(node) == "stack":
        return {d + (1 if d >= dim else 0): axis for d, axis in parts[0].items()}
    result = {d: axis for d, axis in parts[0].items() if d != dim}
    along: list[Axis | int] = [part.get(dim, shape[dim]) for part, shape in zip(parts, shapes, strict=True)]
    joined = Axis.joined(along, unit=dim == rank - 1)
    return result if joined is None else result | {dim: joined}


PIECES: dict[str, Rule] = {
    "split": _cut, "chunk": _cut, "tensor_split": _cut, "unbind": _cut,
    "max": _extremes, "min": _extremes, "median": _extremes, "sort": _extremes, "topk": _extremes,
    "cat": _joined, "concat": _joined, "concatenate": _joined, "stack": _joined,
    "getitem": index, "getattr": piece_attribute,
}  # fmt: skip
