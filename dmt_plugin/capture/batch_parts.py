"""What a batch is made of: containers, batch objects with fields, jagged and keyed tensors, constants.

A part is known if its tensors can be found: a tensor, a constant, a jagged tensor, a keyed tensor, or a list, tuple,
dict or dataclass of known parts. Its path names fields and keys, from the outside in.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from dmt_plugin.capture.keyed_tensors import is_keyed

Path = tuple[Any, ...]

WEIGHTS, KEYS, WIDTHS, LENGTH = "weights_or_none()", "keys()", "length_per_key()", "len()"
"""What is constant of a jagged tensor, a keyed one, a dict or a list in a batch object, as the last entry of a path."""

_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, enum.Enum)


def is_constant(value: Any) -> bool:
    """True for values that become part of the captured program."""
    return isinstance(value, _CONSTANTS)


def is_own_container(value: Any) -> bool:
    """True for a list, tuple or dict of a class of the user's, which may hold its entries in its own way."""
    if not isinstance(value, (list, tuple, dict)) or type(value) in pytree.SUPPORTED_NODES:
        return False
    return not hasattr(type(value), "_fields")


def is_jagged(value: Any) -> bool:
    """True for objects with the interface of a torchrec ``KeyedJaggedTensor``."""
    if isinstance(value, (Tensor, dict, list, tuple)):
        return False
    return all(callable(getattr(value, name, None)) for name in ("keys", "values", "lengths", "stride"))


def has_fields(value: Any) -> bool:
    """True for an object of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """What an object holds, by name or place: the fields of a dataclass, the items of a container."""
    if isinstance(value, dict):
        yield from value.items()
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)
    elif has_fields(value):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))


def jagged_parts(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The jagged tensors that an object is or holds, by path."""
    if is_jagged(value):
        yield path, value
    for name, part in parts(value):
        yield from jagged_parts(part, (*path, name))


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors that an object holds, those of jagged and keyed tensors left out."""
    if isinstance(value, Tensor):
        yield value
    for _, part in parts(value):
        yield from tensors(part)


def said_sizes(value: Any) -> Iterator[int]:
    """The numbers of samples that jagged and keyed tensors say they have."""
    if is_jagged(value):
        yield int(value.stride())
    elif is_keyed(value):
        yield int(value.values().shape[1 - value.key_dim()])
    for _, part in parts(value):
        yield from said_sizes(part)


def has_several_sizes(value: Any) -> bool:
    """Whether a jagged tensor in it has another number of samples for each key."""
    if is_jagged(value):
        return bool(getattr(value, "variable_stride_per_key", bool)())
    return any(has_several_sizes(part) for _, part in parts(value))


def is_known(value: Any) -> bool:
    """Whether tensors in it can be found, as far as its own type tells."""
    return isinstance(value, (Tensor, dict, list, tuple, *_CONSTANTS)) or is_jagged(value) or is_keyed(value) or (
        has_fields(value)
    )  # fmt: skip


def fixed_parts(value: Any, path: Path = ()) -> dict[Path, Any]:
    """The constants inside a batch object, by path.

    Of a jagged tensor that is if it has weights, of a keyed one its keys, of a dict which keys it has, of a list how
    many entries.
    """
    if is_jagged(value):
        return {(*path, WEIGHTS): getattr(value, "weights_or_none", lambda: None)() is not None}
    if is_keyed(value):
        return {(*path, KEYS): list(value.keys()), (*path, WIDTHS): list(value.length_per_key())}
    fixed: dict[Path, Any] = {}
    if isinstance(value, dict):
        fixed[(*path, KEYS)] = frozenset(value)
    elif isinstance(value, (list, tuple)):
        fixed[(*path, LENGTH)] = len(value)
    for name, part in parts(value):
        if is_constant(part):
            fixed[(*path, name)] = part
        else:
            fixed |= fixed_parts(part, (*path, name))
    return fixed
