"""Graph functions that cut a batch into micro-blocks and join them again (:mod:`dmt_plugin.comm.micro_blocks`).

Which values have one row per sample is proven on an example batch. What really arrives is checked once more here: a
tensor with another number of rows than the batch has samples is an error, never a result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dmt_plugin.comm.batch_layout import BatchLayout
from dmt_plugin.comm.distinct.requests import Requests
from dmt_plugin.comm.micro_blocks import block_sizes, layouts_of
from dmt_plugin.nn.graph_ops import graph_function


@graph_function
def cut_rows(rows: Tensor, layout: BatchLayout, blocks: int) -> tuple[Tensor, ...]:
    """Cuts the rows of many ranks into blocks: views. (The backward of one split is one concatenation.)

    Args:
        rows: ``(layout.rows, ...)``, sorted by block.
        layout: of the whole batch.
        blocks: number of blocks.
    """
    return rows.split([part.rows for part in layouts_of(layout, blocks)])


@graph_function
def cut_batch(values: Tensor, batch: BatchLayout | Requests, blocks: int) -> tuple[Tensor, ...]:
    """Cuts what was computed for this rank's whole batch into blocks: views.

    Args:
        values: ``(B, ...)``.
        batch: what says how many samples it has.
        blocks: number of blocks.

    Raises:
        ValueError: there is not one row per sample.
    """
    if values.shape[0] != batch.own:
        raise ValueError(_not_the_batch(values, batch.own, "the batch"))
    return values.split(block_sizes(batch.own, blocks))


@graph_function
def join_rows(parts: Sequence[Tensor], batch: BatchLayout | Requests) -> Tensor:
    """Blocks of this rank's batch under each other: ``(B, ...)``.

    Args:
        parts: ``(samples of the block, ...)`` for each block.
        batch: what says how many samples it has.

    Raises:
        ValueError: a block has not one row per sample.
    """
    for part, size in zip(parts, block_sizes(batch.own, len(parts)), strict=True):
        if part.shape[0] != size:
            raise ValueError(_not_the_batch(part, size, "its micro-block"))
    return torch.cat(list(parts))


@graph_function
def join_ids(parts: Sequence[Tensor]) -> Tensor:
    """Rows by id of the blocks under each other: ``(n, D)``. Blocks have so many ids, whatever their samples are."""
    return torch.cat(list(parts))


@graph_function
def view_rows(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """``rows.reshape(sizes)`` that keeps the samples in front, also where a block has none.

    Args:
        rows: ``(B, ...)``.
        sizes: the new shape, with the batch in front; one of the others is -1. torch cannot tell that one from no
            entries at all, but it follows from the sizes of a sample.
    """
    known = -math.prod(sizes[1:])
    entries = math.prod(rows.shape[1:])
    return rows.reshape(rows.shape[0], *(entries // known if size == -1 else size for size in sizes[1:]))


def _not_the_batch(values: Tensor, samples: int, of: str) -> str:
    return (
        f"a tensor of shape {tuple(values.shape)} was taken for one with a row per sample, but {of} has {samples} "
        "samples; set dmt.comm.micro_blocks to 1, and please report the model"
    )
