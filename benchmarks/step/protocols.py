"""What a variant does: one way to train the model of the comparison, on one rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from benchmarks.step.model import Batch
from benchmarks.step.parts import Held


class Variant(Protocol):
    """One way to train the model, on one rank."""

    def prepare(self, batch: Batch) -> Any:
        """A batch as this variant takes it; not timed."""

    def step(self, prepared: Any) -> Tensor:
        """One optimizer step; the rank's loss before it."""

    def tables(self) -> Held:
        """What this rank holds of the tables."""

    def formula_bytes(self) -> int:
        """Bytes to other hosts in one step by formula; 0 where there is none."""


@runtime_checkable
class LooksAhead(Protocol):
    """A variant that may draw batches before their step, to send what it can of them early."""

    def look_ahead(self, batches: Iterator[Any]) -> None:
        """The prepared batches of all steps to come, in order: those that ``step`` will be called with."""
