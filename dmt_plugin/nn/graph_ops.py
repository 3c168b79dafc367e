"""The few functions of our own that appear as nodes in a rewritten graph.

All are plain tensor code without state; those that only move data are views where the
layout allows it. Shapes use the letters of the paper: ``B`` samples, ``F_t`` features of
tower ``t``, width ``N``; a tower's output has width ``O_t``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: A stream's shape behind the batch, e.g. ``(16,)`` for ``(B, 16)`` or ``(1, 16)`` for ``(B, 1, 16)``.
StreamShape = tuple[int, ...]


def graph_function(function: _Function) -> _Function:
    """Keeps a function one node when its graph is traced again (as unpickling a graph does)."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        proxy = _find_proxy((args, kwargs))
        if proxy is not None:
            return proxy.tracer.create_proxy("call_function", call, args, kwargs)
        return function(*args, **kwargs)

    return call  # type: ignore[return-value]


def _find_proxy(value: Any) -> fx.Proxy | None:
    found: list[fx.Proxy] = []
    fx.node.map_aggregate(value, lambda item: found.append(item) if isinstance(item, fx.Proxy) else None)
    return found[0] if found else None


@graph_function
def pack_streams(streams: Sequence[Tensor]) -> Tensor:
    """Stacks the streams of one tower: ``F_t`` tensors ``(B, N)`` or ``(B, 1, N)`` -> ``(B, F_t, N)``."""
    return torch.stack([stream.flatten(1) for stream in streams], dim=1)


@graph_function
def split_streams(towers: Sequence[Tensor], shapes: Sequence[Sequence[StreamShape]]) -> tuple[Tensor, ...]:
    """Cuts tower outputs into the streams that the model joins.

    Args:
        towers: output of each tower, ``(B, O_t)``.
        shapes: for each tower the shape of each of its streams behind the batch dimension.

    Returns:
        All streams, tower by tower: views on the tower outputs.
    """
    streams: list[Tensor] = []
    for output, own in zip(towers, shapes, strict=True):
        for part, shape in zip(output.split([math.prod(s) for s in own], dim=1), own, strict=True):
            streams.append(part if len(shape) == 1 else part.unflatten(1, shape))
    return tuple(streams)


@graph_function
def field_streams(rows: Tensor, first_rows: Sequence[int]) -> tuple[Tensor, ...]:
    """Cuts what a joint table gives for all fields, ``(B, F, N)``, into ``F`` streams ``(B, N)``.

    Args:
        rows: one row per field and sample.
        first_rows: where each field's range of rows begins in the table; says which table ranges the
            streams come from, and does not change their values.
    """
    assert rows.shape[1] == len(first_rows)
    return rows.unbind(1)


@graph_function
def split_columns(blocks: Sequence[Tensor], widths: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """Cuts the blocks an exchange delivers into columns.

    Args:
        blocks: one ``(rows, width)`` block per source rank.
        widths: for each block the widths of its columns.

    Returns:
        All columns, block by block, each ``(rows, width)``: views on the blocks. (One split per
        block: its backward is one concatenation, where slices would each fill a whole block.)
    """
    return tuple(part for block, own in zip(blocks, widths, strict=True) for part in block.split(list(own), dim=1))


@graph_function
def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Joins the outputs a host sends to its peers: ``(rows, sum of widths)``."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim=1)


@graph_function
def pick_columns(blocks: Sequence[Tensor], places: Sequence[int], width: int) -> Tensor:
    """Puts columns of one width, which lie in several blocks, side by side in another order.

    Args:
        blocks: each ``(rows, columns * width)``.
        places: the columns in the order wanted, counted over all blocks.
        width: entries of a column.

    Returns:
        ``(rows, len(places) * width)``.
    """
    if list(places) == list(range(len(places))):
        return side_by_side([block for block in blocks if block.shape[1]] or blocks)
    columns = [column for block in blocks if block.shape[1] for column in block.split(width, dim=1)]
    return torch.cat([columns[place] for place in places], dim=1)


@graph_function
def add_row_ranges(partial: Sequence[Tensor]) -> Tensor:
    """The sum of what the row ranges of a table gave: each ``(B, W)`` -> ``(B, W)``."""
    total = partial[0]
    for other in partial[1:]:
        total = total + other
    return total


@graph_function
def join_column_ranges(ranges: Sequence[Tensor], vectors: int) -> Tensor:
    """Rows from their column ranges, in the table's order.

    Args:
        ranges: for each range ``(B, vectors * own columns)``.
        vectors: vectors per sample: 1, or the length of a sequence.

    Returns:
        ``(B, vectors * dim)``.
    """
    if vectors == 1:
        return torch.cat(list(ranges), dim=1)
    return torch.cat([x.unflatten(1, (vectors, x.shape[1] // vectors)) for x in ranges], dim=2).flatten(1)


@graph_function
def join_vectors(rows: Tensor, vectors: int) -> Tensor:
    """The vectors of a sample side by side: ``(B * vectors, D) -> (B, vectors * D)``."""
    return rows.reshape(rows.shape[0] // vectors, vectors * rows.shape[1])


@graph_function
def rows_of_ids(rows: Tensor, ids: Tensor) -> Tensor:
    """Rows by id in the shape of the ids: ``(n, D)`` with ``n`` ids of any shape -> ``(*ids.shape, D)``."""
    return rows.reshape(*ids.shape, rows.shape[1])


@graph_function
def bags_of_rows(
    rows: Tensor, ids: Tensor, weights: Tensor, offsets: Tensor | None, include_last_offset: bool
) -> Tensor:
    """The weighted sums of rows by id, bag by bag, ``(B, D)``; with gradients for rows and weights.

    Args:
        rows: ``(n, D)``.
        ids: whose rows these are, ``(n,)`` or ``(B, L)``.
        weights: one for each, in the shape of the ids.
        offsets: ``(B,)`` starts of the bags, for ids ``(n,)``.
        include_last_offset: the last of ``offsets`` is the end of the last bag.
    """
    places = torch.arange(ids.numel(), device=ids.device).view(ids.shape)
    return F.embedding_bag(
        places, rows, None if offsets is None else offsets.long(), mode="sum",
        per_sample_weights=weights.to(rows.dtype), include_last_offset=include_last_offset,
    )  # fmt: skip


@graph_function
def without_rows(ids: Tensor, width: int, dtype: torch.dtype, more: int, pooled: bool) -> Tensor:
    """What has the shape of a lookup of which nothing else is read, in the memory of one number.

    Args:
        ids: the ids, or the offsets of bags.
        width: of a row.
        dtype: of the table.
        more: offsets behind those of the bags.
        pooled: whether the last dimension of ``ids`` is pooled.
    """
    shape = [*ids.shape[:-1]] if pooled else [*ids.shape]
    shape[0] -= more
    return torch.zeros((), dtype=dtype, device=ids.device).expand(*shape, width)


@graph_function
def jagged_values(features: Any, key: str) -> Tensor:
    """The ids of one key of a ``KeyedJaggedTensor``, ``(n,)``."""
    return features[key].values()


@graph_function
def jagged_offsets(features: Any, key: str) -> Tensor:
    """The bag offsets of one key of a ``KeyedJaggedTensor``, ``(B + 1,)``."""
    return features[key].offsets()


@graph_function
def jagged_weights(features: Any, key: str) -> Tensor:
    """The weight of each id of one key of a ``KeyedJaggedTensor``, ``(n,)``."""
    return features[key].weights()
