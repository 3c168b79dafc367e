"""The ids that one site of a sharded lookup reads out of what its slot received.

Most sites read the whole slot. A site at a position of a sequence reads one id per row; its
padding ids become empty bags, so that they give zeros and take no gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

if TYPE_CHECKING:
    from dmt_plugin.comm.index_exchange import RoutedIds
    from dmt_plugin.nn.lookup import LookupSite


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
    """What ``site`` looks up."""
    values, lengths = routed.values[site.slot], routed.lengths[site.slot]
    if site.position is None:
        return SiteIds(values, lengths, routed.weights[site.slot] if site.weighted else None)
    column = values.view(routed.layout.rows, -1)[:, site.position] if values.numel() else values
    if site.padding is None:
        return SiteIds(column, None, None)
    keep = column != site.padding
    return SiteIds(column[keep], keep.long(), None)
