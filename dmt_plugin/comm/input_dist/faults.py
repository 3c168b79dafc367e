"""Bad input of a batch, as ranks tell each other: four whole numbers, of which every rank makes the same sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dmt_plugin.comm.input_dist.ids import (
    BAG_LENGTHS,
    BATCH_SIZE,
    CALL,
    COLUMNS,
    DIMENSIONS,
    HOTNESS,
    ID_RANGE,
    ID_TYPE,
    LEARNED,
    OFFSET_DIMENSIONS,
    OFFSET_TYPE,
    WEIGHT_TYPE,
    WEIGHTED,
    WEIGHTS,
    IdSlot,
    type_of_code,
)

__all__ = ["NO_FAULT", "Fault", "first_fault"]


class Fault(NamedTuple):
    """Bad input found at its source; ``rank`` -1 means none. Travels as four int64."""

    rank: int
    slot: int
    kind: int
    found: int

    def message(self, slots: Sequence[IdSlot]) -> str:
        """The same text on every rank."""
        if self.kind == CALL:
            return f"rank {self.rank}: its call failed before its ids could be read; its own error says why"
        slot = slots[self.slot]
        return f"rank {self.rank}: feature '{slot.name}' has {self._said(slot)}"

    def _said(self, slot: IdSlot) -> str:
        found = self.found
        if self.kind == ID_RANGE:
            return (
                f"id {found}, but its table has {slot.rows} rows (valid ids are 0 to {slot.rows - 1}); mend the data "
                "or enlarge the table"
            )
        if self.kind == BAG_LENGTHS:
            return (
                f"bag lengths that are negative or add up to {found}, which is not the number of its ids; mend the "
                "offsets or lengths of the batch: offsets begin with 0 and rise to the number of ids at most"
            )
        if self.kind == HOTNESS:
            usual = 1 if slot.hotness is None else slot.hotness
            return (
                f"{found} ids per sample, but {usual} in the example batch; pass batches of one width, or offsets "
                "(bags of varying length)"
            )
        if self.kind == BATCH_SIZE:
            return f"{found} samples, a different number than the rank's first feature"
        if self.kind == ID_TYPE:
            return f"ids of the type {type_of_code(found)}; integer ids are expected, such as batch.long() has"
        if self.kind == DIMENSIONS:
            return f"ids in a tensor of {found} dimension(s), another number than in the example batch"
        if self.kind == COLUMNS:
            return f"no column of its own: the matrix of ids has {found} column(s), fewer than in the example batch"
        if self.kind == OFFSET_TYPE:
            return f"offsets of the type {type_of_code(found)}; whole numbers are expected, such as .long() has"
        if self.kind == OFFSET_DIMENSIONS:
            return f"offsets of {found} dimension(s), or none at all; one offset for each bag is expected"
        if self.kind == WEIGHTS:
            return f"{found} weights, which is not one for each id, in the shape of the ids; mend the weights"
        if self.kind == WEIGHT_TYPE:
            return f"weights of the type {type_of_code(found)}; floating numbers are expected"
        if self.kind == WEIGHTED:
            return "weights, and had none" * found + "no weights, and had some" * (1 - found) + " in the example batch"
        assert self.kind == LEARNED
        return (
            "learned per-sample weights, which get no gradient through index distribution; detach them, or leave this "
            "lookup out of the towers"
        )


NO_FAULT = Fault(-1, 0, 0, 0)


def first_fault(faults: Sequence[Fault]) -> Fault:
    """The fault every rank reports: that of the lowest source rank."""
    return min((fault for fault in faults if fault.rank >= 0), default=NO_FAULT)


def unreadable(rank: int) -> Fault:
    """The fault of a rank that has no ids to check, as its call failed before."""
    return Fault(rank, 0, CALL, 0)


def is_integer(dtype: torch.dtype) -> bool:
    """Whether ids may be of a type."""
    return dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
