"""Lets ``einops`` work on what is recorded, as it does on tensors.

``rearrange`` and the other functions of ``einops`` look up, by the type of a tensor, how a framework does the few
operations that they are made of. For as long as a model is traced the stand-ins for tensors are entered there: with
torch's own operations, which are recorded, and with sizes that are read from the tensor when they are needed.

The table of ``einops`` that is used has no public name; it is used here only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _Shape:
    """The shape of something recorded; reading an entry records that."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor

    def __len__(self) -> int:
        return int(self._tensor.ndim)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return tuple(self._tensor.shape[i] for i in range(*at.indices(len(self))))
        return self._tensor.shape[at]

    def __iter__(self) -> Iterator[Any]:
        return iter(self[:])


class _Recorded:
    """What ``einops`` asks of a framework, for recorded tensors."""

    def __init__(self, torch_backend: Any) -> None:
        self._torch = torch_backend

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def shape(self, tensor: Any) -> _Shape:
        return _Shape(tensor)


@contextmanager
def einops_followed(*kinds: type) -> Iterator[None]:
    """Has ``einops``, where it is imported, work on values of these types; nothing else changes.

    Args:
        kinds: types of the stand-ins for tensors.
    """
    backends: Any = sys.modules.get("einops._backends")
    table = getattr(backends, "_type2backend", None)
    if table is None:
        yield
        return
    table.update(dict.fromkeys(kinds, _Recorded(backends.TorchBackend())))
    try:
        yield
    finally:
        for kind in kinds:
            table.pop(kind, None)
