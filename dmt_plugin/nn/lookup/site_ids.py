"""The ids that one site of a sharded lookup reads out of what its slot received.

1. Most sites read the whole slot. A site at a position of a sequence reads one id per row; its padding ids become
   empty bags, so that they give zeros and take no gradient.
2. A site on a range of a table's rows keeps the ids of that range, counted from its first row; bags become shorter,
   and empty where all their ids lie elsewhere.
3. Its share of a mean is a sum in which every id weighs one by the size of the whole bag.
4. The ids of several micro-batches become those of one batch, one behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.nn.lookup.site import LookupSite


class SiteIds(NamedTuple):
    """Ids of one site.

    Attributes:
        values: ``(n,)`` ids, row by row.
        lengths: ``(rows,)`` ids per row, or None where every row has the same number.
        weights: ``(n,)`` weight per id, or None.
    """

    values: Tensor
    lengths: Tensor | None
    weights: Tensor | None


def ids_of(site: LookupSite, routed: RoutedIds) -> SiteIds:
    """What ``site`` looks up, as row numbers of what this rank holds of its table."""
    ids = _all_ids(site, routed)
    return ids if site.first_row is None else _in_range(site, ids, routed.layout.rows)


def joined(parts: Sequence[SiteIds], rows: Sequence[int]) -> SiteIds:
    """The ids of one site in several batches, as those of one batch.

    Args:
        parts: ids of each batch, of one site: all with weights or none.
        rows: rows of each batch.
    """
    values = torch.cat([part.values for part in parts])
    weights = [part.weights for part in parts if part.weights is not None]
    hotness = {part.values.numel() // max(n, 1) for part, n in zip(parts, rows, strict=True) if n}
    if len(hotness) <= 1 and all(part.lengths is None for part in parts):
        lengths = None
    else:
        lengths = torch.cat([_lengths(part, n) for part, n in zip(parts, rows, strict=True)])
    return SiteIds(values, lengths, torch.cat(weights) if weights else None)


def emptied(ids: SiteIds, rows: int) -> SiteIds:
    """As many bags without an id."""
    weights = None if ids.weights is None else ids.weights[:0]
    return SiteIds(ids.values[:0], torch.zeros(rows, dtype=torch.int64, device=ids.values.device), weights)


def _lengths(ids: SiteIds, rows: int) -> Tensor:
    if ids.lengths is not None:
        return ids.lengths.long()
    hotness = ids.values.numel() // max(rows, 1)
    return torch.full((rows,), hotness, dtype=torch.int64, device=ids.values.device)


def _all_ids(site: LookupSite, routed: RoutedIds) -> SiteIds:
    values, lengths = routed.values[site.slot], routed.lengths[site.slot]
    if site.position is None:
        return SiteIds(values, lengths, routed.weights[site.slot] if site.weighted else None)
    column = values.view(routed.layout.rows, -1)[:, site.position] if values.numel() else values
    if site.padding is None:
        return SiteIds(column, None, None)
    keep = column != site.padding
    return SiteIds(column[keep], keep.long(), None)


def _in_range(site: LookupSite, ids: SiteIds, rows: int) -> SiteIds:
    # Shifted first: a comparison of int32 ids with an end of 2**31 would wrap round.
    local = ids.values - (site.first_row or 0)
    keep = local >= 0
    if site.step > 1:
        keep &= local % site.step == 0
        local = torch.div(local, site.step, rounding_mode="floor")
    keep &= local < site.rows
    if ids.lengths is None:
        hotness = ids.values.numel() // max(rows, 1)
        counts = keep.view(rows, hotness).sum(1)
        sizes = torch.full((rows,), hotness, device=keep.device)
    else:
        ends = F.pad(ids.lengths.cumsum(0), (1, 0))
        counts = F.pad(keep.cumsum(0), (1, 0))[ends].diff()
        sizes = ids.lengths
    weights = None if ids.weights is None else ids.weights[keep]
    if site.pooling == "mean":
        weights = (1.0 / sizes.clamp(min=1)).repeat_interleave(counts)
    return SiteIds(local[keep], counts, weights)
