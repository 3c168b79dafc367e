"""Rules for copies along a dimension: ``expand``, ``broadcast_to``, ``repeat``, ``tile``, ``repeat_interleave``;
and for tensors filled with one value, or at random, which are copies in every dimension.

1. A dimension that is taken over as it is passes through; a literal size that names it follows.
2. A dimension made of copies of one entry may have any number of copies: where it meets
   features whose number changed (:meth:`Walk.impose` asks for it), a literal follows. A
   size computed in the graph follows by itself.
3. Several copies of a dimension whose features changed are refused: a literal number of
   copies may count the features, and too few of them would pair too few.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from dmt_plugin.passes.ops.axes import Axes, Axis, Unsupported
from dmt_plugin.passes.ops.names import FILLS, name_of, shape_of
from dmt_plugin.passes.ops.walk import Walk

_KEYS = ("size", "sizes", "shape", "repeats", "dims")


@dataclass
class _Size:
    """A size or a number of copies: before, now, and whether it is written as a literal."""

    old: int
    new: int
    literal: bool


def _first(node: fx.Node) -> int:
    """Position of the first size among the arguments."""
    return 1 if isinstance(node.target, str) or name_of(node) not in FILLS else 0


def _sizes(walk: Walk, node: fx.Node) -> list[_Size]:
    rest = node.args[_first(node) :]
    if name_of(node) in ("full", "new_full"):
        rest = rest[:1]  # the value follows
    given: Any = next((node.kwargs[key] for key in _KEYS if key in node.kwargs), rest)
    if len(given) == 1 and not isinstance(given[0], int):
        (given,) = given
    if isinstance(given, fx.Node):
        if isinstance(given.meta["val"], int):
            given = [given]
        else:
            pairs = zip(given.meta["val"], walk.states[given].value, strict=True)
            return [_Size(int(old), int(new), False) for old, new in pairs]
    return [
        _Size(size, size, True) if isinstance(size, int) else _Size(size.meta["val"], walk.states[size].value, False)
        for size in given
    ]


def filled(walk: Walk, node: fx.Node) -> Axes:
    """``torch.zeros``, ``x.new_ones`` and the like: any number of entries will do."""
    given = _sizes(walk, node)
    made = {d: _made(walk.forced.get((node, d)), size, size.old) for d, size in enumerate(given)}
    result = {d: axis for d, axis in made.items() if axis is not None}
    _edit(walk, node, result, False, given)
    return result


def repeats(walk: Walk, node: fx.Node) -> Axes:
    """``expand``, ``broadcast_to``, ``repeat``, ``tile``: see the module's docstring."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    counts = name_of(node) in ("repeat", "tile")
    shape, out, axes = shape_of(source), shape_of(node), walk.states[source].axes
    given = _sizes(walk, node)
    sizes = [_Size(1, 1, True)] * (len(out) - len(given)) + given
    result: Axes = {}
    for d, size in enumerate(sizes):
        own = d - (len(out) - len(shape))
        if own >= 0 and own in axes:
            if shape[own] == 1 and out[d] != 1:
                raise Unsupported("broadcasts a changed dimension of size 1")
            if counts and (size.old, size.new) != (1, 1):
                raise Unsupported("repeats a dimension whose features changed; how often may depend on their number")
            result[d] = axes[own]
        elif own < 0 or shape[own] == 1:
            made = _made(walk.forced.get((node, d)), size, out[d])
            if made is not None:
                result[d] = made
    _edit(walk, node, {d - (len(out) - len(given)): axis for d, axis in result.items()}, counts, given)
    return result


def _made(wanted: Axis | None, size: _Size, old: int) -> Axis | None:
    """The axis of a dimension of copies: what is asked for, or what its computed size became."""
    if size.literal or (wanted is not None and size.new == wanted.new):
        return wanted
    if wanted is not None:
        raise Unsupported(f"makes {size.new} copies, computed in the model, where {wanted.new} are needed")
    return Axis.of(old, size.new) if size.new != size.old else None


def _edit(walk: Walk, node: fx.Node, axes: Axes, counts: bool, given: list[_Size]) -> None:
    """Literal sizes follow; a number of copies does only where it makes all entries of a dimension."""

    def follow(at: int, size: Any) -> Any:
        axis = axes.get(at)
        keeps = not isinstance(size, int) or size == -1 or (counts and size == 1 and given[at].old == 1)
        return size if axis is None or keeps else axis.new

    def all_of(sizes: Any) -> Any:
        if isinstance(sizes, fx.Node):
            return sizes
        return tuple(follow(at, size) for at, size in enumerate(sizes))

    key = next((key for key in _KEYS if key in node.kwargs), None)
    args: tuple[Any, ...] = node.args
    at = _first(node)
    if key is not None:
        walk.edits[node] = (args, dict(node.kwargs) | {key: all_of(node.kwargs[key])})
    elif (len(args) == at + 1 and isinstance(args[at], (tuple, list))) or name_of(node) in ("full", "new_full"):
        walk.edits[node] = ((*args[:at], all_of(args[at]), *args[at + 1 :]), dict(node.kwargs))
    elif len(args) == at + 1 and isinstance(args[at], fx.Node) and not isinstance(args[at].meta["val"], int):
        walk.edits[node] = (args, dict(node.kwargs))
    else:
        walk.edits[node] = ((*args[:at], *all_of(args[at:])), dict(node.kwargs))


def interleaved(walk: Walk, node: fx.Node) -> Axes:
    """``repeat_interleave``: only along dimensions that did not change, a literal number of times."""
    call: dict[str, Any] = dict(zip(("input", "repeats", "dim"), node.args, strict=False)) | dict(node.kwargs)
    source, times, dim = call["input"] if "input" in call else call["self"], call["repeats"], call.get("dim")
    axes = walk.states[source].axes
    if not isinstance(dim, int) or not isinstance(times, int):
        raise Unsupported("repeats a number of times, or along a dimension, that is computed")
    if dim % len(shape_of(source)) in axes:
        raise Unsupported("repeats a dimension whose features changed; how often may depend on their number")
    return dict(axes)
