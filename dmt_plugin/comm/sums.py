"""The sum of one buffer over all ranks, by way of the hosts: what crosses a host's link crosses it once.

A ring over all ``G = H*L`` ranks sends ``2*(G-1)/G`` times the buffer over every host's link. Here a buffer of ``n``
entries goes in three steps:

1. inside the host every lane gets its ``1/L`` of the buffer from each lane, and adds them up;
2. between hosts the peers of a lane sum that part: the lanes of a host together send ``2*(H-1)/H`` times the buffer;
3. inside the host the parts are put together again.

Where a host consists of several machines, a machine takes the place of the host; what is summed inside a host alone
takes the same three steps, between its machines in the place of the hosts.

The steps are apart, so that each can be started when its link has nothing more urgent to carry.
"""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from dmt_plugin.comm.wire.transport import Transport
from dmt_plugin.topology.lost_ranks import reporting


def bytes_sent(entries: int, element: int, hosts: int, lanes: int) -> tuple[int, int]:
    """Bytes that one rank sends to other hosts and to other lanes, for a buffer of so many entries.

    Args:
        entries: entries of the buffer.
        element: bytes of one.
        hosts: ``H``.
        lanes: ``L``.
    """
    part = -(-entries // lanes) * element
    return 2 * (hosts - 1) * part // hosts, 2 * (lanes - 1) * part


class HierarchicalSum:
    """Sums of a buffer of one size, one after the other; every rank takes the same steps in the same order.

    Args:
        transport: knows the rank and its limits, makes the errors, counts the bytes.
        name: of the sum, for both.
        entries: entries of the buffer, fp32.
        lanes: group of the ranks of this host (of this machine, where it has several), by lane.
        peers: group of this lane's ranks, by host (by machine); None: the sum stays inside the host.
    """

    def __init__(
        self, transport: Transport, name: str, entries: int, lanes: dist.ProcessGroup, peers: dist.ProcessGroup | None
    ) -> None:
        self._transport, self._name = transport, name
        self._place = f"the sum over ranks of the gradients ({name})"
        self._lanes_group, self._peers_group = lanes, peers
        self._near = dist.get_process_group_ranks(lanes)
        self._far = [transport.rank] if peers is None else dist.get_process_group_ranks(peers)
        self._hosts, self._lanes = len(self._far), len(self._near)
        self._part = -(-entries // self._lanes)
        self._buffer = torch.zeros(self._part * self._lanes, device=transport.device)
        self._received = torch.empty_like(self._buffer)
        self.entries = self._buffer[:entries]
        self._own = self._buffer[:0]
        self._work: dist.Work | None = None

    def start(self) -> None:
        """First step, for what is in ``entries``; waits for nothing.

        Raises:
            ExchangeError: a rank of the host is gone.
        """
        if self._lanes > 1 and self._hosts == 1:
            with reporting(self._transport, self._place, "could not start"):
                self._work = dist.all_reduce(self._buffer, group=self._lanes_group, async_op=True)
        elif self._lanes > 1:
            with reporting(self._transport, self._place, "could not start"):
                self._work = dist.all_to_all_single(
                    self._received, self._buffer, group=self._lanes_group, async_op=True
                )
        away, near = bytes_sent(self.entries.numel(), self._buffer.element_size(), self._hosts, self._lanes)
        rank = self._transport.rank
        others = [other for other in self._near if other != rank]
        self._count([near // (self._lanes - 1) for _ in others], others)
        if self._hosts > 1:
            self._count([away], [self._far[(self._far.index(rank) + 1) % self._hosts]])

    def cross(self) -> None:
        """Second step: starts the sum between hosts; waits for the first step.

        Raises:
            ExchangeError: a rank is gone, or the time is up.
        """
        if self._hosts == 1:
            return
        self._own = self._buffer
        if self._lanes > 1:
            self._wait()
            self._own = self._received.view(self._lanes, self._part).sum(0)
        with reporting(self._transport, self._place, "could not start"):
            self._work = dist.all_reduce(self._own, group=self._peers_group, async_op=True)

    def finish(self) -> Tensor:
        """Third step; waits for the second. Gives the sums, ``(entries,)``, valid until the next ``start``.

        Raises:
            ExchangeError: a rank is gone, or the time is up.
        """
        if self._work is not None:
            self._wait()
        if self._hosts == 1:
            return self.entries
        if self._lanes == 1:
            return self._own[: self.entries.numel()]
        with reporting(self._transport, self._place, "could not start"):
            self._work = dist.all_gather_single(self._received, self._own, group=self._lanes_group, async_op=True)
        self._wait()
        return self._received[: self.entries.numel()]

    def _wait(self) -> None:
        work, self._work = self._work, None
        assert work is not None
        with reporting(self._transport, self._place):
            if self._transport.device.type == "cpu":
                work.wait(timedelta(seconds=self._transport.timeout_s))
            else:
                work.wait()  # with a limit it would block the host; the group has its own

    def _count(self, sizes: list[int], ranks: list[int]) -> None:
        self._transport.traffic.record(self._name, "backward", sizes, ranks)
