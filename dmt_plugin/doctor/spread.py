"""Times of an action, and what is typical of many of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """The middle of many figures, and between what half of them are.

    Attributes:
        low: the first quartile.
        median: the median.
        high: the third quartile.
    """

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> Spread:
        """Of one figure or more."""
        if len(figures) == 1:
            return cls(figures[0], figures[0], figures[0])
        low, median, high = statistics.quantiles(figures, n=4, method="inclusive")
        return cls(low, median, high)

    def low_first(self) -> dict[str, float]:
        """By prefix of a key: ``""`` for the median, ``"low_"``, ``"high_"``."""
        return {"": self.median, "low_": self.low, "high_": self.high}

    def slow_first(self) -> dict[str, float]:
        """The same for rates that follow from times: the lowest rate is that of the longest time."""
        return {"": self.median, "low_": self.high, "high_": self.low}

    def in_ms(self) -> str:
        """Seconds, for people."""
        return f"{1e3 * self.median:.3g} ms ({1e3 * self.low:.3g}-{1e3 * self.high:.3g})"


def timed(action: Callable[[], Any], synchronize: Callable[[], Any]) -> float:
    """Seconds of an action, with what it started on the device."""
    synchronize()
    started = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - started
