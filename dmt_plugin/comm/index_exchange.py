"""Index distribution: every rank's ids travel to the ranks that own the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from dmt_plugin.comm.ids import FeatureIds, IdSlot
from dmt_plugin.comm.layout import BatchLayout

if TYPE_CHECKING:
    from dmt_plugin.topology import Topology

Route = Literal["hierarchical", "flat"]


@dataclass
class RoutedIds:
    """Ids of the slots this rank owns, for all rows it holds (sorted as ``layout`` says).

    Attributes:
        values: per owned slot, ``(n,)`` ids of all rows, row by row.
        lengths: per owned slot, ``(rows,)`` ids per row, or None with fixed hotness.
        weights: per owned slot, ``(n,)`` float32, or None.
        layout: batch sizes behind the rows.
    """

    values: tuple[Tensor, ...]
    lengths: tuple[Tensor | None, ...]
    weights: tuple[Tensor | None, ...]
    layout: BatchLayout


class IndexExchange(nn.Module):
    """Pair of graph nodes ``start(*ids) -> pending`` and ``wait(pending) -> RoutedIds``.

    Args:
        slots: every id stream of the model, the same on every rank, in the order of ``start``'s arguments.
        topology: hosts and lanes.
        rank: this rank.
        route: ``"hierarchical"`` (peers, then lanes) or ``"flat"`` (one world stage).
    """

    start: nn.Module
    wait: nn.Module

    def __init__(self, slots: Sequence[IdSlot], topology: Topology, rank: int, route: Route = "hierarchical") -> None:
        super().__init__()
        raise NotImplementedError

    owned: tuple[int, ...]  # indices into slots, in the order of RoutedIds' tuples

    def bind(self, transport: Any) -> None:
        """Give the exchange its wire; nothing can be sent before."""
        raise NotImplementedError

    def forward(self, *ids: FeatureIds) -> RoutedIds:
        """Start and wait at once."""
        raise NotImplementedError
