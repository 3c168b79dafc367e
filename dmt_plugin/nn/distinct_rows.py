"""Rows that arrived once, handed on to everything that needs them; backward adds up what belongs to one row.

1. :class:`SpreadRows` runs on the rank of a host that fetched rows from other hosts: every lane gets the rows that it
   asked for. Backward sums the lanes' gradients of a row, lane by lane.
2. :class:`ExpandRows` runs where the samples are: every lookup gets its rows, one per id, or pooled bag by bag.
   Backward sums the gradients of a row over lookups and samples, in the order of the lookups.

Sums are in fp32 and in a fixed order: on the CPU one addition after the other; on accelerators, where those would be
atomic and their order chance, over rows that were sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from dmt_plugin.comm.distinct.requests import GroupRequests, ReadIds, Requests
from dmt_plugin.nn.graph_ops import graph_function


@graph_function
def group_requests(requests: Requests, group: int) -> GroupRequests:
    """The requests of one group of tables."""
    return requests.groups[group]


@graph_function
def no_rows(rows: Tensor, width: int) -> Tensor:
    """What a tower that is not on this host makes of the rows that nobody asks for: ``(0, N) -> (0, width)``."""
    assert not rows.shape[0], f"{rows.shape[0]} rows are asked for of a host that has no tower for them"
    return rows.new_zeros(0, width)


class SpreadRows(nn.Module):
    """Graph node that gives every lane the rows that it asked for; see the module."""

    def forward(self, blocks: Sequence[Tensor], requests: GroupRequests) -> Tensor:
        """Rows for the lanes, ``(m, width)``, lane by lane.

        Args:
            blocks: the rows that came from their owners, one block ``(n, width)`` each, in the order of the codes.
            requests: which of them go to which lane.
        """
        assert requests.spread is not None
        spread: Tensor = _Spread.apply(_joined(blocks), requests.spread)
        return spread


class ExpandRows(nn.Module):
    """Graph node that gives every lookup its rows; see the module."""

    def forward(self, blocks: Sequence[Tensor], requests: GroupRequests) -> tuple[Tensor, ...]:
        """What each lookup of the model gives, ``(bags, width)``.

        The vectors of a sequence are bags of one id; the mean of an empty bag is zero.

        Args:
            blocks: the distinct rows of this rank's batch, one block ``(n, width)`` per sender, in the order of the
                codes.
            requests: where the ids of each lookup find their row.
        """
        expanded: tuple[Tensor, ...] = _Expand.apply(_joined(blocks), tuple(map(_Pooling, requests.reads)))
        return expanded


def _joined(blocks: Sequence[Tensor]) -> Tensor:
    filled = [block for block in blocks if block.shape[0]]
    return filled[0] if len(filled) == 1 else torch.cat(list(blocks))


def add_rows(total: Tensor, places: Tensor, values: Tensor) -> None:
    """Add ``values[i]`` to ``total[places[i]]`` in a fixed order; ``total`` is fp32, ``values`` of any float dtype."""
    if total.device.type == "cpu":
        total.index_add_(0, places, values.to(total.dtype))
        return
    order = torch.argsort(places, stable=True)
    lengths = torch.bincount(places, minlength=total.shape[0])
    total += torch.segment_reduce(values.to(total.dtype)[order], "sum", lengths=lengths, axis=0, unsafe=True, initial=0)


class _Spread(Function):
    """Rows by number; the transpose is a sum by number."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        ctx.places, ctx.rows = places, rows.shape[0]
        return rows.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        total = torch.zeros(ctx.rows, gradient.shape[1], device=gradient.device)
        add_rows(total, ctx.places, gradient)
        return total.to(gradient.dtype), None


@dataclass(frozen=True)
class _Pooling:
    """How one lookup pools the rows of its ids."""

    ids: ReadIds

    @property
    def single(self) -> bool:
        """Whether every bag is one id, taken as it is."""
        return self.ids.lengths is None and self.ids.weights is None and self.ids.places.numel() == self.ids.bags

    def sizes(self) -> Tensor:
        """``(bags,)`` ids per bag."""
        ids = self.ids
        if ids.lengths is not None:
            return ids.lengths.long()
        hotness = ids.places.numel() // max(ids.bags, 1)
        return torch.full((ids.bags,), hotness, dtype=torch.int64, device=ids.places.device)

    def pool(self, rows: Tensor) -> Tensor:
        """``(bags, width)`` from the distinct rows."""
        offsets = F.pad(self.sizes().cumsum(0), (1, 0))
        mode = "mean" if self.ids.mean else "sum"
        pooled = F.embedding_bag(
            self.ids.places, rows.float(), offsets, mode=mode, per_sample_weights=self.ids.weights,
            include_last_offset=True,
        )  # fmt: skip
        return pooled.to(rows.dtype)

    def share(self, gradient: Tensor) -> Tensor:
        """The gradient of each id's row, ``(n, width)``, from that of the bags."""
        if self.single:
            return gradient
        sizes = self.sizes()
        if self.ids.mean:
            gradient = gradient / sizes.clamp(min=1).unsqueeze(1)
        each = gradient.repeat_interleave(sizes, 0, output_size=self.ids.places.numel())
        return each if self.ids.weights is None else each * self.ids.weights.unsqueeze(1)


class _Expand(Function):
    """All lookups of a group at once, so that their gradients meet in one buffer."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: tuple[_Pooling, ...]) -> tuple[Tensor, ...]:
        ctx.plan, ctx.rows, ctx.dtype = plan, rows.shape[0], rows.dtype
        single = [pooling.ids.places for pooling in plan if pooling.single]
        taken = iter(rows.index_select(0, torch.cat(single)).split([p.numel() for p in single]) if single else ())
        return tuple(next(taken) if pooling.single else pooling.pool(rows) for pooling in plan)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        width = gradients[0].shape[1]
        total = torch.zeros(ctx.rows, width, device=gradients[0].device)
        for pooling, gradient in zip(ctx.plan, gradients, strict=True):
            add_rows(total, pooling.ids.places, pooling.share(gradient.float()))
        return total.to(ctx.dtype), None
