"""Input distribution: every rank's ids travel to the ranks that own the tables.

Hierarchical route, on rank (host h, lane l):

1. check the ids at their source, then narrow them to the wire's integer type;
2. peers stage: the ids of a slot go to this lane's peer on the slot's host (headers, then ids; see
   :mod:`dmt_plugin.comm.input_dist.id_stage`); what arrives is sorted by host;
3. lanes stage: that goes on to the lanes of the host that own a table of the slot; what arrives is sorted by
   (source lane, host), the order of ``BatchLayout``;
4. where the batch is cut into micro-blocks (:mod:`dmt_plugin.comm.micro_blocks`), that is sorted by (block, source
   lane, host).

The flat route has one stage over the world, from every rank straight to the owners, sorted by rank.

``start`` ends with the ids of the first stage under way; ``wait`` does the rest. Bad input (an id outside its table,
or a call that failed before there were ids) travels as a fault word in the headers: after the last header every rank
knows it, and all of them raise the same error. Nobody waits for a rank that has stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dmt_plugin.comm.batch_layout import BatchLayout
from dmt_plugin.comm.id_exchange import IdCore, IdExchange
from dmt_plugin.comm.input_dist.faults import Fault, first_fault
from dmt_plugin.comm.input_dist.id_source import SourceCheck
from dmt_plugin.comm.input_dist.id_stage import Header, IdStage, Stream
from dmt_plugin.comm.input_dist.ids import FeatureIds, IdSlot
from dmt_plugin.comm.micro_blocks import RowOrder, layouts_of
from dmt_plugin.comm.wire.transport import Pending, Wire
from dmt_plugin.core.errors import IdRangeError
from dmt_plugin.topology.shape import Topology

Route = Literal["hierarchical", "flat"]


@dataclass
class RoutedIds:
    """Ids of the slots this rank owns, for all rows it holds (sorted as ``layout`` says).

    Attributes:
        values: per owned slot, ``(n,)`` ids of all rows, row by row; int32 or int64.
        lengths: per owned slot, ``(rows,)`` ids per row, or None with fixed hotness.
        weights: per owned slot, ``(n,)`` float32, or None.
        layout: batch sizes behind the rows.
        layouts: those of each micro-block; the rows are sorted by block.
    """

    values: tuple[Tensor, ...]
    lengths: tuple[Tensor | None, ...]
    weights: tuple[Tensor | None, ...]
    layout: BatchLayout
    layouts: tuple[BatchLayout, ...] = ()


@dataclass
class IdsInFlight:
    """What ``start`` hands to ``wait``: the first stage under way, or skipped."""

    own: int
    streams: dict[int, Stream]
    fault: Fault
    headers: list[Header] | None
    pending: tuple[Pending, Pending | None] | None


class _Core(IdCore):
    """What the start and wait nodes share."""

    def __init__(self, slots: Sequence[IdSlot], topology: Topology, rank: int, route: Route, name: str) -> None:
        _check_slots(slots, topology)
        super().__init__(slots)
        self.blocks = 1
        self.check = SourceCheck(self.slots, rank)
        host, lane = topology.host_of(rank), topology.lane_of(rank)
        hosts, lanes = range(topology.hosts), range(topology.ranks_per_host)
        by_host = [[i for i, slot in enumerate(slots) if slot.host == h] for h in hosts]
        owned = [[[i for i in by_host[h] if j in slots[i].lanes] for j in lanes] for h in hosts]
        self.owned = tuple(owned[host][lane])
        self.lanes_stage: IdStage | None = None
        if route == "hierarchical":
            self.first_stage = IdStage(f"{name}.peers", "peers", self.slots, by_host, by_host[host], 1)
            self.lanes_stage = IdStage(f"{name}.lanes", "lanes", self.slots, owned[host], self.owned, topology.hosts)
        elif route == "flat":
            by_rank = [owned[topology.host_of(r)][topology.lane_of(r)] for r in range(topology.world_size)]
            self.first_stage = IdStage(f"{name}.world", "world", self.slots, by_rank, self.owned, 1)
        else:
            raise ValueError(f"unknown route {route!r}; expected 'hierarchical' or 'flat' (key dmt.comm.route)")

    def start(self, ids: Sequence[FeatureIds] | None, wire: Wire) -> IdsInFlight:
        stage = self.first_stage
        own, streams, fault = self.check(ids, wire.device)
        if stage.members == 1:
            return IdsInFlight(own, streams, fault, None, None)
        headers = stage.read_headers(stage.start_header(wire, streams, [own], fault))
        fault = first_fault([header.fault for header in headers])
        pending = None if fault.rank >= 0 else stage.start_ids(wire, streams, own, headers)
        return IdsInFlight(own, {}, fault, headers, pending)

    def finish(self, flight: IdsInFlight, wire: Wire) -> RoutedIds:
        stage = self.first_stage
        streams: dict[int, Stream] = flight.streams
        sizes: tuple[int, ...] = (flight.own,)
        if flight.headers is not None:
            sizes = tuple(header.blocks[0] for header in flight.headers)
            if flight.pending is not None:
                streams = stage.finish_ids(flight.pending, flight.headers)
        fault = flight.fault
        blocks: tuple[tuple[int, ...], ...] = (sizes,)
        if self.lanes_stage is not None and self.lanes_stage.members > 1:
            stage = self.lanes_stage
            headers = stage.read_headers(stage.start_header(wire, streams, sizes, fault))
            fault = first_fault([header.fault for header in headers])
            blocks = tuple(header.blocks for header in headers)
            if fault.rank < 0:
                streams = stage.finish_ids(stage.start_ids(wire, streams, sum(sizes), headers), headers)
        if fault.rank >= 0:
            raise IdRangeError(f"step {wire.step}: {fault.message(self.slots)}")
        owned = [streams[i] for i in self.owned]
        layout = BatchLayout(flight.own, blocks)
        if self.blocks > 1:
            order = RowOrder(layout, self.blocks)
            owned = [_sorted(stream, order) for stream in owned]
        return RoutedIds(
            tuple(stream.values.reshape(-1) for stream in owned),
            tuple(stream.lengths for stream in owned),
            tuple(None if stream.weights is None else stream.weights.reshape(-1) for stream in owned),
            layout,
            layouts_of(layout, self.blocks),
        )


def _sorted(stream: Stream, order: RowOrder) -> Stream:
    if stream.lengths is None:
        return Stream(order.sort(stream.values), None, None if stream.weights is None else order.sort(stream.weights))
    lengths = stream.lengths
    weights = None if stream.weights is None else order.sort_bags(stream.weights, lengths)
    return Stream(order.sort_bags(stream.values, lengths), order.sort(lengths), weights)


def _check_slots(slots: Sequence[IdSlot], topology: Topology) -> None:
    if not slots:
        raise ValueError("index distribution needs at least one slot; the model has no lookups")
    for slot in slots:
        if not 0 <= slot.host < topology.hosts:
            raise ValueError(f"slot '{slot.name}': host {slot.host} does not exist in topology {topology}")
        if not slot.lanes or not all(0 <= lane < topology.ranks_per_host for lane in slot.lanes):
            raise ValueError(f"slot '{slot.name}': lanes {slot.lanes} expected to be lanes of topology {topology}")
        if slot.by_id:
            raise ValueError(
                f"slot '{slot.name}': ids by themselves are asked for as rows (RowRequests), not by sample"
            )
        if slot.rows < 1 or (slot.hotness is not None and slot.hotness < 1):
            raise ValueError(
                f"slot '{slot.name}': rows and hotness must be at least 1; found {slot.rows} and {slot.hotness}"
            )


class InputDist(IdExchange):
    """Pair of graph nodes ``start(*ids) -> pending`` and ``wait(pending) -> RoutedIds``.

    ``start`` takes one ``FeatureIds`` per slot, in slot order. ``wait`` raises ``IdRangeError`` on every
    rank when any rank's batch was bad, and ``ExchangeError`` when the wire failed.

    Args:
        slots: every id stream of the model, the same on every rank.
        topology: hosts and lanes.
        rank: this rank.
        route: ``"hierarchical"`` (peers, then lanes) or ``"flat"`` (one world stage).
        name: prefix of the exchange names in messages and in the traffic count.

    Attributes:
        owned: indices of the slots this rank owns, in the order of ``RoutedIds``' tuples.
    """

    def __init__(
        self, slots: Sequence[IdSlot], topology: Topology, rank: int, route: Route = "hierarchical", name: str = "index"
    ) -> None:
        super().__init__(_Core(slots, topology, rank, route, name))
        self.owned = self._core.owned

    @property
    def blocks(self) -> int:
        """How many micro-blocks a batch is cut into."""
        blocks: int = self._core.blocks
        return blocks

    @property
    def stages(self) -> tuple[IdStage, ...]:
        """What it sends, one stage after the other; one of a group of one rank sends nothing."""
        core: _Core = self._core
        return tuple(stage for stage in (core.first_stage, core.lanes_stage) if stage is not None)

    def sort_by_blocks(self, blocks: int) -> None:
        """From now on give the ids of a batch in the order of its micro-blocks.

        Args:
            blocks: how many there are, at least 1.
        """
        self._core.blocks = blocks

    def extra_repr(self) -> str:
        """Counts of slots."""
        return f"slots={len(self.slots)}, owned={len(self.owned)}"
