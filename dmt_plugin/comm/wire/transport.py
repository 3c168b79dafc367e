"""The wire: asynchronous all-to-all inside the groups of a rank, with clear failures and a count of bytes.

One exchange goes like this:

1. the caller hands over a flat send buffer with one split per member of the group, in group order;
2. the bytes of each split are counted by destination (same rank, same host, other host);
3. the exchange starts, by the library's collective or, on gloo, as single messages (``comm.wire.point_to_point``),
   and ``Pending.wait`` returns the flat receive buffer;
4. a dead peer or a timeout, at the start or at the wait, becomes an ``ExchangeError`` that says where and
   what.

A group of one rank exchanges nothing: its send buffer is the result.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from dmt_plugin.comm.wire.failure_notes import FailureNotes
from dmt_plugin.comm.wire.point_to_point import PointToPoint, carries
from dmt_plugin.core.errors import ExchangeError
from dmt_plugin.topology.group_names import Group as Group
from dmt_plugin.topology.group_names import crosses_machines, names_of
from dmt_plugin.topology.group_names import group_ranks as group_ranks
from dmt_plugin.topology.groups import RankGroups
from dmt_plugin.topology.lost_ranks import first_line, reporting
from dmt_plugin.topology.shape import Topology

logger = logging.getLogger(__name__)

BRIEF_BYTES = 256_000
"""Up to about so many bytes per rank the library's collective is as fast as single messages or faster."""

Phase = Literal["forward", "backward"]


@dataclass
class TrafficTotals:
    """Bytes one rank handed to its exchanges, by destination.

    Attributes:
        other_hosts: bytes to ranks of other hosts, and of other machines of this host.
        same_host: bytes to other ranks of this host that are on this machine.
        itself: bytes the rank kept; they touch no wire.
        messages: destinations other than itself that got at least one byte.
    """

    other_hosts: int = 0
    same_host: int = 0
    itself: int = 0
    messages: int = 0

    def add(self, other: TrafficTotals) -> None:
        """Add another count to this one."""
        self.other_hosts += other.other_hosts
        self.same_host += other.same_host
        self.itself += other.itself
        self.messages += other.messages


class Traffic:
    """Counts the bytes of every exchange of one rank, by exchange name and phase; several threads may count at once.

    Args:
        topology: hosts and lanes, to tell the destinations apart.
        rank: the sending rank.
    """

    def __init__(self, topology: Topology, rank: int) -> None:
        self._rank = rank
        self._machine_of = [topology.by_machine.host_of(r) for r in range(topology.world_size)]
        self._totals: dict[tuple[str, str], TrafficTotals] = {}
        self._lock = threading.Lock()

    def record(self, name: str, phase: str, bytes_by_dst: Sequence[int], dst_ranks: Sequence[int]) -> None:
        """Count one exchange: ``bytes_by_dst[i]`` bytes go to rank ``dst_ranks[i]``."""
        counted = TrafficTotals()
        machine_of = self._machine_of
        machine = machine_of[self._rank]
        for size, dst in zip(bytes_by_dst, dst_ranks, strict=True):
            if dst == self._rank:
                counted.itself += size
                continue
            if machine_of[dst] == machine:
                counted.same_host += size
            else:
                counted.other_hosts += size
            counted.messages += size > 0
        with self._lock:
            self._totals.setdefault((name, phase), TrafficTotals()).add(counted)

    def totals(self, prefix: str = "", phase: str | None = None) -> TrafficTotals:
        """Sum over the exchanges whose name starts with ``prefix``, in one phase or in both."""
        result = TrafficTotals()
        with self._lock:
            for (name, recorded_phase), totals in self._totals.items():
                if name.startswith(prefix) and phase in (None, recorded_phase):
                    result.add(totals)
        return result

    def as_dict(self) -> dict[str, dict[str, dict[str, int]]]:
        """Everything counted: ``{exchange: {phase: {"other_hosts": bytes, ...}}}``."""
        result: dict[str, dict[str, dict[str, int]]] = {}
        with self._lock:
            for (name, phase), totals in self._totals.items():
                result.setdefault(name, {})[phase] = asdict(totals)
        return result

    def reset(self) -> None:
        """Forget everything counted so far."""
        with self._lock:
            self._totals.clear()


class Pending(Protocol):
    """An exchange under way."""

    def wait(self) -> Tensor:
        """Finish and return the flat receive buffer. Raises ``ExchangeError``."""


class Wire(Protocol):
    """What the exchanges need of a transport; a simulation in one process can stand in."""

    topology: Topology
    rank: int
    device: torch.device
    step: int

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
    ) -> Pending:
        """Start an exchange; see ``Transport.all_to_all``."""


@dataclass
class Arrived:
    """A finished exchange."""

    received: Tensor

    def wait(self) -> Tensor:
        """Return the receive buffer."""
        return self.received


class Transport:
    """All-to-all over the process groups of this rank.

    Args:
        groups: process groups, created with the timeout.
        traffic: counter to use; a fresh one by default.
        messages: whether exchanges between machines go as single messages; by default where that is faster (CPU
            tensors on gloo). Inside a machine it never is.

    Attributes:
        step: training step, for messages; whoever drives the training sets it.
        failure_notes: what ranks leave for each other when they end; by default nothing.
    """

    def __init__(self, groups: RankGroups, traffic: Traffic | None = None, messages: bool | None = None) -> None:
        self.topology = groups.topology
        self.rank = groups.rank
        self.device = groups.device
        self.timeout_s = float(groups.timeout_s)
        self.traffic = traffic if traffic is not None else Traffic(groups.topology, groups.rank)
        self.step = 0
        self.failure_notes = FailureNotes(None, "", groups.rank, groups.topology.world_size)
        self._crossing = 0
        self._waiting: list[Callable[[], None]] = []
        self._before_wait: list[Callable[[], None]] = []
        topology = groups.topology
        names = [name for name in names_of(topology) if name != "across"]
        self._process_groups: dict[str, dist.ProcessGroup] = {name: getattr(groups, name) for name in names}
        self._ranks = {name: group_ranks(groups.topology, groups.rank, name) for name in self._process_groups}
        self._listed = {name: ", ".join(map(str, ranks)) for name, ranks in self._ranks.items()}
        if messages is None:
            messages = self.device.type == "cpu" and carries(groups.world)
        self._messages = {
            name: PointToPoint(group, self._ranks[name].index(self.rank))
            for name, group in self._process_groups.items()
            if messages and topology.by_machine.hosts > 1 and crosses_machines(topology, name)
        }

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
    ) -> Pending:
        """Start an exchange inside one group; every member has to call it, in the same order.

        Args:
            name: name of the exchange, for messages and the count.
            phase: ``"forward"`` or ``"backward"``.
            group: ``"peers"``, ``"lanes"``, ``"world"``, or where hosts have several machines ``"machine_peers"`` or
                ``"machine_lanes"``.
            send: ``(sum(send_splits),)`` contiguous elements, sorted by destination in group order.
            send_splits: elements for each member.
            recv_splits: elements from each member.
            brief: whether every member sends ``BRIEF_BYTES`` at most; the same on every member.

        Raises:
            ExchangeError: the backend could not start it.
        """
        ranks = self._ranks[group]
        assert send.dim() == 1 and send.is_contiguous() and send.numel() == sum(send_splits)
        assert len(send_splits) == len(recv_splits) == len(ranks)
        element = send.element_size()
        self.traffic.record(name, phase, [split * element for split in send_splits], ranks)
        if len(ranks) == 1:
            return Arrived(send)
        received = send.new_empty(sum(recv_splits))
        place = f"exchange '{name}' ({phase}, {group} group of ranks {self._listed[group]})"
        with reporting(self, place, "could not start"):
            messages = None if brief else self._messages.get(group)
            if messages is not None:
                work: Any = messages.start(received, send, recv_splits, send_splits)
            else:
                splits, members = (list(recv_splits), list(send_splits)), self._process_groups[group]
                work = dist.all_to_all_single(received, send, *splits, group=members, async_op=True)
        crosses = crosses_machines(self.topology, group)
        self._crossing += crosses
        return _StartedPending(self, place, work, received, send, crosses)

    def when_link_is_free(self, action: Callable[[], None]) -> None:
        """Call ``action`` as soon as no exchange between hosts is under way: now, or at the end of a wait.

        For what is needed only later than the rows on the way, which it would hold up.
        """
        if self._crossing:
            self._waiting.append(action)
        else:
            action()

    def before_next_wait(self, action: Callable[[], None]) -> None:
        """Call ``action`` when this rank is about to wait for an exchange: nothing else keeps it busy then."""
        self._before_wait.append(action)

    def _about_to_wait(self) -> None:
        actions, self._before_wait = self._before_wait, []
        for action in actions:
            action()

    def _arrived(self) -> None:
        self._crossing -= 1
        if not self._crossing:
            actions, self._waiting = self._waiting, []
            for action in actions:
                action()

    def failure(self, place: str, what: str, error: BaseException) -> ExchangeError:
        """Error of an exchange that failed on this rank; asks for what the others left, which may take a while."""
        topology, rank = self.topology, self.rank
        others = self.failure_notes.waited(self.step, place)
        return ExchangeError(
            f"rank {rank} (host {topology.host_of(rank)}, lane {topology.lane_of(rank)}), step {self.step}: "
            f"{place} {what}: {first_line(error)}. "
            f"{others}A rank of the group has died, failed, or was more than "
            f"dmt.comm.timeout_s = {self.timeout_s:g} s behind; "
            "look for the first error of the other ranks, or raise dmt.comm.timeout_s."
        )


class _StartedPending:
    """A started exchange; keeps the send buffer alive until it is done."""

    def __init__(
        self, transport: Transport, place: str, work: Any, received: Tensor, send: Tensor, crosses: bool
    ) -> None:
        self._transport = transport
        self._crosses = crosses
        self._place = place
        self._work: Any = work  # dist.Work, or Messages; both wait within a time limit
        self._received = received
        self._send: Tensor | None = send

    def wait(self) -> Tensor:
        if self._work is not None:
            self._transport._about_to_wait()
            with reporting(self._transport, self._place):
                if self._transport.device.type == "cpu":
                    self._work.wait(timedelta(seconds=self._transport.timeout_s))
                else:
                    # With a timeout an accelerator's wait would block the host instead of the
                    # stream; there the group's own timeout applies.
                    self._work.wait()
            self._work = None
            self._send = None
            if self._crosses:
                self._transport._arrived()
        return self._received
