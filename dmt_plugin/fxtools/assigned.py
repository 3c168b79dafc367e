"""The assignment of items, ``x[key] = value``, as an operation that returns a new tensor."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def assigned(x: Tensor, key: Any, value: Any) -> Tensor:
    """A copy of ``x`` with ``value`` at ``key``; gradients go where they go with an assignment in place."""
    result = x.clone()
    result[key] = value
    return result
