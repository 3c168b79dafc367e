"""Pooling of bags by maximum with sparse gradients, which torch has for sums and means only.

1. Forward is torch's own: of each bag and column the largest entry, zero for an empty bag. Of entries that are equal
   the first in the bag counts, so that its row gets the whole gradient.
2. Backward gives every row that was looked up a gradient, as sums and means do: zero where another row was larger. So
   rules that decay rows, or keep something for them, see the same rows whatever the pooling.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

_MAX = 2
"""Number of the mode in torch's operation."""


def max_bags(ids: Tensor, table: Tensor, offsets: Tensor) -> Tensor:
    """The maximum of each bag.

    Args:
        ids: ``(n,)`` row numbers, bag by bag.
        table: ``(rows, dim)``.
        offsets: ``(bags + 1,)`` where each bag begins, and the end.

    Returns:
        ``(bags, dim)``; its gradient for ``table`` is sparse.
    """
    pooled: Tensor = _MaxBags.apply(ids, table, offsets)
    return pooled


class _MaxBags(Function):
    """See :func:`max_bags`."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor, offsets: Tensor) -> Tensor:
        pooled, _, _, largest = torch.embedding_bag(table, ids, offsets.to(ids.dtype), False, _MAX, False, None, True)
        ctx.save_for_backward(ids, largest, offsets)
        ctx.shape = table.shape
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None]:
        ids, largest, offsets = ctx.saved_tensors
        numbers = ids.unique()
        rows = gradient.new_zeros(len(numbers), ctx.shape[1])
        full = offsets.diff() > 0  # torch names row 0 as the largest of an empty bag
        places = torch.searchsorted(numbers, largest[full].to(numbers.dtype))
        rows.scatter_add_(0, places, gradient[full])
        found = torch.sparse_coo_tensor(
            numbers.long()[None], rows, ctx.shape, is_coalesced=True, check_invariants=False
        )
        return None, found, None
