"""A wire inside one process: every rank is a thread, and an exchange is a handing over of slices.

1. each rank counts its exchanges per group, so that the n-th one of every member meets;
2. the last member to arrive opens the gate, and every member cuts its slices out of the others' send buffers;
3. one rank computes at a time, until it waits: ranks that all want the interpreter would take it from each other at
   every operation;
4. members that disagree about the exchange's name or sizes, or fail, make all of them fail.

Slow and exact: it is there to run the real exchanges over topologies that no test machine can start as processes.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from dmt_plugin.comm.wire.transport import Arrived, Traffic, group_ranks
from dmt_plugin.core.errors import ExchangeError
from dmt_plugin.topology.shape import Topology

Result = TypeVar("Result")


@dataclass
class _Meeting:
    """The n-th exchange of one group."""

    sent: dict[int, tuple[str, Tensor, list[int]]] = field(default_factory=dict)
    gate: threading.Event = field(default_factory=threading.Event)


class SimulatedWorld:
    """All ranks of a topology; ``regroup`` and ``reorder`` are for mutations.

    Args:
        topology: hosts and lanes.
        timeout_s: a rank waits no longer for the others.
        regroup: maps the name of the group asked for to the one used.
        reorder: permutes the blocks a member receives.
    """

    def __init__(
        self,
        topology: Topology,
        timeout_s: float = 60,
        regroup: Callable[[str], str] = lambda group: group,
        reorder: Callable[[list[Tensor]], list[Tensor]] = lambda blocks: blocks,
    ) -> None:
        self.topology = topology
        self.timeout_s = timeout_s
        self.regroup = regroup
        self.reorder = reorder
        self.lock = threading.Lock()
        self.turn = threading.Lock()
        self.meetings: dict[tuple[tuple[int, ...], int], _Meeting] = defaultdict(_Meeting)
        self.failed = threading.Event()

    def run(self, program: Callable[[SimulatedWire], Result]) -> list[Result]:
        """Run ``program(wire)`` on every rank; results in rank order, or the first failure."""
        results: list[Any] = [None] * self.topology.world_size
        errors: list[tuple[int, BaseException]] = []

        def main(rank: int) -> None:
            with self.turn:
                try:
                    results[rank] = program(SimulatedWire(self, rank))
                except BaseException as error:
                    errors.append((rank, error))
                    self.failed.set()
                    with self.lock:
                        for meeting in self.meetings.values():
                            meeting.gate.set()

        threads = [threading.Thread(target=main, args=(rank,)) for rank in range(self.topology.world_size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0][1]
        return results


class SimulatedWire:
    """The transport of one simulated rank."""

    def __init__(self, world: SimulatedWorld, rank: int) -> None:
        self.world = world
        self.topology = world.topology
        self.rank = rank
        self.device = torch.device("cpu")
        self.step = 0
        self.traffic = Traffic(world.topology, rank)
        self.collectives = 0
        self._turns: dict[tuple[int, ...], int] = defaultdict(int)

    def all_to_all(
        self,
        name: str,
        phase: str,
        group: str,
        send: Tensor,
        send_splits: Sequence[int],
        recv_splits: Sequence[int],
        *,
        brief: bool = False,
    ) -> Any:
        world = self.world
        ranks = group_ranks(self.topology, self.rank, world.regroup(group))
        assert send.dim() == 1 and send.is_contiguous() and send.numel() == sum(send_splits)
        element = send.element_size()
        self.traffic.record(name, phase, [split * element for split in send_splits], ranks)
        if len(ranks) == 1:
            return Arrived(send)
        self.collectives += 1
        turn = self._turns[ranks]
        self._turns[ranks] += 1
        with world.lock:
            meeting = world.meetings[ranks, turn]
            meeting.sent[self.rank] = (f"{name} {phase}", send.detach(), list(send_splits))
            if len(meeting.sent) == len(ranks) or world.failed.is_set():
                meeting.gate.set()
        return _SimulatedPending(self, meeting, ranks, f"{name} {phase}", list(recv_splits))


@dataclass
class _SimulatedPending:
    wire: SimulatedWire
    meeting: _Meeting
    ranks: tuple[int, ...]
    label: str
    recv_splits: list[int]

    def wait(self) -> Tensor:
        world, index = self.wire.world, self.ranks.index(self.wire.rank)
        arrived = self.meeting.gate.is_set()
        if not arrived:
            world.turn.release()
            try:
                arrived = self.meeting.gate.wait(world.timeout_s)
            finally:
                world.turn.acquire()
        if not arrived or len(self.meeting.sent) < len(self.ranks):
            raise ExchangeError(f"rank {self.wire.rank}: {self.label}: others missing")
        blocks = []
        for source, expected in zip(self.ranks, self.recv_splits, strict=True):
            label, send, splits = self.meeting.sent[source]
            if label != self.label or splits[index] != expected:
                raise ExchangeError(
                    f"rank {self.wire.rank} in {self.label} expects {expected} elements of rank {source}, "
                    f"which is in {label} and sends {splits[index]}"
                )
            blocks.append(send.split(splits)[index])
        return torch.cat(world.reorder(blocks))
