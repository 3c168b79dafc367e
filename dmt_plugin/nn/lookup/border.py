"""Autograd functions between the lookup and the model: they convert dtypes and scale the gradients of looked-up rows.

1. Forward: rows, which are pooled in fp32 whatever type they are kept in, are cast to the dtype that the model computes
   in.
2. Backward: gradients are cast to fp32 and multiplied by a scale, once: all rows together, or, where the rows were cut
   into micro-blocks, block by block as their gradients arrive, into one buffer for the whole batch.
3. A lookup that delays its table updates must not get gradients from autograd: :func:`watched` returns the same rows
   and hands their gradient to a callback instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class ScaleGradient(Function):
    """Identity but for the dtype, whose gradient is scaled in the dtype of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        """``x`` in ``dtype``."""
        ctx.scale, ctx.dtype = scale, x.dtype
        return x.view_as(x) if x.dtype == dtype else x.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The gradient in the dtype of ``x``, scaled there."""
        return grad.to(ctx.dtype) * ctx.scale, None, None


class WholeGradient:
    """The gradient of all rows of one forward pass, filled block by block.

    Args:
        sizes: rows of each block.
        scale: factor on every gradient.
        dtype: of the rows that were looked up.
        outside: dtype that the model sees.
    """

    def __init__(self, sizes: Sequence[int], scale: float, dtype: torch.dtype, outside: torch.dtype) -> None:
        self.sizes, self.scale = sizes, scale
        self.dtype, self.outside = dtype, outside
        self._starts = [0, *accumulate(sizes)]
        self._rows: Tensor | None = None
        self._filled: set[int] = set()

    def fill(self, block: int, gradient: Tensor) -> Tensor:
        """Scale a block's gradient into its place; gives the place."""
        if self._rows is None:
            self._rows = gradient.new_empty(self._starts[-1], *gradient.shape[1:], dtype=self.dtype)
        place = self._rows[self._starts[block] : self._starts[block + 1]]
        self._filled.add(block)
        if gradient.dtype == self.dtype:
            return torch.mul(gradient, self.scale, out=place)
        return place.copy_(gradient).mul_(self.scale)  # rounded once, in the wider dtype

    def take(self, gradients: Sequence[Tensor]) -> Tensor:
        """The whole gradient; a block that nobody used has a gradient of zeros."""
        for block, gradient in enumerate(gradients):
            if block not in self._filled:
                self.fill(block, gradient)
        rows, self._rows = self._rows, None
        self._filled.clear()
        assert rows is not None
        return rows


class CutBlocks(Function):
    """Cuts rows into blocks: views."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, whole: WholeGradient) -> tuple[Tensor, ...]:
        """One view per block."""
        ctx.whole = whole
        return rows.split(list(whole.sizes))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """What the blocks have filled."""
        return ctx.whole.take(gradients), None


class OneBlock(Function):
    """Identity but for the dtype, whose gradient is scaled into that of all rows."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, whole: WholeGradient, block: int) -> Tensor:
        """``part`` in the dtype that the model sees."""
        ctx.whole, ctx.block = whole, block
        return part.view_as(part) if part.dtype == whole.outside else part.to(whole.outside)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient in its place."""
        return ctx.whole.fill(ctx.block, gradient), None, None


class _Watched(Function):
    """Rows without a graph, whose gradient is handed on."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, rows: Tensor, tell: Callable[[Tensor], None]) -> Tensor:
        ctx.tell = tell
        return rows.view_as(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, None]:
        ctx.tell(gradient)
        return None, None, None


def watched(rows: Tensor, tell: Callable[[Tensor], None]) -> Tensor:
    """Rows that need a gradient, which goes to ``tell`` and nowhere else.

    Args:
        rows: ``(rows, width)`` computed without a graph.
        tell: called in the backward pass.
    """
    anchor = torch.empty(0, device=rows.device, requires_grad=True)
    watched_rows: Tensor = _Watched.apply(anchor, rows, tell)
    return watched_rows
