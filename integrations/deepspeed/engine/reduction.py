"""Sums of gradients that run during the backward pass, for ZeRO stage 0.

DeepSpeed sums gradients at stage 0 when the backward pass is over. Here:

1. a hook on every parameter notes when its gradient is there;
2. when the last gradient of the dense part is there, its sum over all ranks begins inside the host; between hosts it
   begins when no rows are under way any more: the rest of the backward pass waits for those, and for a gradient only
   the optimizer waits (:class:`dmt_plugin.comm.sums.HierarchicalSum`);
3. when the last gradient of this host's towers is there, their sum over the host's lanes begins (where a host consists
   of several machines, in the same steps as that of the dense part, between its machines alone);
4. where DeepSpeed would sum, what is under way is finished, and all are divided by the number of ranks. A parameter
   that got no gradient counts as zero, as with DeepSpeed.

Each sum's summands lie side by side in one buffer, so whether all of them are finite is cheap to tell there: their
least and largest entry, before they are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmt_plugin.comm.sums import HierarchicalSum
from dmt_plugin.comm.wire.transport import Transport
from dmt_plugin.core.errors import DMTError
from dmt_plugin.core.finite import bounds_of
from dmt_plugin.integrations.deepspeed.engine.state import DMTState
from dmt_plugin.topology.group_names import groups_of_rows_once
from dmt_plugin.topology.groups import release, renewed


class GradientReduction:
    """Mean gradients of a model over ranks, at the accumulation boundary.

    Args:
        dense: parameters that all ranks hold.
        towers: parameters that the lanes of this host hold.
        dmt: the plugin's part of the engine: its groups and transport. The sums have groups of their own: whether a
            sum begins in a hook, among the exchanges of rows, or behind the backward pass depends on which parameters
            a rank's loss reaches, and may differ from rank to rank.
        active: whether the backward pass that runs is one whose gradients are to be summed.
        watch: whether ``bounds`` will be asked for.
    """

    def __init__(
        self,
        dense: Sequence[nn.Parameter],
        towers: Sequence[nn.Parameter],
        dmt: DMTState,
        active: Callable[[], bool],
        watch: bool,
    ) -> None:
        self._active = active
        between, inside = groups_of_rows_once(dmt.topology)
        own = [inside, between, *(["across"] if dmt.topology.machines_per_host > 1 else [])]
        groups = renewed(dmt.groups, own)
        near, far = getattr(groups, inside), getattr(groups, between)
        dmt.resources.callback(release, groups, own)
        self._buckets: list[_Bucket] = []
        if dense:
            self._buckets.append(_Bucket("dense", dense, dmt.transport, near, far, watch))
        if towers:
            self._buckets.append(_Bucket("towers", towers, dmt.transport, near, groups.across, watch))
        self._world_size = dmt.topology.world_size
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                dmt.resources.callback(parameter.register_post_accumulate_grad_hook(self._hook(bucket)).remove)

    def begin(self) -> None:
        """Begin the sums that no gradient has begun; waits for nothing.

        Raises:
            ExchangeError: a rank of the host is gone.
        """
        for bucket in self._buckets:
            bucket.begin()

    @property
    def bounds(self) -> list[Tensor]:
        """The least and the largest entry of this rank's summands, once all sums have begun."""
        return [bound for bucket in self._buckets for bound in bucket.bounds]

    def finish(self) -> None:
        """Leave the mean over ranks in every parameter's gradient.

        Raises:
            ExchangeError: a rank is gone, or the time is up.
        """
        self.begin()
        for bucket in self._buckets:
            bucket.finish(self._world_size)

    def _hook(self, bucket: _Bucket) -> Callable[[Tensor], None]:
        def ready(parameter: Tensor) -> None:
            if self._active():
                bucket.note(parameter)
                # In order: on a rank where the first one waits for the end of the backward pass, so do the others.
                for other in self._buckets:
                    if not other.complete:
                        break
                    other.begin()

        return ready


class _Bucket:
    """Parameters whose gradients travel together."""

    def __init__(
        self,
        name: str,
        parameters: Sequence[nn.Parameter],
        transport: Transport,
        lanes: dist.ProcessGroup,
        peers: dist.ProcessGroup | None,
        watch: bool,
    ) -> None:
        self.parameters = parameters
        self.bounds: list[Tensor] = []
        self._watches = watch
        self._transport = transport
        self._sum = HierarchicalSum(transport, name, sum(p.numel() for p in parameters), lanes, peers)
        self._places = [
            part.view(p.shape)
            for part, p in zip(self._sum.entries.split([p.numel() for p in parameters]), parameters, strict=True)
        ]
        self._crosses = peers is not None
        self._there: set[int] = set()
        self._begun = self._crossed = False

    @property
    def complete(self) -> bool:
        """Whether all gradients are there."""
        return len(self._there) == len(self.parameters)

    def note(self, parameter: Tensor) -> None:
        if self._begun:
            raise DMTError(
                "a gradient changed after its sum over ranks had begun: a parameter got gradients twice in one "
                "backward pass, as with reentrant activation checkpointing, or the backward pass before this one "
                'failed and was given up. Set "overlap": false under dmt.comm, which sums after the backward pass.'
            )
        self._there.add(id(parameter))

    def begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        gradients: list[Tensor] = []
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        torch._foreach_copy_(self._places, gradients)
        if self._watches:
            self.bounds = bounds_of([self._sum.entries])
        self._sum.start()
        if self._crosses:
            self._transport.when_link_is_free(self._cross)

    def finish(self, world_size: int) -> None:
        self._cross()
        means = self._sum.finish().div_(world_size)
        gradients: list[Any] = [p.grad for p in self.parameters]
        parts = means.split([p.numel() for p in self.parameters])
        torch._foreach_copy_(gradients, [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)])
        self._there.clear()
        self._begun = self._crossed = False

    def _cross(self) -> None:
        if self._begun and not self._crossed:
            self._crossed = True
            self._sum.cross()
