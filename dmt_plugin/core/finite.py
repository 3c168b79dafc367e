"""Whether all entries of tensors are finite, in one pass over each.

NaN and infinities show in a tensor's least or largest entry. The largest absolute value would do as well, but torch is
ten times slower to find it on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def bounds_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The least and the largest entry of each tensor that has any, numbers on its device; not waited for."""
    return [bound for tensor in tensors if tensor.numel() for bound in torch.aminmax(tensor)]


def all_finite(bounds: Sequence[Tensor], device: torch.device, summands: int = 1) -> Tensor:
    """Whether these are finite: a bool scalar.

    Args:
        bounds: of :func:`bounds_of`, all on one device.
        device: of the answer where there are none.
        summands: so many entries are going to be added up in their type. One that could make an infinite sum with
            others like it counts as infinite: larger than the type's largest number by ``summands``.
    """
    finite: Tensor | None = None
    for dtype in {bound.dtype for bound in bounds}:
        largest = torch.stack([bound for bound in bounds if bound.dtype == dtype]).abs().amax()  # NaN is the largest
        own = largest < (math.inf if summands == 1 else torch.finfo(dtype).max / summands)
        finite = own if finite is None else finite & own
    return torch.ones((), dtype=torch.bool, device=device) if finite is None else finite
