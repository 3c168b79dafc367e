"""Whether two values are the same bit for bit, and where and how they differ if they are not.

1. Nested values (tuples, dicts and whatever else is registered with torch's pytree) must be nested alike.
2. Tensors must have the same shape, type and numbers. A NaN equals a NaN and nothing else; an infinity equals itself
   only; 0 and -0 are equal. Sparse tensors are compared by the dense tensor that they mean.
3. Everything else must be of one type and equal by ``==``; objects whose class does not define that, by attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """One place where two values differ.

    Attributes:
        where: path inside the value, such as ``"[1]['logits']"``; ``""`` for the value itself.
        how: what differs, in words.
        largest: largest difference of two finite numbers, where only numbers differ; else ``None``.
    """

    where: str
    how: str
    largest: float | None = None


def same(first: Any, second: Any) -> bool:
    """Equal bit for bit; see the module's docstring."""
    return not differences(first, second)


def differences(first: Any, second: Any) -> list[Difference]:
    """Every place where ``second`` is not what ``first`` is; empty where they are the same."""
    (leaves, nesting), (others, other_nesting) = (_leaves(value) for value in (first, second))
    if nesting != other_nesting:
        return [Difference("", f"{len(leaves)} values in {_brief(first)}, then {len(others)} in {_brief(second)}")]
    found = []
    for (path, mine), (_, theirs) in zip(leaves, others, strict=True):
        difference = _of_leaves(pytree.keystr(path), mine, theirs)
        found += [difference] if difference else []
    return found


def _leaves(value: Any) -> tuple[list[tuple[Any, Any]], Any]:
    """Leaves with their paths, and how they are nested."""
    try:
        return pytree.tree_flatten_with_path(value)
    except ValueError:  # a container whose library gives its parts no names
        leaves, nesting = pytree.tree_flatten(value)
        return [((pytree.SequenceKey(i),), leaf) for i, leaf in enumerate(leaves)], nesting


def say_differences(found: list[Difference]) -> str:
    """The differences in a few words: what is more than numbers first, else how far numbers are apart."""
    other = next((d for d in found if d.largest is None), None)
    if other is not None:
        return other.how
    return f"largest difference {max((d.largest or 0.0 for d in found), default=0.0):.3g}"


def _of_leaves(where: str, first: Any, second: Any) -> Difference | None:
    if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
        alike = type(first) is type(second) and _equal_objects(first, second)
        return None if alike else Difference(where, f"{_brief(first)}, then {_brief(second)}")
    a, b = (t.detach().to_dense() if t.is_sparse else t.detach() for t in (first, second))
    if a.shape != b.shape:
        return Difference(where, f"shape {tuple(a.shape)}, then {tuple(b.shape)}")
    if a.dtype != b.dtype:
        return Difference(where, f"{a.dtype}, then {b.dtype}")
    if bool(((a == b) | (a.isnan() & b.isnan())).all()):
        return None
    finite = a.isfinite() & b.isfinite()
    apart = (a[finite].to(torch.complex128) - b[finite].to(torch.complex128)).abs()
    if not torch.equal(a.isfinite(), b.isfinite()) or not apart.numel() or not apart.any():
        return Difference(where, "NaN or infinite in other places")
    return Difference(where, f"largest difference {float(apart.max()):.3g}", float(apart.max()))


def _equal_objects(first: Any, second: Any) -> bool:
    if type(first).__eq__ is object.__eq__ and hasattr(first, "__dict__"):
        return first is second or same(vars(first), vars(second))
    return bool(first == second) or (first != first and second != second)


def _brief(value: Any) -> str:
    if isinstance(value, (Tensor, tuple, list, dict)):
        return f"a {type(value).__name__}".lower()
    plain = isinstance(value, (bool, int, float, str, type(None)))
    return repr(value) if plain else f"a value of type {type(value).__name__}"
