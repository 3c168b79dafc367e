"""Requests for distinct rows: which rows a batch needs is worked out once per rank and host, and sent to their owners.

Hierarchical route, on rank (host h, lane l):

1. check the ids at their source; all ids of a group of tables become codes, sorted, each once; the *inverse* says for
   every id at which place of that list its row is;
2. lanes stage: lane ``j`` of this host gets the codes of rows that lanes ``j`` own. What arrives is merged: sorted,
   each once for the host; the *merge inverse* says for every code that came at which place of the merged list it is;
3. peers stage: every host's lane ``l`` gets the merged codes of its own rows, and looks them up.

Rows come back the other way: to the peers that asked, there spread to the lanes by the merge inverse, there to the
samples by the inverse. The flat route has one stage over the world, and merges nothing.

Bad input (an id outside its table) travels as a fault word in the headers: after the last header every rank knows it,
and all of them raise the same error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmt_plugin.comm.batch_layout import RowCounts
from dmt_plugin.comm.distinct.request_stage import Announced, RequestStage
from dmt_plugin.comm.distinct.row_groups import Read, Route, RowCodes, RowGroup
from dmt_plugin.comm.id_exchange import IdCore, IdExchange
from dmt_plugin.comm.input_dist.id_source import SourceCheck
from dmt_plugin.comm.input_dist.id_stage import Fault, Stream, first_fault
from dmt_plugin.comm.input_dist.ids import FeatureIds, IdSlot
from dmt_plugin.comm.wire.transport import Pending, Wire
from dmt_plugin.core.errors import IdRangeError
from dmt_plugin.topology.shape import Topology


@dataclass
class ReadIds:
    """Where the rows of one lookup are among the distinct rows of this rank's batch.

    Attributes:
        places: ``(n,)`` int64, bag by bag.
        lengths: ``(bags,)`` ids per bag, or None where each has the same number.
        weights: ``(n,)`` float32, or None.
        bags: number of bags: the batch size, or batch size times length of a sequence.
        mean: whether the rows of a bag are averaged, not added up.
    """

    places: Tensor
    lengths: Tensor | None
    weights: Tensor | None
    bags: int
    mean: bool = False


@dataclass
class GroupRequests:
    """The requests of one group of tables.

    Attributes:
        asked: ``(n,)`` rows of this rank's stack that are asked for, member by member.
        owners: rows that go to each member of the last stage's group, and that come from each.
        spread: ``(m,)`` int64: for each row that goes to a lane, lane by lane, its place among those that came; None
            where nothing was merged.
        lanes: rows that go to each lane, and that come from each; None where nothing was merged.
        distinct: number of distinct rows of this rank's batch.
        reads: for each lookup where its rows are.
    """

    asked: Tensor
    owners: RowCounts
    spread: Tensor | None
    lanes: RowCounts | None
    distinct: int
    reads: tuple[ReadIds, ...]


@dataclass
class Requests:
    """The requests of one batch, by group of tables."""

    groups: tuple[GroupRequests, ...]


@dataclass
class _Own:
    """What a rank's own batch needs of one group: sorted codes, how many go to each member, and where ids find them."""

    codes: Tensor
    counts: list[int]
    reads: tuple[ReadIds, ...]


@dataclass
class RequestsInFlight:
    """What ``start`` hands to ``wait``: the first stage under way, or a fault."""

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
        dtypes = [codes.dtype for codes in self.codes]
        self.lanes_stage: RequestStage | None = None
        if route == "flat":
            self.last_stage = RequestStage(f"{name}.world", "world", topology.world_size, dtypes)
        else:
            self.last_stage = RequestStage(f"{name}.peers", "peers", topology.hosts, dtypes)
            if topology.ranks_per_host > 1:
                self.lanes_stage = RequestStage(f"{name}.lanes", "lanes", topology.ranks_per_host, dtypes)
                self.first = topology.lane_of(rank) * topology.hosts

    def start(self, ids: Sequence[FeatureIds], wire: Wire) -> RequestsInFlight:
        batch, streams, fault = self.check(ids, wire.device)
        stage, owners = self.last_stage, 1
        if self.lanes_stage is not None:  # a lane sees to the owners on all hosts that have its number
            stage, owners = self.lanes_stage, self.last_stage.members
        own = []
        if fault.rank < 0:
            own = [self._own(codes, streams, batch, stage.members, owners) for codes in self.codes]
        announced = stage.announce(wire, [one.counts for one in own] or self._nothing(stage), fault)
        fault = first_fault(announced.faults)
        pending = stage.start(wire, [one.codes for one in own], announced) if fault.rank < 0 else None
        return RequestsInFlight(own, fault, announced, pending)

    def finish(self, flight: RequestsInFlight, wire: Wire) -> Requests:
        fault, lanes, last = flight.fault, None, flight.announced
        pending = flight.pending
        spread: list[Tensor | None] = [None] * len(self.groups)
        if self.lanes_stage is not None:
            lanes, merged = flight.announced, []
            if pending is not None:
                merged = [_merged(came) for came in self.lanes_stage.finish(pending, lanes)]
                spread = [inverse for _, inverse in merged]
            counts = [
                codes.counts(own, self.last_stage.members, 1, self.first)
                for codes, (own, _) in zip(self.codes, merged, strict=False)
            ]
            last = self.last_stage.announce(wire, counts or self._nothing(self.last_stage), fault)
            fault = first_fault(last.faults)
            pending = self.last_stage.start(wire, [own for own, _ in merged], last) if fault.rank < 0 else None
        if pending is None:
            raise IdRangeError(f"step {wire.step}: {fault.message(self.slots)}")
        asked = self.last_stage.finish(pending, last)
        return Requests(
            tuple(
                GroupRequests(
                    codes.rows_of_stack(asked[group]),
                    RowCounts(last.received[group], last.sent[group]),
                    spread[group],
                    None if lanes is None else RowCounts(lanes.received[group], lanes.sent[group]),
                    own.codes.numel(),
                    own.reads,
                )
                for group, (codes, own) in enumerate(zip(self.codes, flight.own, strict=True))
            )
        )

    def _nothing(self, stage: RequestStage) -> list[list[int]]:
        return [[0] * stage.members for _ in self.groups]

    def _own(self, codes: RowCodes, streams: dict[int, Stream], batch: int, members: int, owners: int) -> _Own:
        """The distinct rows that this rank's batch needs of one group."""
        parts, found = [], []
        for read in codes.group.reads:
            ids, where = ids_of_read(read, streams[read.slot], batch)
            parts.append(codes.of(read, ids))
            found.append(where)
        distinct, inverse = torch.unique(torch.cat(parts), return_inverse=True)
        places = inverse.split([part.numel() for part in parts])
        means = [read.pooling == "mean" for read in codes.group.reads]
        reads = tuple(ReadIds(place, *where, mean) for place, where, mean in zip(places, found, means, strict=True))
        return _Own(distinct, codes.counts(distinct, members, owners), reads)


def ids_of_read(read: Read, stream: Stream, batch: int) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, int]]:
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


def _merged(came: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Codes of several ranks, sorted and each once; and for every one that came its place among them."""
    merged, inverse = torch.unique(torch.cat(list(came)), return_inverse=True)
    return merged, inverse


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

    def extra_repr(self) -> str:
        """Counts of slots and groups."""
        return f"slots={len(self.slots)}, groups={len(self.groups)}"
