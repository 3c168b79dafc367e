"""Bytes of a step over the link of the busiest rank, by exchange and direction.

All from :func:`dmt_plugin.planner.cost.exchange_costs`, which tests hold against counted traffic. That function says
what a rank sends. What it receives is what it would send if the exchange ran the other way round: rows that come back
to it are the rows that it sent, in the wire format of the other direction.

1. Ranks that hold equally much, of hosts that send equally much, are alike; one of each kind is asked.
2. A link carries both directions at once, so that an exchange takes the larger of what is sent and what is received.
3. The busiest rank is the one with the largest of these; in each exchange and direction by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dmt_plugin.comm.formats import Format
from dmt_plugin.comm.input_dist.ids import IdSlot
from dmt_plugin.comm.input_dist.input_dist import Route
from dmt_plugin.planner.cost import ExchangeCost, exchange_costs
from dmt_plugin.topology.shape import Topology


@dataclass(frozen=True)
class Layout:
    """Where rows are, and what hosts send.

    Attributes:
        topology: hosts and lanes.
        route: ``"hierarchical"`` or ``"flat"``.
        slots: id streams.
        rank_widths: for each rank the width of its looked-up rows, in entries a sample.
        host_widths: for each host the width that it sends, in entries a sample; unused on the flat route.
    """

    topology: Topology
    route: Route
    slots: tuple[IdSlot, ...]
    rank_widths: tuple[int, ...]
    host_widths: tuple[int, ...] = ()


@dataclass(frozen=True)
class LinkBytes:
    """Bytes of the busiest rank in one step.

    Attributes:
        ids: to other hosts.
        rows: to or from other hosts, forward and backward.
        lanes: to or from other lanes of its host, forward and backward; on the flat route part of the same exchange.
    """

    ids: int
    rows: tuple[int, int]
    lanes: tuple[int, int]


def link_bytes(layout: Layout, batch: int, formats: tuple[Format, Format]) -> LinkBytes:
    """Counts the bytes.

    Args:
        layout: where rows are.
        batch: samples per rank.
        formats: wire formats of all exchanges of rows, forward and backward.
    """
    topology, hosts = layout.topology, layout.host_widths or (0,) * layout.topology.hosts
    kinds = {(width, hosts[topology.host_of(rank)]): rank for rank, width in enumerate(layout.rank_widths)}
    ids, rows, lanes = 0, [0, 0], [0, 0]
    for rank in kinds.values():
        sent = _costs(layout, rank, batch, formats, layout.slots)
        received = _costs(layout, rank, batch, (formats[1], formats[0]), ())
        ids = max(ids, sum(cost.other_hosts for cost in sent if cost.name.startswith("index.")))
        for way, (out, back) in enumerate((("forward", "backward"), ("backward", "forward"))):
            away = (_rows(sent, out, "other_hosts"), _rows(received, back, "other_hosts"))
            near = (_rows(sent, out, "same_host"), _rows(received, back, "same_host"))
            rows[way], lanes[way] = max(rows[way], *away), max(lanes[way], *near)
    return LinkBytes(ids, (rows[0], rows[1]), (lanes[0], lanes[1]))


def _costs(
    layout: Layout, rank: int, batch: int, formats: tuple[Format, Format], slots: Sequence[IdSlot]
) -> list[ExchangeCost]:
    each = dict.fromkeys(("lanes", "peers", "world"), formats)
    return exchange_costs(
        slots, layout.rank_widths, layout.host_widths, layout.topology, rank, batch, layout.route, formats=each
    )


def _rows(costs: Sequence[ExchangeCost], phase: str, where: str) -> int:
    return sum(getattr(c, where) for c in costs if c.phase == phase and not c.name.startswith("index."))
