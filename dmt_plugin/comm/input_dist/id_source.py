"""The first step of input distribution: a rank checks its own ids, then narrows them to what is sent.

A slot is one stream of ids of the model. Its bags have a fixed number of ids (its hotness), or vary; or its ids have
no bags: each gives a row.

1. put all fixed-hotness slots side by side, ``(B, sum of hotness)``, and all varying-bag slots, and those without
   bags, behind each other;
2. compare each with its tables' rows in one operation;
3. bad input becomes a ``Fault``, which travels in front of the ids, so that every rank learns of it;
4. good ids are narrowed to the wire's integer type, and each slot gets its view.

Mistakes of the calling code that are the same on every rank (a wrong number of slots, float ids) raise at
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from dmt_plugin.comm.input_dist import id_stage
from dmt_plugin.comm.input_dist.id_stage import NO_FAULT, Fault, Stream, wire_dtype
from dmt_plugin.comm.input_dist.ids import FeatureIds, IdSlot


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

    def __call__(self, ids: Sequence[FeatureIds], device: torch.device) -> tuple[int, dict[int, Stream], Fault]:
        """Batch size (0 where no slot has one), streams by slot, and the fault found (then none) or ``NO_FAULT``."""
        self._check_call(ids)
        fault = self._shape_fault(ids)
        batch = ids[self.by_sample[0]].batch_size if self.by_sample else 0
        if fault.rank >= 0:
            return batch, {}, fault
        streams: dict[int, Stream] = {}
        faults = [self._fixed_streams(ids, batch, device, streams), self._jagged_streams(ids, device, streams)]
        fault = min((f for f in faults if f.rank >= 0), key=lambda f: f.slot, default=NO_FAULT)
        if fault.rank >= 0:
            return batch, {}, fault
        for i, slot in enumerate(self.slots):
            weights = ids[i].weights
            if slot.weighted and weights is not None:
                streams[i].weights = weights.to(device, torch.float32).reshape(streams[i].values.shape)
        return batch, streams, NO_FAULT

    def _check_call(self, ids: Sequence[FeatureIds]) -> None:
        if len(ids) != len(self.slots):
            raise ValueError(f"ids of {len(self.slots)} slots expected, found {len(ids)}")
        for slot, one in zip(self.slots, ids, strict=True):
            if one.values.is_floating_point() or one.values.is_complex() or one.values.dtype == torch.bool:
                raise ValueError(
                    f"feature '{slot.name}': integer ids expected, found {one.values.dtype}; "
                    "convert the batch with .long()"
                )
            if slot.weighted != (one.weights is not None):
                raise ValueError(
                    f"feature '{slot.name}' is {'' if slot.weighted else 'not '}weighted, but its ids came "
                    f"with{'out' if slot.weighted else ''} weights"
                )
            if one.weights is not None and one.weights.requires_grad:
                raise ValueError(
                    f"feature '{slot.name}': learned per-sample weights get no gradient through index "
                    "distribution; detach them, or leave this lookup out of the towers"
                )

    def _shape_fault(self, ids: Sequence[FeatureIds]) -> Fault:
        """First mismatch that can be seen without reading a tensor."""
        for i in self.by_sample:
            slot, one = self.slots[i], ids[i]
            if one.batch_size != ids[self.by_sample[0]].batch_size:
                return Fault(self.rank, i, id_stage.BATCH_SIZE, one.batch_size)
            if slot.hotness is not None and one.hotness != slot.hotness:
                found = -1 if one.hotness is None else one.hotness
                return Fault(self.rank, i, id_stage.HOTNESS, found)
            expected = None if one.hotness is None else one.hotness * one.batch_size
            if expected is None and one.lengths is not None and one.lengths.numel() != one.batch_size:
                return Fault(self.rank, i, id_stage.BATCH_SIZE, one.lengths.numel())
            if expected is not None and one.values.numel() != expected:
                return Fault(self.rank, i, id_stage.BAG_LENGTHS, expected)
        return NO_FAULT

    def _fixed_streams(
        self, ids: Sequence[FeatureIds], batch: int, device: torch.device, streams: dict[int, Stream]
    ) -> Fault:
        if not self.fixed:
            return NO_FAULT
        matrix = torch.cat(
            [ids[i].values.to(device).view(batch, k) for i, k in zip(self.fixed, self.hotness, strict=True)], dim=1
        )
        bad = (matrix < 0) | (matrix >= self._device_limits(device)[0])
        if bool(bad.any()):
            # The first feature with a bad id is reported, not the first sample.
            column, sample = bad.t().nonzero()[0].tolist()
            return Fault(self.rank, self._column_slots[column], id_stage.ID_RANGE, int(matrix[sample, column]))
        matrix = matrix.to(self.dtype)
        for i, k, end in zip(self.fixed, self.hotness, accumulate(self.hotness), strict=True):
            streams[i] = Stream(matrix[:, end - k : end])
        return NO_FAULT

    def _jagged_streams(self, ids: Sequence[FeatureIds], device: torch.device, streams: dict[int, Stream]) -> Fault:
        if not self.jagged:
            return NO_FAULT
        lengths = {i: _lengths_of(ids[i], device) for i in self.jagged if not self.slots[i].by_id}
        if lengths:
            stacked = torch.stack(list(lengths.values()))
            sums, low = stacked.sum(1).tolist(), stacked.amin(1).tolist() if stacked.numel() else [0] * len(lengths)
            for i, found, least in zip(lengths, sums, low, strict=True):
                if found != ids[i].values.numel() or least < 0:
                    return Fault(self.rank, i, id_stage.BAG_LENGTHS, found)
        counts = [ids[i].values.numel() for i in self.jagged]
        values = torch.cat([ids[i].values.to(device) for i in self.jagged])
        sizes = torch.tensor(counts, device=device)
        limits = self._device_limits(device)[1].repeat_interleave(sizes, output_size=sum(counts))
        bad = (values < 0) | (values >= limits)
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            position = next(p for p, end in enumerate(accumulate(counts)) if first < end)
            return Fault(self.rank, self.jagged[position], id_stage.ID_RANGE, int(values[first]))
        parts = values.to(self.dtype).split(counts)
        for position, i in enumerate(self.jagged):
            streams[i] = Stream(parts[position], lengths.get(i))
        return NO_FAULT

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
