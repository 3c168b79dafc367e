"""Requests for distinct rows: which rows a batch needs is worked out once per rank and host, and sent to their owners.

Hierarchical route, on rank (host h, lane l):

1. check the ids at their source; all ids of a group of tables become codes, sorted, each once; the *inverse* says for
   every id at which place of that list its row is;
2. lanes stage: lane ``j`` of this host gets the codes of rows that lanes ``j`` own. What arrives is merged: sorted,
   each once for the host; the *merge inverse* says for every code that came at which place of the merged list it is;
3. peers stage: every host's lane ``l`` gets the merged codes of its own rows, and looks them up.

Rows come back the other way: to the peers that asked, there spread to the lanes by the merge inverse, there to the
samples by the inverse. The flat route has one stage over the world, and merges nothing. Where a host consists of
several machines, each takes the place of the host in all this: a row crosses to a machine once.

Where the batch is cut into micro-blocks, every list is sorted by the first block that needs a row
(:mod:`dmt_plugin.comm.distinct.first_use`), and the headers count the codes of each block: rows of block ``k`` are an
exchange of their own, and places are among the rows of the blocks up to ``k``. Ids of which it is not known whose they
are are cut into equal parts: their rows are put together again before the model sees them.

Groups of tables whose rows do not travel once take the same way, with a code for every id.

Bad input (an id outside its table) travels as a fault word in the headers: after the last header every rank knows it,
and all of them raise the same error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dmt_plugin.comm.batch_layout import RowCounts
from dmt_plugin.comm.distinct.first_use import FirstUses
from dmt_plugin.comm.distinct.request_stage import Announced, RequestStage
from dmt_plugin.comm.distinct.row_groups import Read, Route, RowCodes, RowGroup
from dmt_plugin.comm.id_exchange import IdCore, IdExchange
from dmt_plugin.comm.input_dist.faults import Fault, first_fault
from dmt_plugin.comm.input_dist.id_source import SourceCheck
from dmt_plugin.comm.input_dist.id_stage import Stream
from dmt_plugin.comm.input_dist.ids import FeatureIds, IdSlot
from dmt_plugin.comm.micro_blocks import block_sizes
from dmt_plugin.comm.wire.transport import Pending, Wire
from dmt_plugin.core.errors import IdRangeError
from dmt_plugin.topology.group_names import groups_of_rows_once
from dmt_plugin.topology.shape import Topology


@dataclass
class ReadIds:
    """Where the rows of one lookup are, in one block of this rank's batch.

    Attributes:
        places: ``(n,)`` int64, bag by bag: among the distinct rows of the blocks up to this one.
        lengths: ``(bags,)`` ids per bag, or None where each has the same number.
        weights: ``(n,)`` float32, or None.
        bags: number of bags: the samples of the block, or samples times length of a sequence.
        mean: whether the rows of a bag are averaged, not added up.
    """

    places: Tensor
    lengths: Tensor | None
    weights: Tensor | None
    bags: int
    mean: bool = False


@dataclass
class BlockRequests:
    """What one micro-block adds to the requests of a group of tables: the rows that it is the first to need.

    Attributes:
        owners: rows that go to each member of the last stage's group, and that come from each.
        spread: ``(m,)`` int64: for each row that goes to a lane, lane by lane, its place among those that came, of the
            blocks up to this one; None where nothing was merged.
        lanes: rows that go to each lane, and that come from each; None where nothing was merged.
        reads: for each lookup where its rows are.
    """

    owners: RowCounts
    spread: Tensor | None
    lanes: RowCounts | None
    reads: tuple[ReadIds, ...]


@dataclass
class GroupRequests:
    """The requests of one group of tables.

    Attributes:
        asked: ``(n,)`` rows of this rank's stack that are asked for, block by block, and in a block member by member.
        distinct: number of distinct rows of this rank's batch.
        blocks: what each micro-block brings.
    """

    asked: Tensor
    distinct: int
    blocks: tuple[BlockRequests, ...]

    @property
    def asked_by_block(self) -> list[int]:
        """How many rows of ``asked`` are of each block."""
        return [sum(block.owners.sent) for block in self.blocks]

    @property
    def fetched(self) -> int:
        """How many rows this rank fetches from their owners."""
        return sum(sum(block.owners.received) for block in self.blocks)

    @property
    def ids(self) -> int:
        """How many ids this rank's batch has."""
        return sum(read.places.numel() for block in self.blocks for read in block.reads)


@dataclass
class Requests:
    """The requests of one batch.

    Attributes:
        own: samples of this rank's batch; 0 where no id stream says how many there are.
        groups: by group of tables.
    """

    own: int
    groups: tuple[GroupRequests, ...]


_Bags = tuple[Tensor | None, Tensor | None, int]
"""Of a lookup in a block: lengths, weights and number of its bags."""


@dataclass
class _Own:
    """What a rank's own batch needs of one group: codes by block, and for each block where the ids find them."""

    uses: FirstUses
    reads: tuple[tuple[ReadIds, ...], ...]


@dataclass
class RequestsInFlight:
    """What ``start`` hands to ``wait``: the first stage under way, or a fault."""

    batch: int
    own: list[_Own]
    fault: Fault
    announced: Announced
    pending: Pending | None


class _Core(IdCore):
    """What the start and wait nodes share."""

    def __init__(
        self,
        slots: Sequence[IdSlot],
        groups: Sequence[RowGroup],
        topology: Topology,
        rank: int,
        route: Route,
        name: str,
    ) -> None:
        if not groups:
            raise ValueError("requests for rows need at least one group of tables")
        super().__init__(slots)
        self.groups = tuple(groups)
        self.check = SourceCheck(self.slots, rank)
        self.codes = [RowCodes(group, topology, route, rank) for group in groups]
        self.first = 0  # position of the first owner that this rank asks in the last stage
        self.lanes_stage: RequestStage | None = None
        if route == "flat":
            self.last_stage = RequestStage(f"{name}.world", "world", topology.world_size)
        else:
            far, near = groups_of_rows_once(topology)
            machines = topology.by_machine
            self.last_stage = RequestStage(f"{name}.{far}", far, machines.hosts)
            if machines.ranks_per_host > 1:
                self.lanes_stage = RequestStage(f"{name}.{near}", near, machines.ranks_per_host)
                self.first = machines.lane_of(rank) * machines.hosts
        self.blocks = 1

    @property
    def dtypes(self) -> list[torch.dtype]:
        """Of the lists of codes that a stage sends: one for each group and block."""
        return [codes.dtype for codes in self.codes for _ in range(self.blocks)]

    def start(self, ids: Sequence[FeatureIds] | None, wire: Wire) -> RequestsInFlight:
        batch, streams, fault = self.check(ids, wire.device)
        stage, owners = self.last_stage, 1
        if self.lanes_stage is not None:  # a lane sees to the owners on all hosts that have its number
            stage, owners = self.lanes_stage, self.last_stage.members
        own = [self._own(codes, streams, batch) for codes in self.codes] if fault.rank < 0 else []
        lists = [one.uses for one in own]
        announced = stage.announce(wire, self._counts(lists, stage, owners, 0), fault)
        fault = first_fault(announced.faults)
        pending = stage.start(wire, _flat(lists), self.dtypes, announced) if fault.rank < 0 else None
        return RequestsInFlight(batch, own, fault, announced, pending)

    def finish(self, flight: RequestsInFlight, wire: Wire) -> Requests:
        fault, last, pending = flight.fault, flight.announced, flight.pending
        merged: list[FirstUses] = []
        if self.lanes_stage is not None:
            if pending is not None:
                came = self.lanes_stage.finish(pending, self.dtypes, flight.announced)
                merged = [
                    group.uses([torch.cat(of_block) for of_block in own])
                    for group, own in zip(self.groups, self._by_group(came), strict=True)
                ]
            last = self.last_stage.announce(wire, self._counts(merged, self.last_stage, 1, self.first), fault)
            fault = first_fault(last.faults)
            pending = self.last_stage.start(wire, _flat(merged), self.dtypes, last) if fault.rank < 0 else None
        if pending is None:
            raise IdRangeError(f"step {wire.step}: {fault.message(self.slots)}")
        asked = self._by_group(self.last_stage.finish(pending, self.dtypes, last))
        owners = self._by_group(_row_counts(last))
        lanes = self._by_group(_row_counts(flight.announced) if merged else [None] * len(self.dtypes))
        spread: list[tuple[Any, ...]] = [own.places for own in merged] or [(None,) * self.blocks] * len(self.groups)
        return Requests(
            flight.batch,
            tuple(
                GroupRequests(
                    codes.rows_of_stack([part for of_block in asked[group] for part in of_block]),
                    own.uses.distinct,
                    tuple(map(BlockRequests, owners[group], spread[group], lanes[group], own.reads)),
                )
                for group, (codes, own) in enumerate(zip(self.codes, flight.own, strict=True))
            ),
        )

    def _counts(self, lists: Sequence[FirstUses], stage: RequestStage, owners: int, first: int) -> list[list[int]]:
        """How many codes of each group and block go to each member of a stage's group; none where there was a fault."""
        if not lists:
            return [[0] * stage.members for _ in self.dtypes]
        pairs = [(codes, own) for codes, uses in zip(self.codes, lists, strict=True) for own in uses.codes]
        return [codes.counts(own, stage.members, owners, first) for codes, own in pairs]

    def _by_group(self, lists: Sequence[Any]) -> list[Sequence[Any]]:
        """What there is one of for each group and block, by group."""
        return [lists[i : i + self.blocks] for i in range(0, len(lists), self.blocks)]

    def _own(self, codes: RowCodes, streams: dict[int, Stream], batch: int) -> _Own:
        """The distinct rows that this rank's batch needs of one group."""
        sizes = block_sizes(batch, self.blocks)
        columns = _columns(codes, streams, batch)
        if columns is not None:
            own = [part.reshape(-1) for part in columns.split(sizes, dim=1)]
            entries = [[part.numel() // len(codes.group.reads)] * len(codes.group.reads) for part in own]
            bags = [[(None, None, size)] * len(codes.group.reads) for size in sizes]
            return _own_of(codes, own, entries, bags)
        parts: list[list[Tensor]] = [[] for _ in sizes]
        found: list[list[_Bags]] = [[] for _ in sizes]
        for read in codes.group.reads:
            ids, of_read = ids_of_read(read, streams[read.slot], batch)
            cut = block_sizes(of_read[-1], self.blocks) if read.by_id else sizes
            for block, (part, of_block) in enumerate(_cut(codes.of(read, ids), *of_read, cut)):
                parts[block].append(part)
                found[block].append(of_block)
        joined = [torch.cat(of_block) for of_block in parts]
        return _own_of(codes, joined, [[part.numel() for part in of_block] for of_block in parts], found)


def _own_of(
    codes: RowCodes, needed: Sequence[Tensor], entries: Sequence[Sequence[int]], bags: Sequence[Sequence[_Bags]]
) -> _Own:
    """From the codes that each block needs, lookup by lookup, with how many are each lookup's, and its bags."""
    uses = codes.group.uses(needed)
    means = [read.pooling == "mean" for read in codes.group.reads]
    reads = []
    for places, sizes, of_bags in zip(uses.places, entries, bags, strict=True):
        where = places.split(list(sizes))
        reads.append(tuple(ReadIds(p, *b, mean) for p, b, mean in zip(where, of_bags, means, strict=True)))
    return _Own(uses, tuple(reads))


def _columns(codes: RowCodes, streams: dict[int, Stream], batch: int) -> Tensor | None:
    """The codes of all lookups in a few operations, ``(reads, B, K)``; None unless each has ``K`` ids per sample."""
    reads = codes.group.reads
    own = [streams[read.slot] for read in reads]
    if not codes.together or any(read.pooling == "none" or read.weighted for read in reads):
        return None
    if any(one.lengths is not None or one.values.shape != own[0].values.shape for one in own):
        return None
    ids = torch.cat([one.values for one in own], dim=1).view(batch, len(reads), own[0].values.shape[1])
    by_read = ids.transpose(0, 1).contiguous()
    return codes.of_all(by_read.flatten(1)).view_as(by_read)


def _flat(lists: Sequence[FirstUses]) -> list[Tensor]:
    return [own for uses in lists for own in uses.codes]


def _row_counts(announced: Announced) -> list[RowCounts]:
    """Rows go where codes came from, and come from where codes went."""
    return list(map(RowCounts, announced.received, announced.sent))


def _cut(
    codes: Tensor, lengths: Tensor | None, weights: Tensor | None, bags: int, sizes: Sequence[int]
) -> list[tuple[Tensor, _Bags]]:
    """Codes of a lookup with lengths, weights and number of their bags, by blocks of so many samples."""
    if len(sizes) == 1:
        return [(codes, (lengths, weights, bags))]
    per_sample = bags // max(sum(sizes), 1)
    of_block = [size * per_sample for size in sizes]
    none = [None] * len(sizes)
    own_lengths: Sequence[Tensor | None] = none if lengths is None else lengths.split(of_block)
    if lengths is None:
        entries = [n * (codes.numel() // max(bags, 1)) for n in of_block]
    else:
        entries = torch.stack([own.sum() for own in lengths.split(of_block)]).tolist()
    own_weights: Sequence[Tensor | None] = none if weights is None else weights.split(entries)
    return list(zip(codes.split(entries), zip(own_lengths, own_weights, of_block, strict=True), strict=True))


def ids_of_read(read: Read, stream: Stream, batch: int) -> tuple[Tensor, _Bags]:
    """The ids ``(n,)`` of a lookup, with lengths, weights and number of its bags.

    Args:
        read: the lookup.
        stream: of its slot.
        batch: number of samples.
    """
    ids = stream.values.reshape(-1)
    if read.pooling != "none":
        weights = None
        if read.weighted and stream.weights is not None:
            weights = stream.weights.reshape(-1)
        return ids, (stream.lengths, weights, batch)
    bags = ids.numel()  # a vector per id; the padding's is that of an empty bag
    if read.padding is None:
        return ids, (None, None, bags)
    keep = ids != read.padding
    return ids[keep], (keep.long(), None, bags)


class RowRequests(IdExchange):
    """Pair of graph nodes ``start(*ids) -> pending`` and ``wait(pending) -> Requests``.

    ``start`` takes one ``FeatureIds`` per slot, in slot order. ``wait`` raises ``IdRangeError`` on every
    rank when any rank's batch was bad, and ``ExchangeError`` when the wire failed.

    Args:
        slots: the id streams of the lookups that ask for distinct rows, the same on every rank.
        groups: their tables, the same on every rank.
        topology: hosts and lanes.
        rank: this rank.
        route: ``"hierarchical"`` (lanes, then peers) or ``"flat"`` (one world stage).
        name: prefix of the exchange names in messages and in the traffic count.
    """

    def __init__(
        self,
        slots: Sequence[IdSlot],
        groups: Sequence[RowGroup],
        topology: Topology,
        rank: int,
        route: Route = "hierarchical",
        name: str = "requests",
    ) -> None:
        super().__init__(_Core(slots, groups, topology, rank, route, name))

    @property
    def groups(self) -> tuple[RowGroup, ...]:
        """The groups of tables."""
        groups: tuple[RowGroup, ...] = self._core.groups
        return groups

    @property
    def stages(self) -> tuple[RequestStage, ...]:
        """What it sends, one stage after the other."""
        core: _Core = self._core
        return tuple(stage for stage in (core.lanes_stage, core.last_stage) if stage is not None)

    @property
    def dtypes(self) -> list[torch.dtype]:
        """Of the lists of codes that a stage sends: one for each group and micro-block."""
        core: _Core = self._core
        return core.dtypes

    @property
    def blocks(self) -> int:
        """How many micro-blocks a batch is cut into."""
        blocks: int = self._core.blocks
        return blocks

    def cut_into(self, blocks: int) -> None:
        """From now on ask for each row with the first micro-block of the batch that needs it.

        Args:
            blocks: how many there are, at least 1.
        """
        self._core.blocks = blocks

    def extra_repr(self) -> str:
        """Counts of slots and groups."""
        return f"slots={len(self.slots)}, groups={len(self.groups)}"
