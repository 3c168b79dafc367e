"""Index constants that enumerate pairs of features, recognised by value and made anew.

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

from dmt_plugin.passes.axes import Axes, Axis, Unsupported
from dmt_plugin.passes.shape_sweep import Sweep


def constant_value(sweep: Sweep, item: Any) -> Tensor | None:
    """The real value of an index argument that is the same in every call, or ``None``."""
    if isinstance(item, (list, tuple)) and item and all(isinstance(i, int) for i in item):
        return torch.tensor(list(item))
    if isinstance(item, Tensor):
        return item
    if not isinstance(item, fx.Node):
        return None
    if item.op == "get_attr":
        value = sweep.attribute(item)
        return value.detach() if isinstance(value, Tensor) and not isinstance(value, nn.Parameter) else None
    if item.target is operator.getitem and isinstance(item.args[1], int):
        source = constant_value(sweep, item.args[0])
        return None if source is None else source[item.args[1]]
    if item.op == "call_method" and item.target in ("long", "to", "int", "bool") and item.args:
        source = constant_value(sweep, item.args[0])
        if source is None or item.target == "to":
            return source
        return getattr(source, str(item.target))()
    return None


def _patterns(n: int) -> Iterator[tuple[str, Callable[[int], Tensor]]]:
    def build(function: Callable[..., Tensor], offset: int, swap: bool) -> Callable[[int], Tensor]:
        def pairs(size: int) -> Tensor:
            found = function(size, size, offset)
            return found.flip(0) if swap else found

        return pairs

    for function in (torch.tril_indices, torch.triu_indices):
        for offset in (-1, 0, 1):
            for swap in (False, True):
                yield f"{function.__name__}({n}, offset={offset}, swap={swap})", build(function, offset, swap)


def regenerate(
    sweep: Sweep, node: fx.Node, positions: Sequence[int], items: Sequence[Any], axes: Axes, dim: int
) -> Axis:
    """Replaces the pair index of ``node`` by one for the new number of features.

    Args:
        sweep: the walk.
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
    values = [constant_value(sweep, items[p]) for p in positions]
    if any(v is None for v in values):
        raise Unsupported("its index is computed; only constant index lists can be made anew")
    if any(v is not None and v.is_meta for v in values):
        raise Unsupported("its index list holds no data (meta device), so it cannot be recognised")
    n_old, n_new = first.old, first.new
    for _, build in _patterns(n_old):
        rows, cols = build(n_old)
        if len(values) == 2 and all(
            v is not None and v.shape == w.shape and bool((v.cpu() == w).all())
            for v, w in zip(values, (rows, cols), strict=True)
        ):
            return _edit(sweep, node, positions, items, list(build(n_new)), Axis.of(len(rows), build(n_new).shape[1]))
        mask = torch.zeros(n_old, n_old, dtype=torch.bool)
        mask[rows, cols] = True
        if len(values) == 1 and values[0] is not None and torch.equal(values[0].cpu(), mask):
            new_mask = torch.zeros(n_new, n_new, dtype=torch.bool)
            new_mask[tuple(build(n_new))] = True
            new_pairs = int(new_mask.sum())
            return _edit(sweep, node, positions, items, [new_mask], Axis.of(int(mask.sum()), new_pairs))
    raise Unsupported(f"its index is not a triangle of {n_old} x {n_old} pairs")


def _edit(
    sweep: Sweep, node: fx.Node, positions: Sequence[int], items: Sequence[Any], new: list[Tensor], axis: Axis
) -> Axis:
    index = list(items)
    if new[0].dtype == torch.bool:  # a mask has no shape without data; its row and column lists are the same pairs
        rows, cols = new[0].nonzero(as_tuple=True)
        index[positions[0] : positions[0] + 1] = [rows, cols]
    else:
        for position, value in zip(positions, new, strict=True):
            index[position] = value
    sweep.edits[node] = ((node.args[0], tuple(index)), {})
    return axis
