"""Example values of torchrec's ``KeyedJaggedTensor``: what its methods give, and the ids of one key.

How many ids a key has depends on the data, so torchrec's own code cannot run on shapes. Which keys there are, and how
many samples, does not. What a graph needs beside these is a number of ids for every key that is nobody else's by
chance: in the tensors that stand for a batch every sample has the same number of ids of a key, one where it has one in
the user's example, else two. These tensors hold real lengths, those that forward makes of them do not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

_SEVERAL = 2
"""Ids per sample where there is not one each."""


def jagged_tensor_class() -> type | None:
    """torchrec's ``JaggedTensor``; ``None`` where torchrec is not loaded."""
    found = getattr(sys.modules.get("torchrec.sparse.jagged_tensor"), "JaggedTensor", None)
    return found if isinstance(found, type) else None


def is_of_one_key(value: Any) -> bool:
    """Whether an example value is a ``JaggedTensor``: values and lengths without keys."""
    known = jagged_tensor_class()
    return known is not None and isinstance(value, known)


def ids_per_sample(jagged: Any) -> list[int]:
    """For each key of a keyed jagged tensor how many ids every sample has in the tensors that stand for it."""
    keys, lengths = len(list(jagged.keys())), jagged.lengths()
    if isinstance(lengths, FakeTensor) or not keys:
        return [_SEVERAL] * keys
    with unset_fake_temporarily():
        return [1 if bool((own == 1).all()) else _SEVERAL for own in lengths.reshape(keys, -1)]


def resized(jagged: Any, samples: int) -> Any:
    """A keyed jagged tensor like another one, by shape, for another number of samples."""
    keys = list(jagged.keys())
    return _with_keys(jagged, [(jagged, key) for key in keys], samples)


def of_key(jagged: Any, key: str) -> Any:
    """The example value of ``jagged[key]``.

    Raises:
        KeyError: there is no such key.
    """
    keys = list(jagged.keys())
    if key not in keys:
        raise KeyError(f"{key!r} is none of the keys {keys}")
    known, samples = jagged_tensor_class(), int(jagged.stride())
    count = samples * ids_per_sample(jagged)[keys.index(key)]
    lengths, weights = jagged.lengths(), getattr(jagged, "weights_or_none", lambda: None)()
    assert known is not None
    return known(
        values=jagged.values().new_zeros(count),
        weights=None if weights is None else weights.new_zeros(count),
        lengths=lengths.new_zeros(samples),
        offsets=lengths.new_zeros(samples + 1),
    )


def jagged_result(method: str, jagged: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The example value of a method call.

    Args:
        method: its name.
        jagged: what it is called on.
        args: its arguments.
        kwargs: those given by name.

    Returns:
        ``NotImplemented`` for a method that can simply be called.
    """
    keys = list(jagged.keys())
    if method in ("sync", "unsync"):  # they fill caches, or empty them
        return jagged
    if method == "split":
        (segments,) = [*args, *kwargs.values()]
        borders = [0, *accumulate(int(segment) for segment in segments)]
        return [_with_keys(jagged, [(jagged, key) for key in keys[a:b]]) for a, b in pairwise(borders)]
    if method == "permute":
        order = args[0] if args else kwargs["indices"]
        return _with_keys(jagged, [(jagged, keys[int(i)]) for i in order])
    return NotImplemented


def joined(tensors: Sequence[Any]) -> Any:
    """What ``KeyedJaggedTensor.concat`` gives."""
    return _with_keys(tensors[0], [(tensor, key) for tensor in tensors for key in list(tensor.keys())])


def _with_keys(like: Any, sources: Sequence[tuple[Any, str]], samples: int | None = None) -> Any:
    """A keyed jagged tensor with keys of others, for as many samples as ``like`` has or as are given."""
    size = int(like.stride()) if samples is None else samples
    each = [ids_per_sample(jagged)[list(jagged.keys()).index(key)] for jagged, key in sources]
    lengths, weights = like.lengths(), getattr(like, "weights_or_none", lambda: None)()
    count = sum(each) * size

    def made() -> Any:
        return type(like)(
            keys=[key for _, key in sources],
            values=like.values().new_zeros(count),
            lengths=torch.tensor(each, dtype=lengths.dtype, device=lengths.device).repeat_interleave(size),
            weights=None if weights is None else weights.new_ones(count),
        )

    if any(isinstance(jagged.lengths(), FakeTensor) for jagged in (like, *(jagged for jagged, _ in sources))):
        return made()
    with unset_fake_temporarily():
        return made()
