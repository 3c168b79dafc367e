"""Distinct rows of a batch that is cut into micro-blocks: each goes with the first block that needs it.

A batch is deduplicated once, whatever its blocks: to do so per block would send the rows that several need again. So

1. the codes that all blocks need are sorted, each once;
2. the *first block* of a code is the least that needs it. On a rank that merges what several lanes need, it is the
   least over the lanes, each of which says with which of its blocks it needs the row first;
3. codes are sorted by (first block, code). Block ``k`` then brings one contiguous, sorted list of new rows, and
   everything that block ``k`` needs is in the lists of the blocks up to ``k``.

Where rows are not to travel once, every need of a code is one of its own, and goes with its block (:func:`all_uses`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class FirstUses:
    """Distinct codes by the block that is the first to need them.

    Attributes:
        codes: of each block, ``(new,)`` sorted; each once, or as often as it is needed.
        places: for everything that a block needs, ``(n,)`` int64: its place in the codes of all blocks, one behind the
            other.
    """

    codes: tuple[Tensor, ...]
    places: tuple[Tensor, ...]

    @property
    def distinct(self) -> int:
        """Number of codes."""
        return sum(own.numel() for own in self.codes)


def all_uses(needed: Sequence[Tensor]) -> FirstUses:
    """Each code as often as it is needed, with the block that needs it.

    Args:
        needed: codes that each block needs, ``(n,)`` in any order, with repeats.
    """
    codes, places, first = [], [], 0
    for own in needed:
        ordered, order = torch.sort(own, stable=True)
        place = torch.empty_like(order)
        place[order] = torch.arange(first, first + order.numel(), device=order.device)
        codes.append(ordered)
        places.append(place)
        first += order.numel()
    return FirstUses(tuple(codes), tuple(places))


def first_uses(needed: Sequence[Tensor]) -> FirstUses:
    """Each code once, with the first block that needs it.

    Args:
        needed: codes that each block needs, ``(n,)`` in any order, with repeats.
    """
    sizes = [own.numel() for own in needed]
    distinct, inverse = torch.unique(torch.cat(list(needed)), return_inverse=True)
    if len(needed) == 1:
        return FirstUses((distinct,), (inverse,))
    parts, last = inverse.split(sizes), len(sizes) - 1
    first = distinct.new_full(distinct.shape, last, dtype=torch.uint8)
    for block in reversed(range(last)):
        first.index_fill_(0, parts[block], block)  # the least is written last
    order = torch.argsort(first, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.numel(), device=order.device)
    new = torch.bincount(first, minlength=len(sizes)).tolist()
    return FirstUses(distinct.index_select(0, order).split(new), place.index_select(0, inverse).split(sizes))
