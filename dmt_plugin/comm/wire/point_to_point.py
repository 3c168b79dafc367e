"""All-to-all as single messages, for gloo: its own keeps both directions of a connection waiting for each other.

gloo's all-to-all posts, for each member, the send before the receive. Where ranks are not in step, the word that a
receive is posted queues behind the data of its own side, and the connection carries one direction at a time. So:

1. post every receive first, then every send, beginning with the next member in the group, so that no member is
   everyone's first;
2. nothing is sent where a split is empty: both sides know it;
3. what this rank keeps is copied;
4. ``wait`` waits for all messages, within one time limit for all of them together.

Each exchange has a tag of its own: members start their exchanges in the same order, which is a rule of every
collective. The bytes move in gloo's own thread, from the start on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

_TAGS = 2**30
"""Tags are used again after that many exchanges."""

_SHORTEST = timedelta(milliseconds=1)


class Messages:
    """The messages of one exchange, under way; waited for as a ``dist.Work`` is."""

    def __init__(self, works: Sequence[dist.Work]) -> None:
        self._works = works

    def wait(self, timeout: timedelta) -> None:
        """Wait for all of them.

        Raises:
            RuntimeError: a member is gone, or the time is up.
        """
        deadline = time.monotonic() + timeout.total_seconds()
        for work in self._works:
            work.wait(max(timedelta(seconds=deadline - time.monotonic()), _SHORTEST))


class PointToPoint:
    """Exchanges between the members of one gloo group.

    Args:
        group: the process group.
        index: this rank's place in it.
    """

    def __init__(self, group: dist.ProcessGroup, index: int) -> None:
        self._group = group
        self._index = index
        self._started = 0

    def start(self, received: Tensor, send: Tensor, recv_splits: Sequence[int], send_splits: Sequence[int]) -> Messages:
        """Start one exchange; arguments as for ``dist.all_to_all_single``, all tensors of one dimension.

        Raises:
            RuntimeError: a member is gone.
        """
        tag = self._started % _TAGS
        self._started += 1
        members, own = len(send_splits), self._index
        sources, targets = received.split_with_sizes(list(recv_splits)), send.split_with_sizes(list(send_splits))
        others = [(own + step) % members for step in range(1, members)]
        # The group's own calls: those of torch.distributed look up the group and log, for every message.
        works = [self._group.recv([sources[other]], other, tag) for other in others if recv_splits[other]]
        works += [self._group.send([targets[other]], other, tag) for other in others if send_splits[other]]
        sources[own].copy_(targets[own])
        return Messages(works)


def carries(group: dist.ProcessGroup) -> bool:
    """Whether tensors of the CPU travel by gloo in this group."""
    return "cpu:gloo" in str(dist.get_backend_config(group))
