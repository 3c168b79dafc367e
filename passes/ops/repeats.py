"""Copies along a dimension: ``expand``, ``repeat`` and the like; tensors filled with one value, or at random.

The latter are copies in every dimension.

1. A dimension that is taken over as it is passes through; a literal size that names it follows.
2. A dimension made of copies of one entry may have any number of copies: where it meets features whose number changed
   (:meth:`Walk.impose` asks for it), a literal follows. A size computed in the graph follows by itself.
3. Several copies of a dimension whose features changed are refused: a literal number of copies may count the features,
   and too few of them would pair too few.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from dmt_plugin.fxtools.arguments import argument, arguments
from dmt_plugin.passes.ops.axes import Axes, Axis, Unsupported
from dmt_plugin.passes.ops.dims import Dims, Token, leading, tensor
from dmt_plugin.passes.ops.names import name_of, shape_of
from dmt_plugin.passes.ops.registry import never, op
from dmt_plugin.passes.ops.sizes import Sizes, sizes_of
from dmt_plugin.passes.ops.views import keeps_batch_in_front
from dmt_plugin.passes.ops.walk import Walk

_COUNTS = ("repeat", "tile")


def _values(walk: Walk, sizes: Sizes) -> list[tuple[int, int, bool]]:
    """Each size before and now, and whether it is a literal."""
    if sizes.whole is not None:
        pairs = zip(sizes.whole.meta["val"], walk.states[sizes.whole].value, strict=True)
        return [(int(old), int(new), False) for old, new in pairs]
    return [
        (size.meta["val"], walk.states[size].value, False) if isinstance(size, fx.Node) else (size, size, True)
        for size in sizes.given
    ]


def _filled(walk: Walk, node: fx.Node) -> Axes:
    sizes = sizes_of(node)
    made = {d: _made(walk, node, d, size, size[0]) for d, size in enumerate(_values(walk, sizes))}
    result = {d: axis for d, axis in made.items() if axis is not None}
    walk.edits[node] = sizes.replaced(lambda at, size: _followed(size, result.get(at)))
    return result


@op("new_zeros", "new_ones", "new_full", forward=_filled, per_sample=never, traits=("reads_no_values",))
@op("zeros", "ones", "full", "rand", "randn", forward=_filled, per_sample=never)
def _all_own(node: fx.Node) -> Dims:
    """``torch.zeros``, ``x.new_ones`` and the like: any number of entries will do."""
    result = tuple(f"own{d}" for d in range(len(shape_of(node))))
    return Dims((), result, own=frozenset(result))


def _eye(walk: Walk, node: fx.Node) -> Axes:
    """``torch.eye(n)``: rows and columns follow a computed size together; what a literal one counts nobody knows."""
    size = argument(node, 0, "n")
    if len(node.args) > 1 or "m" in node.kwargs or not isinstance(size, fx.Node):
        raise Unsupported("a matrix of ones on its diagonal, of a size that does not follow")
    now = walk.states[size].value
    made = {d: _made(walk, node, d, (size.meta["val"], now, False), size.meta["val"]) for d in (0, 1)}
    return {d: axis for d, axis in made.items() if axis is not None}


@op("eye", forward=_eye, per_sample=never)
def _diagonal(node: fx.Node) -> Dims:
    return Dims((), ("own0", "own1"), own=frozenset(("own0", "own1")))


def _repeats(walk: Walk, node: fx.Node) -> Axes:
    counts = name_of(node) in _COUNTS
    source = tensor(node.args[0])
    shape, out, axes = shape_of(source), shape_of(node), walk.states[source].axes
    sizes = sizes_of(node)
    given = _values(walk, sizes)
    in_front = len(out) - len(given)
    result: Axes = {}
    for d, size in enumerate([(1, 1, True)] * in_front + given):
        own = d - (len(out) - len(shape))
        if own >= 0 and own in axes:
            if shape[own] == 1 and out[d] != 1:
                raise Unsupported("broadcasts a changed dimension of size 1")
            if counts and size[:2] != (1, 1):
                raise Unsupported("repeats a dimension whose features changed; how often may depend on their number")
            result[d] = axes[own]
        elif own < 0 or shape[own] == 1:
            made = _made(walk, node, d, size, out[d])
            if made is not None:
                result[d] = made

    def follow(at: int, size: Any) -> Any:
        """A literal number of copies follows only where it makes all entries of a dimension."""
        return size if counts and size == 1 and given[at][0] == 1 else _followed(size, result.get(at + in_front))

    walk.edits[node] = sizes.replaced(follow)
    return result


@op("expand", forward=_repeats, per_sample=keeps_batch_in_front)
@op("broadcast_to", forward=_repeats, per_sample=never)
@op(*_COUNTS, forward=_repeats)
def _copied(node: fx.Node) -> Dims:
    """A dimension of copies of one entry is the operation's own; one that is taken over as it is passes through."""
    source, out = tensor(node.args[0]), shape_of(node)
    tokens, shape = leading(len(shape_of(source))), shape_of(source)
    times = sizes_of(node).given if name_of(node) in _COUNTS else ()
    own: set[Token] = set()
    result: list[Token] = []
    for d in range(-len(out), 0):
        count = times[d] if len(times) >= -d else 1
        if d not in tokens or shape[d] == 1:
            own.add(f"own{d}")
            result.append(f"own{d}")
        else:
            result.append(d if isinstance(count, int) and count == 1 else f"several{d}")
    return Dims(((source, tokens),), tuple(result), own=frozenset(own))


def _made(walk: Walk, node: fx.Node, dim: int, size: tuple[int, int, bool], before: int) -> Axis | None:
    """The axis of a dimension of copies: what is asked for, or what its computed size became."""
    wanted, (old, new, literal) = walk.forced.get((node, dim)), size
    if literal or (wanted is not None and new == wanted.new):
        return wanted
    if wanted is not None:
        raise Unsupported(f"makes {new} copies, computed in the model, where {wanted.new} are needed")
    return Axis.of(before, new) if new != old else None


def _followed(size: Any, axis: Axis | None) -> Any:
    return size if axis is None or not isinstance(size, int) or size == -1 else axis.new


def _interleaved(walk: Walk, node: fx.Node) -> Axes:
    """Only along dimensions that did not change, a literal number of times."""
    call = arguments(node, "input|self", "repeats", "dim")
    source, times, dim = tensor(call["input"]), call["repeats"], call.get("dim")
    axes = walk.states[source].axes
    if not isinstance(dim, int) or not isinstance(times, int):
        raise Unsupported("repeats a number of times, or along a dimension, that is computed")
    if dim % len(shape_of(source)) in axes:
        raise Unsupported("repeats a dimension whose features changed; how often may depend on their number")
    return dict(axes)


@op("repeat_interleave", forward=_interleaved)
def _several_times(node: fx.Node) -> Dims:
    call = arguments(node, "input|self", "repeats", "dim")
    source, dim = tensor(call["input"]), call.get("dim")
    if not isinstance(dim, int):
        raise Unsupported("repeats a number of times, or along a dimension, that is computed")
    tokens = leading(len(shape_of(source)))
    return Dims(((source, tokens),), tuple("several" if t == tokens[dim] else t for t in tokens))
