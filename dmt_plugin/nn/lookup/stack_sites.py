"""Lookups by sample in tables that are asked for by distinct rows as well: one table, two ways to read it.

1. A site reads one row per sample (``hotness`` 1), whole or a range of rows of it. Its ids become row numbers of the
   stack (:mod:`dmt_plugin.nn.lookup.stacks`), and all sites of a stack are one lookup there.
2. Ids of other ranges give rows of zeros, and take no gradient.
3. Gradients of both ways are those of one table: PyTorch adds them up before its update, FBGEMM holds them back until
   ``step`` (:attr:`StackSites.held`), which updates each row once, by all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.nn.lookup.fbgemm import FbgemmTables
from dmt_plugin.nn.lookup.site import LookupSite
from dmt_plugin.nn.lookup.site_ids import SiteIds, ids_of
from dmt_plugin.nn.lookup.stacks import StackedTables


class StackSites:
    """The lookups by sample in one stack.

    Args:
        stack: holds the tables.
        sites: lookups in them.

    Attributes:
        sites: the lookups, in the order of the output's columns.

    Raises:
        ValueError: a site does not give one row per sample as it is.
    """

    def __init__(self, stack: StackedTables, sites: Sequence[LookupSite]) -> None:
        self.sites = tuple(sites)
        self._stack = stack
        for site in self.sites:
            if site.pooling == "max" or site.weighted or site.position is not None:
                raise ValueError(f"lookup '{site.name}': one row per sample expected of a table that travels once")

    @property
    def columns(self) -> list[int]:
        """First column of each site in the output."""
        return [i * self._stack.stack.dim for i in range(len(self.sites))]

    @property
    def held(self) -> FbgemmTables | None:
        """What must hold back its gradients, as two lookups make one update."""
        backend = self._stack.backend
        return backend if isinstance(backend, FbgemmTables) else None

    def forward(self, routed: RoutedIds) -> Tensor:
        """``(rows, sites * dim)``.

        Raises:
            ValueError: a sample has another number of ids than one.
        """
        count = routed.layout.rows
        own = [self._checked(site, ids_of(site, routed), count) for site in self.sites]
        asked = [
            ids.values.long() + self._stack.first_row(site.table) for site, ids in zip(self.sites, own, strict=True)
        ]
        found = self._stack.look_up(torch.cat(asked)).split([ids.numel() for ids in asked])
        return torch.cat([_placed(rows, ids, count) for rows, ids in zip(found, own, strict=True)], dim=1)

    def _checked(self, site: LookupSite, ids: SiteIds, rows: int) -> SiteIds:
        if ids.lengths is None and ids.values.numel() != rows:
            raise ValueError(f"lookup '{site.name}': {ids.values.numel()} ids for {rows} samples, one each expected")
        return ids


def _placed(rows: Tensor, ids: SiteIds, count: int) -> Tensor:
    """``(count, dim)``: the rows where samples have an id in the range, else zeros."""
    if ids.lengths is None:
        return rows
    return rows.new_zeros(count, rows.shape[1]).index_copy(0, ids.lengths.nonzero().flatten(), rows)
