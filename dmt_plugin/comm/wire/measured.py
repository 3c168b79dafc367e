"""A transport that notes when exchanges start, are waited for, and end. Used only where a run is observed.

1. A ``Clock`` gives marks and the time between two of them: the processor's clock on a CPU, events on the stream of an
   accelerator. Nothing is synchronised: marks of an accelerator are read when they have passed by themselves.
2. ``MeasuredTransport`` makes three marks for each exchange: its start, the beginning of the wait for it, and the
   wait's end. Between the last two this rank had nothing else to do: what is *waited*. From the first to the last the
   exchange was *in flight*; work that ran meanwhile hid it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dmt_plugin.comm.wire.transport import Group, Pending, Phase, Traffic, Transport
from dmt_plugin.topology.groups import RankGroups


class Clock(Protocol):
    """Marks in time."""

    def mark(self) -> Any:
        """Now."""

    def passed(self, mark: Any) -> bool:
        """Whether the time of a mark is known."""

    def seconds(self, first: Any, last: Any) -> float:
        """From one passed mark to another."""


class HostClock:
    """The processor's clock: what a CPU computes is done when a call returns."""

    def mark(self) -> float:
        """Seconds since some moment."""
        return time.perf_counter()

    def passed(self, mark: float) -> bool:
        """Always."""
        del mark
        return True

    def seconds(self, first: float, last: float) -> float:
        """Their difference."""
        return last - first


class StreamClock:
    """Events on the current stream of an accelerator.

    Args:
        device: the accelerator.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Any:
        """An event behind the work that was queued so far."""
        event = torch.Event(device=self._device, enable_timing=True)
        event.record()
        return event

    def passed(self, mark: Any) -> bool:
        """Whether the device has got there; asks, and does not wait."""
        return bool(mark.query())

    def seconds(self, first: Any, last: Any) -> float:
        """Between the two on the device."""
        return float(first.elapsed_time(last)) / 1e3


def clock_of(device: torch.device) -> Clock:
    """The clock of a device."""
    return HostClock() if device.type == "cpu" else StreamClock(device)


@dataclass(frozen=True)
class Trip:
    """One exchange that has ended.

    Attributes:
        name: Of the exchange.
        phase: Its direction.
        sent: Bytes this rank sent to others.
        started: Mark of its start.
        wanted: Mark of the beginning of the wait.
        ended: Mark of the wait's end.
    """

    name: str
    phase: str
    sent: int
    started: Any
    wanted: Any
    ended: Any


class MeasuredTransport(Transport):
    """A ``Transport`` that notes every exchange when it has ended.

    Args:
        groups: as for ``Transport``.
        traffic: as for ``Transport``.
        clock: where marks come from.
        note: called with each ``Trip``, in the thread that waited.
        suffix: added to the names, for exchanges that nothing waits for at once.
    """

    def __init__(
        self, groups: RankGroups, traffic: Traffic, clock: Clock, note: Callable[[Trip], None], suffix: str = ""
    ) -> None:
        super().__init__(groups, traffic)
        self._clock, self._note, self._suffix = clock, note, suffix

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
        """As ``Transport.all_to_all``."""
        own = self._ranks[group].index(self.rank)
        sent = (send.numel() - send_splits[own]) * send.element_size()
        started = self._clock.mark()
        pending = super().all_to_all(name, phase, group, send, send_splits, recv_splits, brief=brief)
        return _Watched(self, pending, (name + self._suffix, phase, sent, started))


class _Watched:
    """A started exchange whose wait is noted."""

    def __init__(self, transport: MeasuredTransport, pending: Pending, what: tuple[str, str, int, Any]) -> None:
        self._transport, self._pending = transport, pending
        self._what: tuple[str, str, int, Any] | None = what

    def wait(self) -> Tensor:
        what, self._what = self._what, None
        if what is None:
            return self._pending.wait()
        clock = self._transport._clock
        wanted = clock.mark()
        received = self._pending.wait()
        self._transport._note(Trip(*what, wanted, clock.mark()))
        return received
