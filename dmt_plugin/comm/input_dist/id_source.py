"""The first step of input distribution: a rank checks its own ids, then narrows them to what is sent.

A slot is one stream of ids of the model. Its bags have a fixed number of ids (its hotness), or vary; or its ids have
no bags: each gives a row.

1. put all fixed-hotness slots side by side, ``(B, sum of hotness)``, and all varying-bag slots, and those without
   bags, behind each other;
2. compare each with its tables' rows in one operation;
3. bad input becomes a ``Fault``, which travels in front of the ids, so that every rank learns of it; of several faults
   that of the first slot is told: where one is found, slot by slot is looked at again;
4. good ids are narrowed to the wire's integer type, and each slot gets its view.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from dmt_plugin.comm.input_dist import ids as kinds
from dmt_plugin.comm.input_dist.faults import NO_FAULT, Fault, is_integer, unreadable
from dmt_plugin.comm.input_dist.id_stage import Stream, wire_dtype
from dmt_plugin.comm.input_dist.ids import FeatureIds, IdSlot, code_of_type


class SourceCheck:
    """Turns one ``FeatureIds`` per slot into the streams of the first stage, or into a fault.

    Args:
        slots: all slots of the model.
        rank: this rank, named by its faults.
    """

    def __init__(self, slots: Sequence[IdSlot], rank: int) -> None:
        self.slots = slots
        self.rank = rank
        self.dtype = wire_dtype(slots)
        self.fixed = [i for i, slot in enumerate(slots) if slot.hotness is not None]
        self.jagged = [i for i, slot in enumerate(slots) if slot.hotness is None]
        self.by_sample = [i for i, slot in enumerate(slots) if not slot.by_id]
        self.hotness = [slots[i].hotness or 0 for i in self.fixed]
        self._column_slots = [i for i, k in zip(self.fixed, self.hotness, strict=True) for _ in range(k)]
        self._limits: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, ids: Sequence[FeatureIds] | None, device: torch.device) -> tuple[int, dict[int, Stream], Fault]:
        """Checks a batch.

        Args:
            ids: of each slot; None where the call has failed before there were any.
            device: where they go.

        Returns:
            Batch size (0 where no slot has one), streams by slot, and the fault found (then no streams) or
            ``NO_FAULT``.

        Raises:
            ValueError: another number of slots, which is the same mistake on every rank.
        """
        if ids is None:
            return 0, {}, unreadable(self.rank)
        if len(ids) != len(self.slots):
            raise ValueError(f"ids of {len(self.slots)} slots expected, found {len(ids)}")
        batch = ids[self.by_sample[0]].batch_size if self.by_sample else 0
        fault = self.fault_of_form(ids)
        streams: dict[int, Stream] = {}
        if fault.rank >= 0 or not (
            self._fixed_streams(ids, batch, device, streams) and self._jagged_streams(ids, device, streams)
        ):
            return batch, {}, self._first(ids, device)
        for i, slot in enumerate(self.slots):
            weights = ids[i].weights
            if slot.weighted and weights is not None:
                streams[i].weights = weights.to(device, torch.float32).reshape(streams[i].values.shape)
        return batch, streams, NO_FAULT

    def fault_of_form(self, ids: Sequence[FeatureIds]) -> Fault:
        """The first fault that can be seen without reading a tensor."""
        batch = ids[self.by_sample[0]].batch_size if self.by_sample else 0
        for i in range(len(self.slots)):
            if (found := self._form(i, ids[i], batch)) is not None:
                return Fault(self.rank, i, *found)
        return NO_FAULT

    def _first(self, ids: Sequence[FeatureIds], device: torch.device) -> Fault:
        """The fault of the first slot that has one."""
        batch = ids[self.by_sample[0]].batch_size if self.by_sample else 0
        for i, one in enumerate(ids):
            found = self._form(i, one, batch) or self._content(i, one, device)
            if found is not None:
                return Fault(self.rank, i, *found)
        raise AssertionError("what was wrong with the batch is right when it is looked at again")

    def _form(self, i: int, one: FeatureIds, batch: int) -> tuple[int, int] | None:
        """What is wrong with one slot, as far as that can be seen without reading a tensor."""
        slot, weights = self.slots[i], one.weights
        if one.fault is not None:
            return one.fault
        if not is_integer(one.values.dtype):
            return kinds.ID_TYPE, code_of_type(one.values.dtype)
        if slot.weighted != (weights is not None):
            return kinds.WEIGHTED, int(weights is not None)
        if weights is not None:
            if weights.requires_grad:
                return kinds.LEARNED, 0
            if not weights.is_floating_point():
                return kinds.WEIGHT_TYPE, code_of_type(weights.dtype)
            if weights.numel() != one.values.numel():
                return kinds.WEIGHTS, weights.numel()
        if slot.by_id:
            return None
        if one.batch_size != batch:
            return kinds.BATCH_SIZE, one.batch_size
        if slot.hotness is not None and one.hotness != slot.hotness:
            return kinds.HOTNESS, -1 if one.hotness is None else one.hotness
        if one.hotness is not None and one.values.numel() != one.hotness * batch:
            return kinds.BAG_LENGTHS, one.hotness * batch
        if one.lengths is not None and one.lengths.numel() != batch:
            return kinds.BATCH_SIZE, one.lengths.numel()
        return None

    def _content(self, i: int, one: FeatureIds, device: torch.device) -> tuple[int, int] | None:
        """What is wrong with the lengths and ids of one slot."""
        slot = self.slots[i]
        if slot.hotness is None and not slot.by_id:
            lengths = _lengths_of(one, device)
            if bool((lengths < 0).any()) or int(lengths.sum()) != one.values.numel():
                return kinds.BAG_LENGTHS, int(lengths.sum())
        values = one.values.to(device).reshape(-1)
        bad = (values < 0) | (values >= slot.rows)
        return (kinds.ID_RANGE, int(values[bad][0])) if bool(bad.any()) else None

    def _fixed_streams(
        self, ids: Sequence[FeatureIds], batch: int, device: torch.device, streams: dict[int, Stream]
    ) -> bool:
        """Adds the streams of fixed hotness; whether all of their ids are in their tables."""
        if not self.fixed:
            return True
        matrix = torch.cat(
            [ids[i].values.to(device).view(batch, k) for i, k in zip(self.fixed, self.hotness, strict=True)], dim=1
        )
        if bool(((matrix < 0) | (matrix >= self._device_limits(device)[0])).any()):
            return False
        matrix = matrix.to(self.dtype)
        for i, k, end in zip(self.fixed, self.hotness, accumulate(self.hotness), strict=True):
            streams[i] = Stream(matrix[:, end - k : end])
        return True

    def _jagged_streams(self, ids: Sequence[FeatureIds], device: torch.device, streams: dict[int, Stream]) -> bool:
        """Adds the other streams; whether lengths are right and all of their ids in their tables."""
        if not self.jagged:
            return True
        lengths = {i: _lengths_of(ids[i], device) for i in self.jagged if not self.slots[i].by_id}
        if lengths:
            stacked = torch.stack(list(lengths.values()))
            sums, low = stacked.sum(1).tolist(), stacked.amin(1).tolist() if stacked.numel() else [0] * len(lengths)
            counted = [ids[i].values.numel() for i in lengths]
            if sums != counted or min(low) < 0:
                return False
        counts = [ids[i].values.numel() for i in self.jagged]
        values = torch.cat([ids[i].values.to(device) for i in self.jagged])
        sizes = torch.tensor(counts, device=device)
        limits = self._device_limits(device)[1].repeat_interleave(sizes, output_size=sum(counts))
        if bool(((values < 0) | (values >= limits)).any()):
            return False
        parts = values.to(self.dtype).split(counts)
        for position, i in enumerate(self.jagged):
            streams[i] = Stream(parts[position], lengths.get(i))
        return True

    def _device_limits(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rows of each fixed column's table, and of each varying-bag slot's table."""
        if device not in self._limits:
            fixed = [self.slots[i].rows for i in self._column_slots]
            jagged = [self.slots[i].rows for i in self.jagged]
            self._limits[device] = (
                torch.tensor(fixed, dtype=torch.int64, device=device),
                torch.tensor(jagged, dtype=torch.int64, device=device),
            )
        return self._limits[device]


def _lengths_of(ids: FeatureIds, device: torch.device) -> Tensor:
    """``(B,)`` int64 lengths, also for ids of fixed hotness in a varying-bag slot."""
    if ids.lengths is None:
        return torch.full((ids.batch_size,), ids.hotness or 0, dtype=torch.int64, device=device)
    return ids.lengths.to(device, torch.int64)
