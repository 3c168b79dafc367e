"""Dot products of pairs of vectors, with half the arithmetic in the backward pass.

``bmm(x, x^T)[:, first, second]`` is how a dot interaction is written. PyTorch differentiates it as what it is: entries
of a general product of two matrices. Every product of vectors ``i`` and ``j`` has two uses of ``x``, so there are two
batched products in backward, and a sum. With ``g`` the gradient of the picked entries:

1. the forward is the same product; the pairs are picked from its flattened rows, as ``i * V + j``;
2. in backward ``g`` is added into a zero matrix ``(V, V)`` per sample at ``(i, j)`` and at ``(j, i)``. A pair that is
   picked twice adds up, and a square of one vector counts twice, as the derivative of a square does. Where neither
   happens, as with a triangle, every entry of the matrix is one of ``g`` or zero, and is picked instead (``pair_of``);
3. one batched product with ``x`` is the gradient.

The outputs are bit for bit those of the original. Gradients are the same sums, added up in another order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from dmt_plugin.nn.graph_ops import graph_function


class _PairProducts(Function):
    """See the module's docstring. Its backward is made of differentiable operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, first: Tensor, second: Tensor, source: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, first, second, source)
        products = torch.bmm(x, x.transpose(1, 2))
        return products.flatten(1).index_select(1, first * x.shape[1] + second)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        x, first, second, source = ctx.saved_tensors
        batch, vectors, _ = x.shape
        if source is not None:
            both = torch.cat([grad, grad.new_zeros(batch, 1)], dim=1).index_select(1, source)
        else:
            both = grad.new_zeros(batch, vectors * vectors)
            both = both.index_add(1, first * vectors + second, grad).index_add(1, second * vectors + first, grad)
        return torch.bmm(both.view(batch, vectors, vectors), x), None, None, None


def pair_of(first: Tensor, second: Tensor, vectors: int) -> Tensor | None:
    """Which pair each entry of a ``(V, V)`` matrix belongs to, in either order.

    Args:
        first: ``(P,)`` indices of the first vector of each pair, int64.
        second: ``(P,)`` of the second.
        vectors: ``V``.

    Returns:
        ``(V * V,)`` int64, ``P`` for an entry of no pair; None where an entry belongs to two, or a pair to one entry.
    """
    cells = torch.cat([first * vectors + second, second * vectors + first])
    if len(cells.unique()) != len(cells):
        return None
    source = torch.full((vectors * vectors,), len(first))
    source[cells] = torch.arange(len(first)).repeat(2)
    return source


@graph_function
def pair_products(x: Tensor, first: Tensor, second: Tensor, vectors: int, source: Tensor | None = None) -> Tensor:
    """``bmm(x, x^T)[:, first, second]``: the dot product of every listed pair of vectors.

    Args:
        x: ``(B, V, N)``.
        first: ``(P,)`` indices of the first vector of each pair, int64, from 0 to ``vectors - 1``.
        second: ``(P,)`` of the second.
        vectors: the ``V`` for which the indices are known to be in range; with any other, they are looked up and
            checked as the original does.
        source: what ``pair_of`` gives for these pairs.

    Returns:
        ``(B, P)``.
    """
    if x.dim() != 3 or x.shape[1] != vectors:
        return torch.bmm(x, x.transpose(1, 2))[:, first, second]
    return _PairProducts.apply(x, first, second, source)
