"""Makes the layers of new sizes that replace those whose inputs or outputs changed.

A new layer has the kind and options of the old one and is re-initialized: weights are drawn with
mean and spread of the old values, scaled to the new number of inputs; norms as they start.
"""

from __future__ import annotations

import copy
import hashlib
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

SEQUENCE_LAYERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
LIKE_BEFORE = "mean and spread of the old values"
AS_NEW = "as a new layer starts"


class Resized(NamedTuple):
    """A layer in place of another.

    Attributes:
        layer: the new layer.
        what: what changed.
        init: how its values start.
        kept: names of the entries of its state that have the old values.
    """

    layer: nn.Module
    what: str
    init: str
    kept: tuple[str, ...] = ()


def resized(old: nn.Module, sizes: tuple[int | None, ...], out: int | None, target: str) -> Resized:
    """A layer of another size.

    Args:
        old: the layer.
        sizes: its new number of inputs, channels or features, one for each dimension that it is over; ``None``, or
            none at all, if they are what they were.
        out: its new number of outputs; ``None`` if they are what they were.
        target: its qualified name, which also seeds its new values.
    """
    fan_in = sizes[0] if sizes else None
    bias = ("bias",) if out is None and getattr(old, "bias", None) is not None else ()
    if isinstance(old, nn.Linear):
        return Resized(*_linear(old, fan_in, out, target), LIKE_BEFORE, bias)
    if isinstance(old, (nn.Conv1d, nn.Conv2d)):
        return Resized(*_conv(old, sizes, out, target), LIKE_BEFORE, bias)
    assert any(sizes) and out is None
    if isinstance(old, (nn.LayerNorm, nn.RMSNorm)):
        return Resized(*_norm_of_entries(old, sizes), AS_NEW)
    if isinstance(old, nn.Bilinear):
        return Resized(*_bilinear(old, sizes, target), LIKE_BEFORE, bias)
    assert fan_in is not None
    if isinstance(old, SEQUENCE_LAYERS):
        return Resized(_renewed(old, target), "all of it (inputs mean something else)", LIKE_BEFORE)
    if isinstance(old, nn.PReLU):
        return Resized(*_slopes(old, fan_in, target), LIKE_BEFORE)
    assert isinstance(old, nn.BatchNorm1d)
    return Resized(*_norm_of_channels(old, fan_in), AS_NEW)


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
            new.bias.copy_(old.bias if out is None else anew(old.bias, (rows,), 1, 1, seed + ".bias"))
    return new, _changes(("in_features", old.in_features, fan_in), ("out_features", old.out_features, out))


def _conv(
    old: nn.Conv1d | nn.Conv2d, sizes: tuple[int | None, ...], out: int | None, seed: str
) -> tuple[nn.Conv1d | nn.Conv2d, str]:
    """``sizes``: of the channels, and of each dimension that the kernel covers."""
    fan_in, *covered = sizes or (None,)
    rows, channels = out or old.out_channels, fan_in or old.in_channels
    window = [new or size for new, size in zip([*covered, None, None], old.kernel_size, strict=False)]
    kind = nn.Conv1d if isinstance(old, nn.Conv1d) else nn.Conv2d
    options: dict[str, Any] = {"device": old.weight.device, "dtype": old.weight.dtype, "bias": old.bias is not None}
    options |= {name: getattr(old, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")}
    new = nn.utils.skip_init(kind, channels, rows, window, **options)
    fans = old.weight[0].numel(), new.weight[0].numel()
    with torch.no_grad():
        new.weight.copy_(anew(old.weight, tuple(new.weight.shape), *fans, seed + ".weight"))
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias if out is None else anew(old.bias, (rows,), 1, 1, seed + ".bias"))
    changes = [("in_channels", old.in_channels, fan_in), ("out_channels", old.out_channels, out)]
    for at, (size, own) in enumerate(zip(old.kernel_size, covered, strict=False)):
        changes.append((f"in_kernel[{at}]", int(size), own))
    return new, _changes(*changes).replace("in_kernel", "kernel_size")


def _bilinear(old: nn.Bilinear, sizes: tuple[int | None, ...], seed: str) -> tuple[nn.Bilinear, str]:
    one, two = sizes
    shape = (old.out_features, one or old.in1_features, two or old.in2_features)
    options = {"device": old.weight.device, "dtype": old.weight.dtype}
    new = nn.utils.skip_init(nn.Bilinear, shape[1], shape[2], shape[0], bias=old.bias is not None, **options)
    fans = old.in1_features * old.in2_features, shape[1] * shape[2]
    with torch.no_grad():
        new.weight.copy_(anew(old.weight, shape, *fans, seed + ".weight"))
        if old.bias is not None:
            new.bias.copy_(old.bias)
    return new, _changes(("in1_features", old.in1_features, one), ("in2_features", old.in2_features, two))


def _slopes(old: nn.PReLU, size: int, seed: str) -> tuple[nn.PReLU, str]:
    new = nn.utils.skip_init(nn.PReLU, size, device=old.weight.device, dtype=old.weight.dtype)
    with torch.no_grad():
        new.weight.copy_(anew(old.weight, (size,), 1, 1, seed + ".weight"))
    return new, _changes(("num_parameters", old.num_parameters, size))


def _renewed(old: nn.Module, seed: str) -> nn.Module:
    """The same layer with other values."""
    new = copy.deepcopy(old)
    with torch.no_grad():
        for name, parameter in new.named_parameters():
            parameter.copy_(anew(parameter, parameter.shape, 1, 1, f"{seed}.{name}"))
    return new


def _changes(*sizes: tuple[str, int, int | None]) -> str:
    return ", ".join(
        f"{name} {before} -> {after}"
        + (f" ({'out' if name.startswith('out') else 'in'}puts mean something else)" if before == after else "")
        for name, before, after in sizes
        if after is not None
    )


def _norm_of_channels(old: nn.BatchNorm1d, size: int) -> tuple[nn.Module, str]:
    new = nn.BatchNorm1d(size, old.eps, old.momentum, old.affine, old.track_running_stats)
    return _placed_like(old, new), f"features {old.num_features} -> {size}"


def _norm_of_entries(old: nn.LayerNorm | nn.RMSNorm, sizes: tuple[int | None, ...]) -> tuple[nn.Module, str]:
    before = [int(size) for size in old.normalized_shape]
    shape = [size or kept for size, kept in zip(sizes, before, strict=True)]
    new: nn.Module
    if isinstance(old, nn.RMSNorm):
        new = nn.RMSNorm(shape, old.eps, old.elementwise_affine)
    else:
        new = nn.LayerNorm(shape, old.eps, old.elementwise_affine, bias=old.bias is not None)
    return _placed_like(old, new), f"features {_shown(before)} -> {_shown(shape)}"


def _shown(shape: list[int]) -> str:
    return str(shape[0]) if len(shape) == 1 else str(tuple(shape))


def _placed_like(old: nn.Module, new: nn.Module) -> nn.Module:
    reference = next(iter([*old.parameters(), *old.buffers()]), None)
    return new if reference is None else new.to(device=reference.device, dtype=reference.dtype)
