"""One stage of input distribution: an all-to-all of id streams inside one group.

What a member sends to another is not known to the receiver beforehand (batch sizes and bags vary), so a
stage is:

1. header, int64: a fault word, the sender's batch sizes, and the number of ids of every varying-bag stream
   it sends;
2. if any header carries a fault, every member has seen it, and all of them skip the rest;
3. ids, int32 or int64: per destination the fixed-hotness streams as one row-major matrix ``(rows, sum of
   hotness)``, then the lengths of the varying-bag streams, then their ids;
4. weights, float32, of the weighted streams, in the same order without the lengths;
5. blocks from all members are stacked in group order: rows stay sorted by source.

A group of one rank skips all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from dmt_plugin.comm.input_dist.faults import NO_FAULT, Fault
from dmt_plugin.comm.input_dist.ids import IdSlot
from dmt_plugin.comm.wire.transport import BRIEF_BYTES, Group, Pending, Wire


@dataclass
class Stream:
    """Ids of one slot for ``rows`` rows.

    Attributes:
        values: ``(rows, hotness)`` with fixed hotness (possibly a strided view), else ``(n,)``.
        lengths: ``(rows,)``, or None with fixed hotness.
        weights: like ``values``, float32, or None.
    """

    values: Tensor
    lengths: Tensor | None = None
    weights: Tensor | None = None


class Header(NamedTuple):
    """What one member announced."""

    fault: Fault
    blocks: tuple[int, ...]
    counts: tuple[int, ...]


class IdStage:
    """Sends some slots to each member of a group and receives this rank's slots from each.

    Args:
        name: prefix of the exchange names.
        group: ``"peers"``, ``"lanes"`` or ``"world"``.
        slots: all slots of the model.
        send: for each member of the group the slots (indices) it gets.
        receive: the slots this rank gets from each member.
        block_count: batch sizes each member announces.
    """

    def __init__(
        self,
        name: str,
        group: Group,
        slots: Sequence[IdSlot],
        send: Sequence[Sequence[int]],
        receive: Sequence[int],
        block_count: int,
    ) -> None:
        self.name = name
        self.group: Group = group
        self.slots = slots
        self.members = len(send)
        self.send = [_Selection(slots, chosen) for chosen in send]
        self.receive = _Selection(slots, receive)
        self.block_count = block_count
        self.dtype = wire_dtype(slots)
        self.weighted = any(slot.weighted for slot in slots)

    def start_header(self, wire: Wire, streams: Mapping[int, Stream], blocks: Sequence[int], fault: Fault) -> Pending:
        """Announce to every member what it will get. With a fault ``streams`` is not read."""
        words: list[int] = []
        for selection in self.send:
            counts = [streams[i].values.numel() if fault.rank < 0 else 0 for i in selection.jagged]
            words += [*fault, *blocks, *counts]
        fixed = len(NO_FAULT) + self.block_count
        return wire.all_to_all(
            f"{self.name}.header",
            "forward",
            self.group,
            torch.tensor(words, dtype=torch.int64).to(wire.device),
            [fixed + len(selection.jagged) for selection in self.send],
            [fixed + len(self.receive.jagged)] * self.members,
            brief=True,
        )

    def read_headers(self, pending: Pending) -> list[Header]:
        """Headers of all members, in group order."""
        size = len(NO_FAULT) + self.block_count + len(self.receive.jagged)
        words = pending.wait().tolist()
        headers = []
        for start in range(0, size * self.members, size):
            own = words[start : start + size]
            blocks = own[len(NO_FAULT) : len(NO_FAULT) + self.block_count]
            counts = own[len(NO_FAULT) + self.block_count :]
            headers.append(Header(Fault(*own[: len(NO_FAULT)]), tuple(blocks), tuple(counts)))
        return headers

    def start_ids(
        self, wire: Wire, streams: Mapping[int, Stream], rows: int, headers: Sequence[Header]
    ) -> tuple[Pending, Pending | None]:
        """Send the ids, and the weights where there are any."""
        sizes = [(rows, [streams[i].values.numel() for i in part.jagged]) for part in self.send]
        splits = [part.id_size(*size) for part, size in zip(self.send, sizes, strict=True)]
        arriving = [self.receive.id_size(sum(header.blocks), header.counts) for header in headers]
        buffer = torch.empty(sum(splits), dtype=self.dtype, device=wire.device)
        for part, out in zip(self.send, buffer.split(splits), strict=True):
            part.pack_ids(streams, rows, out)
        brief = self._brief(headers)
        ids = wire.all_to_all(f"{self.name}.ids", "forward", self.group, buffer, splits, arriving, brief=brief)
        if not self.weighted:
            return ids, None
        splits = [part.weight_size(*size) for part, size in zip(self.send, sizes, strict=True)]
        arriving = [self.receive.weight_size(sum(header.blocks), header.counts) for header in headers]
        buffer = torch.empty(sum(splits), dtype=torch.float32, device=wire.device)
        for part, out in zip(self.send, buffer.split(splits), strict=True):
            part.pack_weights(streams, rows, out)
        return ids, wire.all_to_all(f"{self.name}.weights", "forward", self.group, buffer, splits, arriving)

    def _brief(self, headers: Sequence[Header]) -> bool:
        """Whether every member has few ids to send; from what all members know, so that all agree."""
        if any(part.jagged for part in self.send):
            return False
        row = sum(sum(part.hotness) for part in self.send) * self.dtype.itemsize
        return row * max(sum(header.blocks) for header in headers) <= BRIEF_BYTES

    def finish_ids(self, pending: tuple[Pending, Pending | None], headers: Sequence[Header]) -> dict[int, Stream]:
        """Streams of this rank's slots, rows stacked in group order."""
        sizes = [(sum(header.blocks), list(header.counts)) for header in headers]
        streams = self.receive.unpack_ids(pending[0].wait(), sizes)
        if pending[1] is not None:
            self.receive.unpack_weights(pending[1].wait(), sizes, streams)
        return streams


def wire_dtype(slots: Sequence[IdSlot]) -> torch.dtype:
    """int32 where every table's rows fit, else int64."""
    return torch.int32 if all(slot.rows <= 2**31 for slot in slots) else torch.int64


class _Selection:
    """The slots that travel together to one destination, and how they lie in the buffers."""

    def __init__(self, slots: Sequence[IdSlot], chosen: Sequence[int]) -> None:
        self.fixed = [i for i in chosen if slots[i].hotness is not None]
        self.jagged = [i for i in chosen if slots[i].hotness is None]
        self.hotness = [slots[i].hotness or 0 for i in self.fixed]
        self.weighted_fixed = [i for i in self.fixed if slots[i].weighted]
        self.weighted_hotness = [slots[i].hotness or 0 for i in self.weighted_fixed]
        self.weighted_jagged = [i for i in self.jagged if slots[i].weighted]
        self.weighted_positions = [p for p, i in enumerate(self.jagged) if slots[i].weighted]

    def id_size(self, rows: int, counts: Sequence[int]) -> int:
        return rows * (sum(self.hotness) + len(self.jagged)) + sum(counts)

    def weight_size(self, rows: int, counts: Sequence[int]) -> int:
        return rows * sum(self.weighted_hotness) + sum(counts[p] for p in self.weighted_positions)

    def pack_ids(self, streams: Mapping[int, Stream], rows: int, out: Tensor) -> None:
        matrix, rest = out.tensor_split([rows * sum(self.hotness)])
        _fill_matrix(matrix, rows, [streams[i].values for i in self.fixed])
        if self.jagged:
            torch.cat(
                [_lengths(streams[i], out.dtype) for i in self.jagged] + [streams[i].values for i in self.jagged],
                out=rest,
            )

    def pack_weights(self, streams: Mapping[int, Stream], rows: int, out: Tensor) -> None:
        matrix, rest = out.tensor_split([rows * sum(self.weighted_hotness)])
        _fill_matrix(matrix, rows, [_weights(streams[i]) for i in self.weighted_fixed])
        if self.weighted_jagged:
            torch.cat([_weights(streams[i]) for i in self.weighted_jagged], out=rest)

    def unpack_ids(self, received: Tensor, sizes: Sequence[tuple[int, list[int]]]) -> dict[int, Stream]:
        width, jagged = sum(self.hotness), len(self.jagged)
        parts = received.split([size for rows, counts in sizes for size in (rows * width, rows * jagged, sum(counts))])
        matrix = _stack([p.view(-1, width) for p in parts[0::3]]) if width else received
        streams = {
            i: Stream(matrix[:, end - k : end])
            for i, k, end in zip(self.fixed, self.hotness, accumulate(self.hotness), strict=True)
        }
        if jagged:
            lengths = torch.cat([p.view(jagged, -1) for p in parts[1::3]], dim=1)
            values = _by_slot(parts[2::3], [counts for _, counts in sizes])
            for position, i in enumerate(self.jagged):
                streams[i] = Stream(values[position], lengths[position])
        return streams

    def unpack_weights(
        self, received: Tensor, sizes: Sequence[tuple[int, list[int]]], streams: Mapping[int, Stream]
    ) -> None:
        width = sum(self.weighted_hotness)
        counts = [[counts[p] for p in self.weighted_positions] for _, counts in sizes]
        parts = received.split(
            [size for (rows, _), own in zip(sizes, counts, strict=True) for size in (rows * width, sum(own))]
        )
        if width:
            matrix = _stack([p.view(-1, width) for p in parts[0::2]])
            ends = accumulate(self.weighted_hotness)
            for i, k, end in zip(self.weighted_fixed, self.weighted_hotness, ends, strict=True):
                streams[i].weights = matrix[:, end - k : end]
        for i, weights in zip(self.weighted_jagged, _by_slot(parts[1::2], counts), strict=True):
            streams[i].weights = weights


def _lengths(stream: Stream, dtype: torch.dtype) -> Tensor:
    assert stream.lengths is not None
    return stream.lengths.to(dtype)


def _weights(stream: Stream) -> Tensor:
    assert stream.weights is not None
    return stream.weights


def _fill_matrix(out: Tensor, rows: int, columns: Sequence[Tensor]) -> None:
    """Write ``columns``, each ``(rows, k)``, side by side into the flat ``out``."""
    if out.numel():
        torch.cat(list(columns), dim=1, out=out.view(rows, -1))


def _stack(blocks: Sequence[Tensor]) -> Tensor:
    """Blocks of rows under each other; a view where only one holds data."""
    filled = [block for block in blocks if block.numel()]
    return filled[0] if len(filled) == 1 else torch.cat(list(blocks))


def _by_slot(parts: Sequence[Tensor], counts: Sequence[Sequence[int]]) -> list[Tensor]:
    """From one part per source, sorted by slot, to one tensor per slot, sorted by source."""
    if not counts[0]:
        return []
    pieces = [torch.split(part, list(own)) for part, own in zip(parts, counts, strict=True)]
    return [torch.cat(list(of_slot)) for of_slot in zip(*pieces, strict=True)]
