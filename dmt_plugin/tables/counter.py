"""Random numbers that depend on a key and a place in a table alone: any rows and columns can be made by themselves.

1. A key of 64 bits is a hash of seed, parameter name, and the number of the draw, as a table may be drawn twice
   (:mod:`dmt_plugin.core.counter_hash`).
2. Two neighbouring columns of a row are a pair. The pair's number in the table is added to the key and mixed: 64 bits,
   32 for each of the two columns.
3. Uniform numbers take the upper 24 of them; normal ones come from both by the transform of Box and Muller.

Everything runs on the CPU in buffers of one fixed length. torch computes the last few entries of a vector by another
routine than the rest, and hands long vectors to several threads: with other lengths a number could depend, in its last
bit, on where in the vector it lies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmt_plugin.core.counter_hash import mix

PAIRS = 1 << 14
"""Pairs that are made at a time."""

ENTRIES = 2 * PAIRS
"""Length of every buffer."""

_SMALLEST = 2.0**-33


class Block:
    """Up to ``PAIRS`` pairs of one table: their numbers, and what is made of them.

    Attributes:
        rows: number of rows in it.
        width: columns in it, an even number.
    """

    def __init__(self) -> None:
        self.rows = self.width = 0
        self._count = torch.zeros(PAIRS, dtype=torch.int64)
        self._bits = torch.empty(PAIRS, dtype=torch.int64)
        self._shifted = torch.empty(PAIRS, dtype=torch.int64)
        self._first, self._second = torch.empty(PAIRS), torch.empty(PAIRS)
        self._part = torch.empty(PAIRS)

    def place(self, rows: Tensor, first_pair: int, pairs: int, pairs_of_row: int) -> None:
        """Say which pairs it is about.

        Args:
            rows: ``(n,)`` row numbers, int64; ``n * pairs`` at most ``PAIRS``.
            first_pair: of each row.
            pairs: of each row.
            pairs_of_row: in the whole table.
        """
        self.rows, self.width = len(rows), 2 * pairs
        numbers = torch.arange(first_pair, first_pair + pairs)
        torch.add((rows * pairs_of_row).unsqueeze(1), numbers, out=self._count[: len(rows) * pairs].view(-1, pairs))

    def uniform(self, key: int, out: Tensor) -> None:
        """Numbers in [0, 1) into ``out (ENTRIES,)``, of which the first ``rows * width`` count."""
        self._mix(key)
        halves = self._bits.view(torch.int32)
        torch.bitwise_right_shift(halves, 8, out=halves)
        out.copy_(halves).mul_(2.0**-24).add_(0.5)

    def normal(self, key: int, out: Tensor) -> None:
        """Numbers of the standard normal distribution, as :meth:`uniform`."""
        self._mix(key)
        halves, pairs = self._bits.view(torch.int32).view(PAIRS, 2), out.view(PAIRS, 2)
        radius, angle, part = self._first, self._second, self._part
        radius.copy_(halves[:, 0]).mul_(2.0**-32).add_(0.5).clamp_(min=_SMALLEST)
        torch.log(radius, out=radius).mul_(-2.0).sqrt_()
        angle.copy_(halves[:, 1]).mul_(2.0**-31 * math.pi)
        pairs[:, 0].copy_(torch.cos(angle, out=part).mul_(radius))
        pairs[:, 1].copy_(torch.sin(angle, out=part).mul_(radius))

    def _mix(self, key: int) -> None:
        mix(torch.add(self._count, key, out=self._bits), self._shifted)
