"""Batch sizes behind the rows of a rank after input distribution.

Input distribution brings the ids of many ranks' samples to one rank, which then holds one row per sample,
sorted by the source's (lane, host). Every later exchange only needs to know how many rows each source
contributed:

1. the block of source lane ``j`` is contiguous, so the exchange inside the host sends contiguous slices;
2. what one lane keeps is sorted by host, so the peer exchange sends contiguous slices too.

No embedding is ever permuted. On the flat route there is one "lane" that holds all ranks in rank order.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BatchLayout:
    """Rank-local knowledge of the batch sizes after input distribution.

    Attributes:
        own: batch size ``B`` of this rank.
        blocks: ``blocks[source_lane][host]`` is the batch size of rank ``(host, source_lane)``; rows after
            the lookup are sorted by (source lane, host). Flat route: ``((B_0, ..., B_{G-1}),)``.
    """

    own: int
    blocks: tuple[tuple[int, ...], ...]

    @property
    def rows(self) -> int:
        """Rows this rank holds after input distribution: the sum over all source ranks."""
        return sum(sum(block) for block in self.blocks)

    def rows_of_lane(self, lane: int) -> int:
        """Rows that came through source lane ``lane``: the sum over hosts."""
        return sum(self.blocks[lane])


@dataclass(frozen=True)
class RowCounts:
    """How many rows an exchange carries, where they are not one per sample.

    Attributes:
        sent: rows to each member of the group, in group order.
        received: rows from each.
    """

    sent: tuple[int, ...]
    received: tuple[int, ...]
