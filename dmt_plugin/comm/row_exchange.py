"""Differentiable all-to-all of rows (embeddings or tower outputs) between the ranks of a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dmt_plugin.comm.layout import BatchLayout


class RowExchange(nn.Module):
    """Pair of graph nodes ``start(x, layout) -> pending`` and ``wait(pending) -> tuple of blocks``.

    Args:
        name: for messages and the traffic count.
        group: ``"lanes"``, ``"peers"`` or ``"world"``.
        send_width: columns of this rank's rows.
        recv_widths: columns of each source's rows, in group order.
    """

    start: nn.Module
    wait: nn.Module

    def __init__(self, name: str, group: str, send_width: int, recv_widths: Sequence[int]) -> None:
        super().__init__()
        raise NotImplementedError

    def bind(self, transport: Any) -> None:
        """Give the exchange its wire; nothing can be sent before."""
        raise NotImplementedError

    def forward(self, x: Tensor, layout: BatchLayout) -> tuple[Tensor, ...]:
        """Start and wait at once."""
        raise NotImplementedError
