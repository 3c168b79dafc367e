"""Pairs of features picked by two index lists over one dimension, rebuilt together.

Product networks write ``x[:, row] * x[:, col]`` with lists that enumerate the pairs of the
``n`` vectors of ``x``. When ``n`` grows, old lists are still in range and miss pairs. So:

1. All constant lists that pick from one dimension of one tensor are gathered.
2. They must be two, and be the two halves of one known enumeration for the old ``n``.
3. Then each becomes its half of the same enumeration for the new ``n``.

A list alone says nothing (it may be the first of any pairs, or a choice of features), so one
list, three lists, or an unknown enumeration is refused.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from dmt_plugin.fxtools.arguments import arguments
from dmt_plugin.passes.ops.axes import Axes, Axis, Segment, Unsupported
from dmt_plugin.passes.ops.index_patterns import constant_value, enumerated_anew
from dmt_plugin.passes.ops.names import is_index_list, name_of, shape_of
from dmt_plugin.passes.ops.walk import Walk


def picked(node: fx.Node) -> tuple[fx.Node, int, Any] | None:
    """``(source, dimension, list)`` of a node that picks entries of one dimension by a list, else ``None``."""
    if name_of(node) == "index_select":
        call = arguments(node, "input", "dim", "index")
        source, dim = call["input"], call["dim"]
        if isinstance(source, fx.Node) and isinstance(dim, int):
            return source, dim % len(shape_of(source)), call["index"]
        return None
    if node.target is not operator.getitem:
        return None
    source, index = node.args
    plain = isinstance(index, list) and is_index_list(index)  # a tuple has an entry for each dimension
    items = list(index) if isinstance(index, (tuple, list)) and not plain else [index]
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return None
    if any(item is Ellipsis for item in items):
        at = next(i for i, item in enumerate(items) if item is Ellipsis)
        items[at : at + 1] = [slice(None)] * (len(shape_of(source)) - len(items) + 1)
    lists = [d for d, item in enumerate(items) if is_index_list(item) or isinstance(item, (fx.Node, Tensor))]
    if len(lists) != 1 or any(item is None or isinstance(item, int) for item in items):
        return None
    return source, lists[0], items[lists[0]]


def new_list(walk: Walk, node: fx.Node, axis: Axis) -> tuple[Tensor, Axes]:
    """The list of ``node`` for the new number of features.

    Args:
        walk: the walk.
        node: picks from one dimension by one list.
        axis: what became of that dimension.

    Returns:
        The new list, and the axes of its dimensions: the pairs.

    Raises:
        Unsupported: the lists over this dimension are not the two halves of a known enumeration of pairs.
    """
    here = picked(node)
    if here is None:
        raise Unsupported("picks features together with single entries, or by several lists")
    source, dim, item = here
    mine = constant_value(walk, item, axis)
    if mine is None:
        raise Unsupported("picks features by a computed index; only constant index lists can be made anew")
    lists: list[Tensor] = []
    for user in source.users:
        other = picked(user)
        value = constant_value(walk, other[2], axis) if other is not None and other[:2] == (source, dim) else None
        if value is not None and not any(torch.equal(value.cpu(), known) for known in lists):
            lists.append(value.cpu())
    if any(value.is_meta for value in (mine, *lists)):
        raise Unsupported("its index list holds no data (meta device), so it cannot be recognised")
    if len(lists) == 1 and mine.dim() == 2:
        return _both(mine, axis)
    if len(lists) != 2 or any(value.dim() != 1 or value.dtype == torch.bool for value in lists):
        raise Unsupported(
            f"picks entries of a dimension whose features changed; {len(lists)} index list(s) over it were found, and "
            "only two that enumerate pairs together can be made anew"
        )
    (other_half,) = [value for value in lists if not torch.equal(value, mine.cpu())]
    for first in (True, False):
        halves = torch.stack([mine.cpu(), other_half] if first else [other_half, mine.cpu()])
        new = enumerated_anew(halves, axis)
        if new is not None:
            return new[0 if first else 1].to(mine), {0: _pairs(len(mine), new.shape[1], axis)}
    raise Unsupported(f"its index lists do not enumerate the pairs of {axis.old} features in a known order")


def _pairs(before: int, now: int, axis: Axis) -> Axis:
    """The dimension of the pairs; all pairs of ``n`` things in order are ``n`` rows of ``n``."""
    if (before, now) == (axis.old**2, axis.new**2):
        return Axis((Segment(before, now, axis.old, axis.new),))
    return Axis.of(before, now)


def _both(index: Tensor, axis: Axis) -> tuple[Tensor, Axes]:
    """One constant with both halves, ``(2, pairs)`` or ``(pairs, 2)``."""
    if index.shape == (2, 2):
        raise Unsupported("its index of 2 x 2 entries may hold the pairs as rows or as columns")
    rows = index.shape[0] == 2
    new = enumerated_anew((index if rows else index.t()).cpu(), axis) if 2 in index.shape else None
    if new is None:
        raise Unsupported(f"its index does not enumerate the pairs of {axis.old} features in a known order")
    pairs = Axis.of(index.numel() // 2, new.shape[1])
    return (new if rows else new.t().contiguous()).to(index), {1 if rows else 0: pairs}
