"""A group of all ranks for one thread beside the training, which never meets what the training sends.

It is of gloo, on the CPU, whatever the training uses: a thread that waits there holds up no accelerator. Every wait
ends after the limit of the groups that it was made from. It also outlives the default group: a script may destroy that
at its end while the thread still has something to finish.
"""

from __future__ import annotations

import pickle
from contextlib import suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dmt_plugin.topology.groups import RankGroups
from dmt_plugin.topology.lost_ranks import reporting

T = TypeVar("T")


class SideGroup:
    """All ranks once more; every rank makes it, in the same order among its groups.

    Args:
        groups: this rank's.

    Raises:
        ExchangeError: a rank is gone, or the time is up.
    """

    def __init__(self, groups: RankGroups) -> None:
        self._groups = groups
        limit = timedelta(seconds=groups.timeout_s)
        with reporting(groups, "making a group for what is written behind the steps"):
            ranks = list(range(groups.topology.world_size))
            self._group = dist.new_group(ranks, timeout=limit, backend="gloo", group_desc="dmt_side")

    def gather(self, value: T, doing: str) -> list[T]:
        """The (picklable) values of all ranks, in rank order, on every rank.

        Args:
            value: this rank's.
            doing: what for, for the message.

        Raises:
            ExchangeError: a rank is gone, or the time is up.
        """
        packed = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        with reporting(self._groups, doing):
            sizes = [int(size) for size in self._exchange(torch.tensor([packed.numel()]))]
            padded = torch.zeros(max(sizes), dtype=torch.uint8)
            padded[: packed.numel()] = packed
            found = self._exchange(padded)
        return [pickle.loads(one[:size].numpy().tobytes()) for one, size in zip(found, sizes, strict=True)]

    def _exchange(self, own: Tensor) -> list[Tensor]:
        """The tensors of all ranks; by the group itself, as torch's functions may ask whether it is registered."""
        found = [torch.empty_like(own) for _ in range(self._groups.topology.world_size)]
        self._group.allgather([found], [own]).wait()
        return found

    def release(self) -> None:
        """Gives it back; what torch knows no more is passed over."""
        with suppress(ValueError):
            dist.destroy_process_group(self._group)
