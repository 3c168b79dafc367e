"""The exchanges of one rank's graph, run without data and without other ranks: what it sends to each, and expects.

1. The graph's own exchange modules run, in the order of its nodes, on tensors of the meta device: they have the sizes
   of a batch, and no contents. Ids that are fixed in number have that number; bags that vary have one id.
2. Their wire (:class:`SilentWire`) sends nothing. It notes of every exchange how many bytes go to which rank, and how
   many this rank would wait for from which.
3. Then backward, in the reverse order. Gradients are summed outside the graph; what a rank sends for that follows from
   the entries of its graph that are trained.

Of rows that travel once the numbers of rows are given: that is what a batch decides. They are whole numbers here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmt_plugin.comm.batch_layout import BatchLayout, RowCounts
from dmt_plugin.comm.distinct.request_stage import RequestStage
from dmt_plugin.comm.distinct.requests import RowRequests
from dmt_plugin.comm.input_dist.faults import NO_FAULT
from dmt_plugin.comm.input_dist.id_stage import Header, Stream
from dmt_plugin.comm.input_dist.input_dist import InputDist
from dmt_plugin.comm.micro_blocks import block_sizes, layouts_of
from dmt_plugin.comm.output_dist.output_dist import OutputDist
from dmt_plugin.comm.sums import bytes_sent
from dmt_plugin.comm.wire.transport import Arrived, Group, Phase, group_ranks
from dmt_plugin.fxtools.names import BLOCK_META, DISTINCT, EXCHANGE_META, is_start, is_wait
from dmt_plugin.model.exchange_costs import trained_entries
from dmt_plugin.model.placed import PlacedGraph
from dmt_plugin.planner.distinct_cost import ByOwner, Needs, most_needs
from dmt_plugin.planner.gradient_cost import GradientSums, gradient_costs
from dmt_plugin.topology.shape import Topology

META = torch.device("meta")
SUMS = "sums of gradients: "
"""How the names of what the graph does not exchange begin."""


class Key(NamedTuple):
    """Which exchange, in which direction; ``phase`` is also ``"step"`` for what follows the optimizer's step."""

    name: str
    phase: str


@dataclass
class Bytes:
    """What one rank sends in all runs of one exchange in one direction, and what it waits for, by rank.

    Attributes:
        group: ``"peers"``, ``"lanes"`` or ``"world"``.
        ring: whether it goes around the group: to the next rank only.
        sent: bytes by rank.
        expected: bytes by rank.
    """

    group: str
    ring: bool = False
    sent: dict[int, int] = field(default_factory=dict)
    expected: dict[int, int] = field(default_factory=dict)

    def add(self, sent: Mapping[int, int], expected: Mapping[int, int]) -> None:
        """One more run."""
        for total, own in ((self.sent, sent), (self.expected, expected)):
            for rank, size in own.items():
                total[rank] = total.get(rank, 0) + size


@dataclass
class Rehearsal:
    """What one rank does in a step.

    Attributes:
        rank: the rank.
        order: starts and waits in the order of its graph, by exchange and micro-block.
        exchanges: what it sends, and expects.
    """

    rank: int
    order: tuple[str, ...] = ()
    exchanges: dict[Key, Bytes] = field(default_factory=dict)

    def note(
        self, key: Key, group: str, sent: Mapping[int, int], expected: Mapping[int, int], ring: bool = False
    ) -> None:
        """One run of an exchange; without what stays on this rank."""
        own = self.exchanges.setdefault(key, Bytes(group, ring))
        own.add(*({rank: size for rank, size in both.items() if rank != self.rank} for both in (sent, expected)))


class SilentWire:
    """A wire that sends nothing, and notes what would go where.

    Args:
        topology: hosts and lanes.
        noted: of the rank; is filled.
        device: of what arrives: sizes, and on the CPU zeros.
    """

    def __init__(self, topology: Topology, noted: Rehearsal, device: torch.device = META) -> None:
        self.topology, self.rank, self.noted, self.device = topology, noted.rank, noted, device
        self.step = 0

    def all_to_all(
        self,
        name: str,
        phase: Phase,
        group: Group,
        send: Tensor,
        send_splits: Sequence[int],
        recv_splits: Sequence[int],
        *,
        brief: bool = False,
    ) -> Arrived:
        """See :meth:`dmt_plugin.comm.wire.transport.Transport.all_to_all`."""
        ranks = group_ranks(self.topology, self.rank, group)
        if len(ranks) == 1:
            return Arrived(send)
        size = send.element_size()
        sent, expected = (
            {rank: size * count for rank, count in zip(ranks, splits, strict=True)}
            for splits in (send_splits, recv_splits)
        )
        self.noted.note(Key(name, phase), group, sent, expected)
        return Arrived(torch.zeros(sum(recv_splits), dtype=send.dtype, device=self.device))


def whole_needs(placed: PlacedGraph, samples: int, needs: Sequence[Needs] | None) -> list[Needs]:
    """Distinct rows in whole numbers.

    Args:
        placed: any rank's graph.
        samples: per rank.
        needs: by group what was counted; None for the most that can be.
    """
    placement = placed.placement
    found = needs or most_needs(placement.groups, placement.distinct_slots, placed.topology, samples)

    def whole(rows: Mapping[tuple[int, int], float]) -> Mapping[tuple[int, int], float]:
        if isinstance(rows, ByOwner):
            return rows.rounded()
        return {key: round(count) for key, count in rows.items()}

    return [Needs(whole(need.rank), whole(need.host)) for need in found]


def rehearse(placed: PlacedGraph, samples: int, needs: Sequence[Needs], sums: GradientSums) -> Rehearsal:
    """What one rank sends and expects in a step.

    Args:
        placed: the rank's graph; its exchanges are bound to a silent wire.
        samples: per rank; every rank has as many.
        needs: of :func:`whole_needs`.
        sums: who sums gradients.
    """
    found = Rehearsal(placed.rank)
    run = _Run(placed, samples, needs, found)
    run.forward()
    run.backward()
    _sums(placed, sums, found)
    return found


class _Run:
    def __init__(self, placed: PlacedGraph, samples: int, needs: Sequence[Needs], noted: Rehearsal) -> None:
        self.placed, self.samples, self.needs, self.noted = placed, samples, needs, noted
        self.topology, self.rank = placed.topology, placed.rank
        self.wire = SilentWire(self.topology, noted)
        self.pending: dict[tuple[str, int], Any] = {}
        self.results: list[tuple[Tensor, ...]] = []
        hosts, lanes = self.topology.hosts, self.topology.ranks_per_host
        shape = ((samples,) * hosts * lanes,) if placed.placement.route == "flat" else ((samples,) * hosts,) * lanes
        self.layout = BatchLayout(samples, shape)
        exchanges = placed.placement.exchanges.values()
        self.blocks = max([x.blocks for x in exchanges if isinstance(x, InputDist | RowRequests)], default=1)

    def forward(self) -> None:
        order = []
        for node in self.placed.graph_module.graph.nodes:
            if not (is_start(node) or is_wait(node)):
                continue
            name, block = node.meta[EXCHANGE_META], node.meta.get(BLOCK_META, 0)
            begins = is_start(node)
            order.append(f"{'start' if begins else 'wait'} {name}" + (f" {block + 1}" if self.blocks > 1 else ""))
            exchange = self.placed.placement.exchanges[name]
            if isinstance(exchange, OutputDist):
                if begins:
                    self.pending[name, block] = self._start(exchange, block)
                else:
                    self.results.append(exchange.wait(self.pending.pop((name, block))))
            elif begins and isinstance(exchange, InputDist):
                self._ids(exchange)
            elif begins and isinstance(exchange, RowRequests):
                self._requests(exchange)
        self.noted.order = tuple(order)

    def backward(self) -> None:
        """In the reverse order of the waits; an exchange whose rows need no gradient has none."""
        for blocks in reversed(self.results):
            trained = [block for block in blocks if block.requires_grad]
            if trained:
                torch.autograd.backward(trained, [torch.empty_like(block) for block in trained])

    def _start(self, exchange: OutputDist, block: int) -> Any:
        exchange.bind(self.wire)
        of_block: RowCounts | BatchLayout
        if exchange.name.startswith(DISTINCT):
            of_block = self._row_counts(exchange, block)
            rows = sum(of_block.sent)
        else:
            of_block = self._of_block(block)
            lane = self.topology.lane_of(self.rank)
            rows = of_block.rows_of_lane(lane) if exchange.group == "peers" else of_block.rows
        sent = torch.empty(rows, exchange.send_width, device=META, requires_grad=True)
        return exchange.start(sent, of_block)

    def _of_block(self, block: int) -> BatchLayout:
        return layouts_of(self.layout, self.blocks)[block] if self.blocks > 1 else self.layout

    def _row_counts(self, exchange: OutputDist, block: int) -> RowCounts:
        """Distinct rows go where they were asked for, and come from whom this rank asked."""
        prefix, _, end = exchange.name.partition(".")
        need = self.needs[[group.name for group in self.placed.placement.groups].index(prefix)]
        ranks, me = group_ranks(self.topology, self.rank, end), self.rank
        if end == "peers":
            host = self.topology.host_of
            sent = [need.host[host(other), me] for other in ranks]
            received = [need.host[host(me), other] for other in ranks]
        elif end == "lanes":
            sent = [self._of_lane(need, other, me) for other in ranks]
            received = [self._of_lane(need, me, other) for other in ranks]
        else:
            sent = [need.rank[other, me] for other in ranks]
            received = [need.rank[me, other] for other in ranks]
        return RowCounts(*(tuple(self._share(n, block) for n in counts) for counts in (sent, received)))

    def _of_lane(self, need: Needs, asker: int, lane: int) -> float:
        """Rows of all owners with the lane of a rank that another rank needs."""
        return sum(need.rank[asker, owner] for owner in self.topology.peers_of(lane))

    def _share(self, count: float, block: int) -> int:
        return block_sizes(int(count), self.blocks)[block]

    def _ids(self, exchange: InputDist) -> None:
        rows, blocks = self.samples, [self.samples]
        for stage in exchange.stages:
            if stage.members == 1:
                continue
            streams = {i: _stream(slot.hotness, slot.weighted, rows) for i, slot in enumerate(exchange.slots)}
            stage.start_header(self.wire, streams, blocks, NO_FAULT)
            counts = tuple(streams[i].values.numel() for i in stage.receive.jagged)
            stage.start_ids(self.wire, streams, rows, [Header(NO_FAULT, tuple(blocks), counts)] * stage.members)
            rows, blocks = rows * stage.members, blocks * stage.members

    def _requests(self, exchange: RowRequests) -> None:
        for stage in exchange.stages:
            ranks = group_ranks(self.topology, self.rank, stage.group)
            sent, received = [], []
            for need in self.needs:
                asked = [self._codes(stage, need, self.rank, other) for other in ranks]
                came = [self._codes(stage, need, other, self.rank) for other in ranks]
                for block in range(self.blocks):
                    sent.append(tuple(self._share(n, block) for n in asked))
                    received.append(tuple(self._share(n, block) for n in came))
            # What the others say cannot be read off a wire on which nothing comes.
            silent = SilentWire(self.topology, self.noted, torch.device("cpu"))
            announced = stage.announce(silent, sent, NO_FAULT)
            announced = type(announced)(announced.faults, announced.sent, tuple(received))
            codes = [torch.empty(sum(own), dtype=torch.int32, device=META) for own in sent]
            stage.start(self.wire, codes, exchange.dtypes, announced)

    def _codes(self, stage: RequestStage, need: Needs, asker: int, other: int) -> float:
        if stage.group == "lanes":
            return self._of_lane(need, asker, other)
        if stage.group == "peers":
            return need.host[self.topology.host_of(asker), other]
        return need.rank[asker, other]


def _stream(hotness: int | None, weighted: bool, rows: int) -> Stream:
    values = torch.empty((rows, hotness) if hotness is not None else (rows,), dtype=torch.int64, device=META)
    lengths = torch.empty(rows, dtype=torch.int64, device=META) if hotness is None else None
    return Stream(values, lengths, torch.empty(values.shape, device=META) if weighted else None)


def _sums(placed: PlacedGraph, sums: GradientSums, noted: Rehearsal) -> None:
    """What summing gradients sends: to the lanes and around the peers, or around a ring of all ranks."""
    topology, rank = placed.topology, placed.rank
    dense, towers = trained_entries(placed)
    if sums.by == "hosts":
        for name, entries, hosts in (("dense", dense, topology.hosts), ("towers", towers, 1)):
            away, near = bytes_sent(entries, 4, hosts, topology.ranks_per_host)
            lanes = [other for other in topology.lanes_of(rank) if other != rank]
            each = dict.fromkeys(lanes, near // max(1, len(lanes)))
            if entries and lanes:
                noted.note(Key(f"{SUMS}{name}, inside hosts", "backward"), "lanes", each, each)
            if entries and hosts > 1:
                _around(noted, Key(f"{SUMS}{name}, between hosts", "backward"), "peers", topology.peers_of(rank), away)
        return
    for cost in gradient_costs(sums, dense, towers, topology):
        around = group_ranks(topology, rank, cost.group)
        _around(noted, Key(SUMS + cost.name, cost.phase), cost.group, around, cost.other_hosts + cost.same_host)


def _around(noted: Rehearsal, key: Key, group: str, ranks: Sequence[int], size: int) -> None:
    """To the next of a ring, and as much from the one before."""
    if len(ranks) > 1:
        place = list(ranks).index(noted.rank)
        noted.note(key, group, {ranks[(place + 1) % len(ranks)]: size}, {ranks[place - 1]: size}, ring=True)
