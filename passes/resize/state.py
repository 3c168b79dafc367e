"""Example values on the meta device: makes and compares them, and checks their shapes against the inferred axes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from dmt_plugin.passes.ops.axes import Axes, Unsupported


def shapes_only(value: Any) -> Any:
    """Replaces tensors by meta tensors of the same shape."""
    return map_aggregate(
        value, lambda v: torch.empty(v.shape, dtype=v.dtype, device="meta") if isinstance(v, Tensor) else v
    )


def check_value(old: tuple[int, ...], value: Tensor, axes: Axes) -> None:
    """A value must have the old shape in every dimension without an axis, and the new size in the others.

    Raises:
        Unsupported: it has not.
    """
    wanted = tuple(axes[d].new if d in axes else size for d, size in enumerate(old))
    if tuple(value.shape) != wanted:
        raise Unsupported(f"would have the shape {tuple(value.shape)}, expected {wanted} (before: {old})")
    for dim, axis in axes.items():
        if axis.old != old[dim]:
            raise Unsupported(f"dimension {dim} had {old[dim]} entries, its parts add up to {axis.old}")


def resized_value(value: Any, axes: Axes) -> Any:
    """The captured value of a layer, with the new sizes."""
    if not isinstance(value, Tensor):
        return value
    shape = [axes[d].new if d in axes else size for d, size in enumerate(value.shape)]
    return torch.empty(shape, dtype=value.dtype, device="meta")


def same_shapes(a: Any, b: Any) -> bool:
    """Whether two example values are alike but for what is in their tensors."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(same_shapes(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b
