"""Layers of other sizes: what repair puts in place of a layer whose inputs or outputs changed.

A new layer of the same kind and options starts anew: weights with mean and spread of the
old values, scaled to the new number of inputs; norms as they start.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor, nn

LIKE_BEFORE = "mean and spread of the old values"
AS_NEW = "as a new layer starts"


def resized(old: nn.Module, fan_in: int | None, out: int | None, target: str) -> tuple[nn.Module, str, str]:
    """A layer of another size.

    Args:
        old: the layer.
        fan_in: its new number of inputs, channels or features; ``None`` if they are what they were.
        out: its new number of outputs; ``None`` if they are what they were.
        target: its qualified name, which also seeds its new values.

    Returns:
        The new layer, what changed, and how its values start.
    """
    if isinstance(old, nn.Linear):
        return *_linear(old, fan_in, out, target), LIKE_BEFORE
    if isinstance(old, nn.Conv1d):
        return *_conv(old, fan_in, out, target), LIKE_BEFORE
    assert fan_in is not None and out is None
    return *_norm(old, fan_in), AS_NEW


def anew(old: Tensor, shape: list[int] | tuple[int, ...], old_fan: int, new_fan: int, seed: str) -> Tensor:
    """New values with the statistics of the old: constant stays constant, spread follows the fan-in."""
    new = old.new_empty(list(shape))
    if old.is_meta:
        return new
    values = old.detach().float()
    spread = values.std().item() if values.numel() > 1 else 0.0
    if spread == 0.0 or math.isnan(spread):
        return new.fill_(values.mean().item())
    generator = torch.Generator().manual_seed(int(hashlib.sha256(seed.encode()).hexdigest()[:12], 16))
    noise = torch.randn(list(shape), generator=generator)
    return (values.mean().item() + noise * spread * math.sqrt(old_fan / new_fan)).to(old)


def _linear(old: nn.Linear, fan_in: int | None, out: int | None, seed: str) -> tuple[nn.Linear, str]:
    rows, columns = out or old.out_features, fan_in or old.in_features
    bias = old.bias is not None
    options = {"device": old.weight.device, "dtype": old.weight.dtype}
    new = nn.utils.skip_init(nn.Linear, columns, rows, bias=bias, **options)  # no use of global random numbers
    with torch.no_grad():
        new.weight.copy_(anew(old.weight, (rows, columns), old.in_features, columns, seed + ".weight"))
        if bias:
            kept = rows == old.out_features and out is None
            new.bias.copy_(old.bias if kept else anew(old.bias, (rows,), 1, 1, seed + ".bias"))
    return new, _changes(("in_features", old.in_features, fan_in), ("out_features", old.out_features, out))


def _conv(old: nn.Conv1d, fan_in: int | None, out: int | None, seed: str) -> tuple[nn.Conv1d, str]:
    rows, channels = out or old.out_channels, fan_in or old.in_channels
    bias = old.bias is not None
    options = {"device": old.weight.device, "dtype": old.weight.dtype, "padding_mode": old.padding_mode}
    window: Any = (old.kernel_size, old.stride, old.padding, old.dilation, 1)
    new = nn.utils.skip_init(nn.Conv1d, channels, rows, *window, bias=bias, **options)
    shape = (rows, channels, *old.kernel_size)
    with torch.no_grad():
        new.weight.copy_(anew(old.weight, shape, old.in_channels, channels, seed + ".weight"))
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias if out is None else anew(old.bias, (rows,), 1, 1, seed + ".bias"))
    return new, _changes(("in_channels", old.in_channels, fan_in), ("out_channels", old.out_channels, out))


def _changes(*sizes: tuple[str, int, int | None]) -> str:
    return ", ".join(
        f"{name} {before} -> {after}" + (" (inputs mean something else)" if before == after else "")
        for name, before, after in sizes
        if after is not None
    )


def _norm(old: nn.Module, size: int) -> tuple[nn.Module, str]:
    new: nn.Module
    if isinstance(old, nn.BatchNorm1d):
        new = nn.BatchNorm1d(size, old.eps, old.momentum, old.affine, old.track_running_stats)
        before = old.num_features
    else:
        assert isinstance(old, nn.LayerNorm)
        new = nn.LayerNorm(size, old.eps, old.elementwise_affine, bias=old.bias is not None)
        before = old.normalized_shape[0]
    reference = next(iter([*old.parameters(), *old.buffers()]), None)
    if reference is not None:
        new.to(device=reference.device, dtype=reference.dtype)
    return new, f"features {before} -> {size}"
