"""Accelerators and their links, as data sheets have them, and how efficiency depends on size, as others measured it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Device:
    """One accelerator and its links; rates are upper bounds from data sheets.

    Attributes:
        name: e.g. ``"A100"``.
        flops: peak of matrix products in FLOP/s: fp32, or TF32 without sparsity where there is TF32.
        memory: bytes/s of its memory.
        lanes: bytes/s to its host's other accelerators, one way.
        nic: bytes/s to other hosts, one way.
        source: where the numbers are from.
    """

    name: str
    flops: float
    memory: float
    lanes: float
    nic: float
    source: str


_TABLE = "links and FLOP/s: Table 1 of the paper"
_H100 = f"{_TABLE}, whose 989 TFLOP/s are TF32 with sparsity, halved; memory: NVIDIA's data sheet"

DEVICES = {
    device.name: device
    for device in (
        Device("V100", 15.7 * TERA, 0.9 * TERA, 150 * GIGA, 12.5 * GIGA, f"{_TABLE}; memory: NVIDIA's data sheet"),
        Device("A100", 156 * TERA, 1.555 * TERA, 300 * GIGA, 25 * GIGA, f"{_TABLE}; memory: NVIDIA's data sheet"),
        Device("H100", 494.7 * TERA, 3.35 * TERA, 450 * GIGA, 50 * GIGA, _H100),
    )
}


@dataclass(frozen=True)
class Curve:
    """A measured quantity over a size, piecewise linear in the logarithm of the size; flat beyond its ends.

    Attributes:
        points: ``(size, value)``, rising in size.
        source: who measured it.
    """

    points: tuple[tuple[float, float], ...]
    source: str

    def __post_init__(self) -> None:
        sizes = [size for size, _ in self.points]
        if not sizes or sizes[0] <= 0 or any(a >= b for a, b in pairwise(sizes)):
            raise ValueError(f"a curve needs sizes above 0 in rising order, found {sizes}")

    def at(self, size: float) -> float:
        """The value at a size above 0."""
        return _between(self.points, size)


def _between(points: Sequence[tuple[float, float]], size: float) -> float:
    if size <= points[0][0]:
        return points[0][1]
    for (low, first), (high, second) in pairwise(points):
        if size <= high:
            part = math.log(size / low) / math.log(high / low)
            return first + part * (second - first)
    return points[-1][1]


PEER_EFFICIENCY = Curve(
    ((16e6, 0.86), (32e6, 0.92), (64e6, 0.94)),
    "SimAI (github.com/aliyun/SimAI): AlltoAll of one rank per host, share of the line rate by bytes of the buffer",
)
