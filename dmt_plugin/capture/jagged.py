"""What methods of torchrec's ``KeyedJaggedTensor`` give, on example values.

How many ids a key has depends on the data, so torchrec's own code cannot run on shapes. Which keys there are, and how
many samples, does not; and a graph needs no more: a stand-in has the keys and samples of the result, with one id each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any


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
        return [_of(jagged, keys[a:b]) for a, b in pairwise(borders)]
    if method == "permute":
        order = args[0] if args else kwargs["indices"]
        return _of(jagged, [keys[int(i)] for i in order])
    return NotImplemented


def joined(tensors: Sequence[Any]) -> Any:
    """What ``KeyedJaggedTensor.concat`` gives."""
    return _of(tensors[0], [key for tensor in tensors for key in list(tensor.keys())])


def _of(jagged: Any, keys: list[str]) -> Any:
    count = len(keys) * int(jagged.stride())
    weights = getattr(jagged, "weights_or_none", lambda: None)()
    return type(jagged)(
        keys=keys,
        values=jagged.values().new_zeros(count),
        lengths=jagged.lengths().new_ones(count),
        weights=None if weights is None else weights.new_ones(count),
    )
