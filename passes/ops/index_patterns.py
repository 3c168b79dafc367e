"""Index constants that enumerate pairs of features, recognised by value and rebuilt for the new number of features.

A dot interaction picks the lower or upper triangle of an ``n x n`` matrix, spelled as two
index vectors (a buffer, a list built in Python) or as a boolean mask. When ``n`` changes,
an old list may still be in range and silently miss pairs. So a constant that indexes
changed dimensions must be exactly one of the known patterns for the old ``n``; then it is
built for the new ``n``. Anything else is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from dmt_plugin.capture.masks import constant_of
from dmt_plugin.fxtools.constants import constant_of as constant_in
from dmt_plugin.passes.ops.axes import Axes, Axis, Unsupported
from dmt_plugin.passes.ops.names import is_index_list
from dmt_plugin.passes.ops.walk import Walk

TRIANGLES = (torch.tril_indices, torch.triu_indices)


def constant_value(walk: Walk, item: Any, axis: Axis | None = None) -> Tensor | None:
    """The real value of an index argument that is the same in every call, or ``None``.

    Args:
        walk: the walk.
        item: what a tensor is indexed by.
        axis: the indexed dimension, if it changed: a triangle computed from its size counts as constant.
    """
    if is_index_list(item):
        return torch.tensor(item)
    if isinstance(item, Tensor):
        return item
    if not isinstance(item, fx.Node):
        return None
    if item.op == "get_attr":
        value = walk.attribute(item)
        if not isinstance(value, Tensor) or (isinstance(value, nn.Parameter) and value.is_floating_point()):
            return None  # integers and booleans cannot be trained, even where they are kept as a parameter
        return value.detach()
    if item.target is operator.getitem and isinstance(item.args[1], int):
        source = constant_value(walk, item.args[0], axis)
        return None if source is None else source[item.args[1]]
    if item.target in TRIANGLES and axis is not None:
        return _computed_triangle(walk, item, axis)
    known = constant_of(item, walk.gm)
    return constant_in(walk.gm, item) if known is None else known


def _computed_triangle(walk: Walk, node: fx.Node, axis: Axis) -> Tensor | None:
    """``torch.triu_indices(n, n)`` in forward, with ``n`` read off a changed dimension of the size of ``axis``."""
    sizes = [node.args[0], node.args[1]] if len(node.args) > 1 else [node.kwargs.get("row"), node.kwargs.get("col")]
    for size in sizes:
        read = _read_off(walk, size)
        if read is None or (read.old, read.new) != (axis.old, axis.new):
            return None
    offset: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("offset", 0)
    assert callable(node.target)
    return node.target(axis.old, axis.old, offset) if isinstance(offset, int) else None


def _read_off(walk: Walk, size: Any) -> Axis | None:
    """The axis of the dimension whose size is ``x.shape[d]`` or ``x.size(d)``, if it changed."""
    if not isinstance(size, fx.Node):
        return None
    if size.target == "size" and len(size.args) == 2:
        source, dim = size.args
    elif size.target is operator.getitem and isinstance(shape := size.args[0], fx.Node):
        if shape.target != "size" and not (shape.target is getattr and shape.args[1] == "shape"):
            return None
        source, dim = shape.args[0], size.args[1]
    else:
        return None
    if not isinstance(source, fx.Node) or not isinstance(dim, int):
        return None
    return walk.states[source].axes.get(dim % len(source.meta["val"].shape))


def enumerated_anew(pairs: Tensor, axis: Axis, ordered: bool = True) -> Tensor | None:
    """The pairs of ``axis.new`` things, enumerated as ``pairs`` enumerates those of ``axis.old``.

    For few things several enumerations agree. They may differ in order only, which does not
    matter, as everything behind the pairs is re-initialized.

    Args:
        pairs: rows and columns, ``(2, pairs)``.
        axis: old and new number of things.
        ordered: False if only the set of pairs is known (a mask).

    Returns:
        ``(2, new pairs)``, or ``None`` if this is no known enumeration.

    Raises:
        Unsupported: it is one of several that mean different pairs.
    """
    found = []
    for build in _enumerations():
        old = build(axis.old)
        same_pairs = not ordered and torch.equal(_counts(old, axis.old, False), _counts(pairs, axis.old, False))
        if torch.equal(old, pairs) or same_pairs:
            found.append(build(axis.new))
    if any(not torch.equal(_counts(found[0], axis.new, True), _counts(new, axis.new, True)) for new in found[1:]):
        raise Unsupported(f"for {axis.old} features its index may mean several kinds of pairs")
    return found[0] if found else None


def _counts(pairs: Tensor, n: int, either_way: bool) -> Tensor:
    """How often each pair of ``n`` things is listed; (0, 1) and (1, 0) may count as one."""
    first, second = (pairs.amin(0), pairs.amax(0)) if either_way else pairs
    return torch.bincount(first * n + second, minlength=n * n)


def _enumerations() -> Iterator[Callable[[int], Tensor]]:
    """Known ways to list the pairs of ``n`` things: functions of ``n`` that give ``(2, pairs)``."""
    triangles = [_triangle(function, offset) for function in TRIANGLES for offset in (-1, 0, 1)]
    yield from triangles
    yield from (_columns_first(build) for build in triangles)
    yield _by_distance
    yield _all_but_diagonal
    yield _all
    yield _diagonal


def _triangle(function: Callable[..., Tensor], offset: int) -> Callable[[int], Tensor]:
    return lambda n: function(n, n, offset)


def _columns_first(build: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
    return lambda n: build(n).flip(0)


def _by_distance(n: int) -> Tensor:
    """(0, 1), (1, 2), ..., then (0, 2), (1, 3), ..."""
    return torch.tensor([(i, i + k) for k in range(1, n) for i in range(n - k)]).reshape(-1, 2).t()


def _all_but_diagonal(n: int) -> Tensor:
    return torch.tensor([(i, j) for i in range(n) for j in range(n) if i != j]).reshape(-1, 2).t()


def _all(n: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(n), torch.arange(n)).t()


def _diagonal(n: int) -> Tensor:
    return torch.arange(n).expand(2, -1)


def regenerate(walk: Walk, node: fx.Node, positions: Sequence[int], items: Sequence[Any], axes: Axes, dim: int) -> Axis:
    """Replaces the pair index of ``node`` by one for the new number of features.

    Args:
        walk: the walk.
        node: the ``getitem`` node.
        positions: positions of the index constants among ``items``.
        items: the index, one entry per dimension.
        axes: axes of the indexed tensor.
        dim: first indexed dimension; the second is the next one.

    Returns:
        The axis of the resulting list of pairs.

    Raises:
        Unsupported: the constant is not a known pattern.
    """
    first, second = axes.get(dim), axes.get(dim + 1)
    if first is None or second is None or first.new != second.new or first.old != second.old:
        raise Unsupported("picks single entries of a dimension whose features changed")
    values = [constant_value(walk, items[p], first) for p in positions]
    if any(v is None for v in values):
        raise Unsupported("its index is computed; only constant index lists can be made anew")
    if any(v is not None and v.is_meta for v in values):
        raise Unsupported("its index list holds no data (meta device), so it cannot be recognised")
    known = [v.cpu() for v in values if v is not None]
    mask = len(known) == 1 and known[0].dtype == torch.bool
    new = None
    if mask and known[0].shape == (first.old, first.old):
        new = enumerated_anew(known[0].nonzero().t(), first, ordered=False)
    elif len(known) == 2 and all(v.dim() == 1 for v in known) and len(known[0]) == len(known[1]):
        new = enumerated_anew(torch.stack(known), first)
    if new is None:
        raise Unsupported(f"its index is not a triangle of {first.old} x {first.old} pairs")
    if mask:  # the order of a mask is that of its rows; new lists replace it, as a mask has no shape without data
        made = torch.zeros(first.new, first.new, dtype=torch.bool)
        made[tuple(new)] = True
        new = made.nonzero().t()
    old_pairs = int(known[0].sum()) if mask else len(known[0])
    index = list(items)
    index[positions[0] : positions[-1] + 1] = list(new)
    walk.edits[node] = ((node.args[0], tuple(index)), {})
    return Axis.of(old_pairs, new.shape[1])


def mask_anew(walk: Walk, node: fx.Node, source: fx.Node, missing: Axes) -> bool:
    """Replaces a constant mask over pairs of features, as ``scores * mask`` or ``masked_fill`` use it.

    Args:
        walk: the walk.
        node: an operation entry by entry.
        source: one of its inputs.
        missing: dimensions in which the input must follow.

    Returns:
        Whether the input is a constant of two values whose last two dimensions are a known pattern of pairs; then the
        operation has been given the one for the new number of features.
    """
    value = constant_value(walk, source)
    rank = len(source.meta["val"].shape)
    if value is None or value.is_meta or rank < 2 or sorted(missing) != [rank - 2, rank - 1]:
        return False
    rows, columns = missing[rank - 2], missing[rank - 1]
    kinds = value.unique()
    if (rows.old, rows.new) != (columns.old, columns.new) or len(kinds) != 2 or value.numel() != rows.old**2:
        return False
    flat = value.reshape(rows.old, rows.old)
    for on, off in (kinds, kinds.flip(0)):
        pairs = enumerated_anew((flat == on).nonzero().t().cpu(), rows, ordered=False)
        if pairs is not None:
            made = torch.full((rows.new, rows.new), off.item(), dtype=value.dtype, device=value.device)
            made[tuple(pairs)] = on
            made = made.reshape(*value.shape[:-2], rows.new, rows.new)
            walk.edits[node] = _replaced(walk.edits.get(node, (node.args, node.kwargs)), source, made)
            return True
    return False


def _replaced(arguments: Any, source: fx.Node, value: Tensor) -> Any:
    return map_arg(arguments, lambda n: value if n is source else n)
