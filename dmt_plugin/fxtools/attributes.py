"""What a dotted path names, as ``get_attr`` nodes do."""

from __future__ import annotations

from functools import reduce
from typing import Any

from torch import nn


def attribute(root: nn.Module, path: str) -> Any:
    """What a ``get_attr`` node with the target ``path`` reads.

    Raises:
        AttributeError: there is nothing of that name.
    """
    return reduce(getattr, path.split("."), root)
