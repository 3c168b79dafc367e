"""Lookup and pooling of the tables one rank owns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dmt_plugin.comm.index_exchange import RoutedIds


@dataclass(frozen=True)
class LookupSite:
    """One pooled lookup on this rank.

    Attributes:
        name: unique name of the site.
        table: fully qualified name of the table; several sites may share one.
        slot: index into ``RoutedIds``' tuples on this rank.
        rows: rows of the table.
        dim: columns of the table.
        pooling: ``"sum"`` or ``"mean"``.
        weighted: ids carry weights (sum only).
    """

    name: str
    table: str
    slot: int
    rows: int
    dim: int
    pooling: str
    weighted: bool


class ShardedLookup(nn.Module):
    """Lookups of one rank; its tables are no parameters of the module."""

    def __init__(
        self,
        sites: Sequence[LookupSite],
        weights: Mapping[str, Tensor],
        *,
        backend: str = "auto",
        optimizer: str = "rowwise_adagrad",
        lr: float = 0.01,
        eps: float = 1e-8,
        location: str = "auto",
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        raise NotImplementedError

    def forward(self, routed: RoutedIds) -> Tensor:
        """``(rows, sum of dims)`` fp32, columns in the order of the sites."""
        raise NotImplementedError
