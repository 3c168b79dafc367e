"""Rows that arrived once, handed on to everything that needs them; backward adds up what belongs to one row.

1. :class:`SpreadRows` runs on the rank of a host that fetched rows from other hosts: every lane gets the rows that it
   asked for. Backward sums the lanes' gradients of a row, lane by lane.
2. :class:`ExpandRows` runs where the samples are: every lookup gets its rows, one per id, or pooled bag by bag.
   Backward sums the gradients of a row over lookups and samples: first of the lookups of one id per sample, then of
   those of bags, each in their order.
3. Where a batch is cut into micro-blocks both run once per block. A row arrives with the first block that needs it,
   and blocks behind that one read it as well: what has arrived is held from block to block. In backward blocks run in
   reverse, and all of them add to one sum of gradients: that of the rows of block ``k`` is complete when block ``k``
   has added its own. A token that block ``k`` hands to block ``k + 1`` has autograd keep that order.

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

from dmt_plugin.comm.distinct.requests import BlockRequests, ReadIds, Requests
from dmt_plugin.nn.graph_ops import graph_function


@graph_function
def block_requests(requests: Requests, group: int, block: int) -> BlockRequests:
    """What a micro-block adds to the requests of one group of tables."""
    return requests.groups[group].blocks[block]


@graph_function
def asked_rows(rows: Sequence[Sequence[Tensor]], group: int, block: int) -> Tensor:
    """The looked-up rows of one group of tables that are asked for with one micro-block: ``(n, N)``."""
    return rows[group][block]


@graph_function
def no_rows(rows: Tensor, width: int) -> Tensor:
    """What a tower that is not on this host makes of the rows that nobody asks for: ``(0, N) -> (0, width)``."""
    assert not rows.shape[0], f"{rows.shape[0]} rows are asked for of a host that has no tower for them"
    return rows.new_zeros(0, width)


@dataclass
class HandedRows:
    """What one micro-block hands on, and what the next one has to know.

    Attributes:
        columns: the rows: for the lanes, one tensor ``(m, width)``, lane by lane; for the lookups of the model
            ``(bags, width)`` each.
        held: the rows that have arrived.
        token: has autograd run this block's backward behind that of the next one.
    """

    columns: tuple[Tensor, ...]
    held: _Held
    token: Tensor

    @property
    def rows(self) -> Tensor:
        """The rows for the lanes."""
        (rows,) = self.columns
        return rows


class SpreadRows(nn.Module):
    """Graph node that gives every lane the rows that it asked for; see the module."""

    def forward(
        self, blocks: Sequence[Tensor], requests: BlockRequests, before: HandedRows | None = None
    ) -> HandedRows:
        """Rows for the lanes.

        Args:
            blocks: the rows that came from their owners as one block ``(n, width)``, in the order of the codes.
            requests: which rows go to which lane.
            before: what the micro-block before handed on; None for the first.
        """
        assert requests.spread is not None
        return _handed(blocks, (ReadIds(requests.spread, None, None, requests.spread.numel()),), before)


class ExpandRows(nn.Module):
    """Graph node that gives every lookup its rows; see the module."""

    def forward(
        self, blocks: Sequence[Tensor], requests: BlockRequests, before: HandedRows | None = None
    ) -> HandedRows:
        """What each lookup of the model gives.

        Args:
            blocks: the rows that came, as one block ``(n, width)``, in the order of the codes.
            requests: where each lookup finds its rows.
            before: what the micro-block before handed on; None for the first.
        """
        return _handed(blocks, requests.reads, before)


class _Held:
    """The rows of a group of tables that have arrived, block by block, and the sum of their gradients."""

    def __init__(self) -> None:
        self.arrived: list[Tensor] = []
        self.sums: Tensor | None = None

    def rows(self) -> Tensor:
        """All that has arrived, ``(n, width)``."""
        filled = [rows for rows in self.arrived if rows.shape[0]]
        return filled[0] if len(filled) == 1 else torch.cat(self.arrived)


def _handed(blocks: Sequence[Tensor], reads: Sequence[ReadIds], before: HandedRows | None) -> HandedRows:
    (arrived,) = blocks
    held, token = (_Held(), arrived.new_empty(0)) if before is None else (before.held, before.token)
    token, *columns = _Hand.apply(arrived, token, held, tuple(map(_Pooling, reads)))
    return HandedRows(tuple(columns), held, token)


def add_rows(total: Tensor, places: Tensor, values: Tensor) -> None:
    """Add ``values[i]`` to ``total[places[i]]`` in a fixed order; ``total`` is fp32, ``values`` of any float dtype."""
    if total.device.type == "cpu":
        total.index_add_(0, places, values.to(total.dtype))
        return
    order = torch.argsort(places, stable=True)
    lengths = torch.bincount(places, minlength=total.shape[0])
    total += torch.segment_reduce(values.to(total.dtype)[order], "sum", lengths=lengths, axis=0, unsafe=True, initial=0)


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
        sizes = self.sizes()
        if self.ids.mean:
            gradient = gradient / sizes.clamp(min=1).unsqueeze(1)
        each = gradient.repeat_interleave(sizes, 0, output_size=self.ids.places.numel())
        return each if self.ids.weights is None else each * self.ids.weights.unsqueeze(1)


class _Hand(Function):
    """The rows of one block and of those before it, to all that the block needs, so that gradients meet in one sum."""

    @staticmethod
    def forward(
        ctx: Any, arrived: Tensor, token: Tensor, held: _Held, plan: tuple[_Pooling, ...]
    ) -> tuple[Tensor, ...]:
        ctx.first = sum(rows.shape[0] for rows in held.arrived)
        held.arrived.append(arrived.detach())
        rows = held.rows()
        single = [pooling.single for pooling in plan]
        places = [pooling.ids.places for pooling, alone in zip(plan, single, strict=True) if alone]
        ctx.places = places[0] if len(places) == 1 else torch.cat(places) if places else None
        ctx.held, ctx.plan, ctx.single, ctx.rows, ctx.dtype = held, plan, single, rows.shape[0], rows.dtype
        taken = iter(rows.index_select(0, ctx.places).split([p.numel() for p in places]) if places else ())
        columns = (next(taken) if alone else pooling.pool(rows) for pooling, alone in zip(plan, single, strict=True))
        return rows.new_empty(0), *columns

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, token: Tensor, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        held, width = ctx.held, gradients[0].shape[1]
        if held.sums is None:
            held.sums = torch.zeros(ctx.rows, width, device=gradients[0].device)
        total = held.sums
        if ctx.places is not None:  # together: a copy and one pass cost less than a pass over each column by itself
            alone = [gradient for gradient, single in zip(gradients, ctx.single, strict=True) if single]
            add_rows(total, ctx.places, alone[0] if len(alone) == 1 else torch.cat(alone))
        for pooling, gradient, single in zip(ctx.plan, gradients, ctx.single, strict=True):
            if not single:
                add_rows(total, pooling.ids.places, pooling.share(gradient.float()))
        if not ctx.first:
            held.sums = None
        return total[ctx.first : ctx.rows].to(ctx.dtype), token, None, None
