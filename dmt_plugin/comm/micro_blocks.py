"""Micro-blocks: how a batch is cut so that the exchange of one part runs while another is computed.

A batch of ``B`` samples is cut into ``M`` blocks of neighbouring samples, the first ones a sample longer where ``M``
does not divide ``B``. Every rank cuts its own batch, and knows from the batch layout how the others cut theirs:

1. rows that arrive sorted by (source lane, host) are sorted by (block, source lane, host), once, as ids;
2. block ``m`` of all of them then is one contiguous range, and has a batch layout of its own, which every exchange
   of the block goes by.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from dmt_plugin.comm.batch_layout import BatchLayout


def block_sizes(rows: int, blocks: int) -> list[int]:
    """Samples of each block of a batch."""
    size, longer = divmod(rows, blocks)
    return [size + (block < longer) for block in range(blocks)]


def layouts_of(layout: BatchLayout, blocks: int) -> tuple[BatchLayout, ...]:
    """The batch layout of each block."""
    own = block_sizes(layout.own, blocks)
    sizes = [[block_sizes(rows, blocks) for rows in lane] for lane in layout.blocks]
    return tuple(
        BatchLayout(own[block], tuple(tuple(host[block] for host in lane) for lane in sizes)) for block in range(blocks)
    )


class RowOrder:
    """The order of rows by (block, source lane, host), for rows sorted by (source lane, host).

    Args:
        layout: of the whole batch.
        blocks: number of blocks.
    """

    def __init__(self, layout: BatchLayout, blocks: int) -> None:
        sizes = [block_sizes(rows, blocks) for lane in layout.blocks for rows in lane]
        starts = list(accumulate((sum(own) for own in sizes), initial=0))
        offsets = [list(accumulate(own, initial=start)) for own, start in zip(sizes, starts[:-1], strict=True)]
        self.ranges = [(own[block], own[block + 1]) for block in range(blocks) for own in offsets]

    def sort(self, values: Tensor) -> Tensor:
        """Rows ``(rows, ...)`` in the new order."""
        return torch.cat([values[start:end] for start, end in self.ranges])

    def sort_bags(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Entries ``(n,)`` of bags of these ``(rows,)`` lengths, in the new order of the bags."""
        ends = [0, *lengths.cumsum(0).tolist()]
        return torch.cat([values[ends[start] : ends[end]] for start, end in self.ranges])
