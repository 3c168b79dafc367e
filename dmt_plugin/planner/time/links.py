"""Bytes of a step over the link of the busiest rank, by exchange and direction.

All from :func:`dmt_plugin.planner.cost.exchange_costs` and :func:`dmt_plugin.planner.distinct_cost.distinct_costs`,
which tests hold against counted traffic. These functions say what a rank sends. What it receives is what it would send
if the exchange ran the other way round: rows that come back to it are the rows that it sent, in the wire format of the
other direction.

1. Ranks that hold equally much, of hosts that send equally much, are alike; one of each kind is asked.
2. A link carries both directions at once, so that an exchange takes the larger of what is sent and what is received.
3. The busiest rank is the one with the largest of these; in each exchange and direction by itself. Where the ranks of a
   host share one link it is the busiest host, and each of its ranks has an equal part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

from dmt_plugin.comm.distinct.row_groups import RowGroup
from dmt_plugin.comm.formats import Format
from dmt_plugin.comm.input_dist.ids import IdSlot
from dmt_plugin.comm.input_dist.input_dist import Route
from dmt_plugin.planner.cost import ExchangeCost, exchange_costs
from dmt_plugin.planner.distinct_cost import ByOwner, Needs, distinct_costs
from dmt_plugin.planner.time.step import Exchanges
from dmt_plugin.topology.group_names import INSIDE, Group, group_ranks, groups_of_rows_once
from dmt_plugin.topology.shape import Topology

Formats = Mapping[str, tuple[Format, Format]]
"""Wire formats of rows, forward and backward, by group: ``"lanes"``, ``"peers"`` and ``"world"``."""


def everywhere(forward: Format, backward: Format) -> Formats:
    """The same formats in every group."""
    return dict.fromkeys(("lanes", "peers", "world"), (forward, backward))


@dataclass(frozen=True)
class Layout:
    """Where rows are, and what hosts send.

    Attributes:
        topology: hosts and lanes.
        route: ``"hierarchical"`` or ``"flat"``.
        slots: id streams of rows that travel by sample.
        rank_widths: for each rank the width of its looked-up rows, in entries a sample; empty where none travel so.
        host_widths: for each host the width that it sends, in entries a sample; unused on the flat route.
        rank_gradients: of ``rank_widths`` what gradients go back for; None for all.
        host_gradients: the same of ``host_widths``.
        groups: tables whose rows travel once.
        distinct_slots: id streams that ask for these.
        needs: by group how many distinct rows are asked for; None for the most that can be.
    """

    topology: Topology
    route: Route
    slots: tuple[IdSlot, ...]
    rank_widths: tuple[int, ...]
    host_widths: tuple[int, ...] = ()
    rank_gradients: tuple[int, ...] | None = None
    host_gradients: tuple[int, ...] | None = None
    groups: tuple[RowGroup, ...] = ()
    distinct_slots: tuple[IdSlot, ...] = ()
    needs: tuple[Needs, ...] | None = None


@dataclass(frozen=True)
class LinkBytes:
    """Bytes of the busiest rank in one step.

    Attributes:
        ids: to other hosts.
        rows: to or from other hosts, forward and backward.
        lanes: to or from other lanes of its host, forward and backward; on the flat route part of the same exchange.
        exchanges: of a rank.
    """

    ids: float
    rows: tuple[float, float]
    lanes: tuple[float, float]
    exchanges: Exchanges = field(default_factory=Exchanges)


def link_bytes(layout: Layout, batch: int, formats: Formats, shared: bool = False) -> LinkBytes:
    """Counts the bytes.

    Args:
        layout: where rows are.
        batch: samples per rank.
        formats: wire formats of rows by group.
        shared: whether the ranks of a host share one link to other hosts.
    """
    topology = layout.topology
    kinds = _kinds(layout)
    one_of_each = {kind: rank for rank, kind in enumerate(kinds)}
    of_kind = {kind: _rank_bytes(layout, rank, batch, formats) for kind, rank in one_of_each.items()}
    of_ranks = [of_kind[kind] for kind in kinds]
    lanes = tuple(max(own.lanes[way] for own in of_kind.values()) for way in (0, 1))
    if shared:
        machines = topology.by_machine
        links = [[of_ranks[rank] for rank in machines.lanes_of(r)] for r in machines.peers_of(0)]
    else:
        links = [[own] for own in of_kind.values()]
    ids = max(sum(own.ids for own in link) / len(link) for link in links)
    rows = tuple(
        max(max(sum(own.away[way][side] for own in link) for side in (0, 1)) / len(link) for link in links)
        for way in (0, 1)
    )
    return LinkBytes(ids, (rows[0], rows[1]), (lanes[0], lanes[1]), _exchanges(layout, batch, formats))


@dataclass(frozen=True)
class _RankBytes:
    """Of one rank: ids to other hosts; rows to other hosts by direction, sent and received; inside the host."""

    ids: int
    away: tuple[tuple[int, int], tuple[int, int]]
    lanes: tuple[int, int]


def _exchanges(layout: Layout, batch: int, formats: Formats) -> Exchanges:
    """Of a rank; all take part in as many."""
    topology = layout.topology
    sizes = {group: len(group_ranks(topology, 0, group)) for group in get_args(Group)}
    costs = [cost for cost in _costs(layout, 0, batch, formats) if cost.phase == "forward" and sizes[cost.group] > 1]
    lanes = [_carries_ids(cost) for cost in costs if cost.group in INSIDE]
    others = [_carries_ids(cost) for cost in costs if cost.group not in INSIDE]
    machines = topology.by_machine
    return Exchanges(
        ids=sum(lanes) + sum(others),
        rows=others.count(False),
        lanes=lanes.count(False),
        sums=(machines.hosts > 1) + (machines.ranks_per_host > 1),
    )


def _kinds(layout: Layout) -> list[tuple[object, ...]]:
    """For each rank what it has in common with those that are alike."""
    topology, needs = layout.topology, layout.needs
    owned: list[list[float]] = []
    for need in needs or ():
        owned += _by_rank(need.rank, topology) + _by_rank(need.host, topology)
    # Unless everybody asks an owner for as many rows, no two ranks are alike.
    alone = bool(layout.groups) and (needs is None or not all(_even(need) for need in needs))
    found = []
    for rank in range(topology.world_size):
        host = topology.host_of(rank)
        kind: list[object] = [own[rank] for own in (layout.rank_widths, layout.rank_gradients) if own]
        kind += [own[host] for own in (layout.host_widths, layout.host_gradients) if own]
        kind += [own[rank] for own in owned]
        found.append((*kind, rank if alone else -1))
    return found


def _even(need: Needs) -> bool:
    return isinstance(need.rank, ByOwner) and isinstance(need.host, ByOwner)


def _by_rank(rows: Mapping[tuple[int, int], float], topology: Topology) -> list[list[float]]:
    """For each rank what it is asked for by the first who asks, and what all owners of its lane are."""
    own = [rows.get((0, rank), 0.0) for rank in range(topology.world_size)]
    machines = topology.by_machine
    lanes = [sum(own[peer] for peer in machines.peers_of(lane)) for lane in range(machines.ranks_per_host)]
    return [own, [lanes[machines.lane_of(rank)] for rank in range(topology.world_size)]]


def _rank_bytes(layout: Layout, rank: int, batch: int, formats: Formats) -> _RankBytes:
    swapped = {group: (back, out) for group, (out, back) in formats.items()}
    sent = _costs(layout, rank, batch, formats)
    # What arrives forward is what would go back, if gradients came for all of it; and what arrives backward is what
    # was sent, but for what is frozen.
    arriving = _costs(replace(layout, rank_gradients=None, host_gradients=None), rank, batch, swapped, as_trained=True)
    returning = _costs(_trained(layout), rank, batch, swapped)
    pairs = ((sent, "forward", arriving, "backward"), (sent, "backward", returning, "forward"))
    away, lanes = [], []
    for own, phase, mirror, other in pairs:
        away.append((_rows(own, phase, "other_hosts"), _rows(mirror, other, "other_hosts")))
        lanes.append(max(_rows(own, phase, "same_host"), _rows(mirror, other, "same_host")))
    ids = sum(cost.other_hosts for cost in sent if _carries_ids(cost))
    return _RankBytes(ids, (away[0], away[1]), (lanes[0], lanes[1]))


def _trained(layout: Layout) -> Layout:
    """Only what gradients go back for."""
    on = [number for number, group in enumerate(layout.groups) if group.trained]
    return replace(
        layout,
        rank_widths=layout.rank_gradients or layout.rank_widths,
        host_widths=layout.host_gradients or layout.host_widths,
        groups=tuple(layout.groups[number] for number in on),
        needs=None if layout.needs is None else tuple(layout.needs[number] for number in on),
    )


def _costs(layout: Layout, rank: int, batch: int, formats: Formats, as_trained: bool = False) -> list[ExchangeCost]:
    topology, costs = layout.topology, []
    if layout.groups:
        ends = ("world",) if layout.route == "flat" else ("peers", "lanes")
        groups = ends if layout.route == "flat" else groups_of_rows_once(topology)
        form_of = {group: formats[end] for group, end in zip(groups, ends, strict=True)}
        named = {f"{own.name}.{group}": form for own in layout.groups for group, form in form_of.items()}
        slots, needs = layout.distinct_slots, layout.needs
        costs += distinct_costs(layout.groups, slots, topology, rank, batch, named, as_trained, needs)
    if layout.rank_widths:
        hosts = layout.host_widths or (0,) * topology.hosts
        costs += exchange_costs(
            layout.slots, layout.rank_widths, hosts, topology, rank, batch, layout.route, formats=formats,
            rank_gradients=layout.rank_gradients, host_gradients=layout.host_gradients,
        )  # fmt: skip
    return costs


def _carries_ids(cost: ExchangeCost) -> bool:
    return cost.name.startswith(("index.", "requests."))


def _rows(costs: Sequence[ExchangeCost], phase: str, where: str) -> int:
    return sum(getattr(c, where) for c in costs if c.phase == phase and not _carries_ids(c))
