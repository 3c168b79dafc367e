"""Which ranks are alike: they hold equally much, and stand beside equally many ranks of each kind in every group.

1. Ranks that look up, own and send equally much begin as one kind: entries per sample, ids, distinct rows, entries of
   their host's towers.
2. A kind falls apart where its ranks have other kinds among the lanes of their host, or among their peers; again, until
   none does. What any rank of a kind sends to ranks of another kind then holds for all of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from dmt_plugin.comm.input_dist.ids import IdSlot
from dmt_plugin.model.memory import sizes_of
from dmt_plugin.model.placed import PlacedGraph
from dmt_plugin.planner.distinct_cost import Needs
from dmt_plugin.topology.shape import Topology


def kinds_of(placed: PlacedGraph, needs: Sequence[Needs]) -> tuple[int, ...]:
    """For each rank the number of its kind, from 0 in the order of the ranks.

    Args:
        placed: any rank's graph.
        needs: by group of tables the distinct rows that are asked for; the same number by everybody.
    """
    placement, topology = placed.placement, placed.topology
    towers = sizes_of(placed, 1).towers
    by_host: list[list[IdSlot]] = [[] for _ in range(topology.hosts)]
    by_rank: list[list[IdSlot]] = [[] for _ in range(topology.world_size)]
    for slot in placement.slots:
        by_host[slot.host].append(slot)
        for lane in slot.lanes:
            by_rank[topology.rank_of(slot.host, lane)].append(slot)
    kinds: list[Hashable] = []
    for rank in range(topology.world_size):
        host = topology.host_of(rank)
        widths = [own[rank] for own in (placement.rank_widths, placement.rank_gradients) if own]
        sent = [(c.width, c.trained) for c in placement.host_columns[host]] if placement.host_columns else []
        rows = [(need.rank[0, rank], need.host[0, rank]) for need in needs]
        ids = (_ids(by_host[host]), _ids(by_rank[rank]))
        kinds.append((*widths, tuple(sorted(sent)), ids, tuple(rows), towers.get(host)))
    return _settled(_numbered(kinds), topology)


def _ids(slots: Sequence[IdSlot]) -> tuple[Hashable, ...]:
    return tuple(sorted((slot.hotness or 0, slot.weighted) for slot in slots))


def _settled(kinds: tuple[int, ...], topology: Topology) -> tuple[int, ...]:
    while True:
        lanes = [_beside(kinds, topology.lanes_of(rank)) for rank in topology.peers_of(0)]
        peers = [_beside(kinds, topology.peers_of(rank)) for rank in topology.lanes_of(0)]
        finer = _numbered(
            [(kind, lanes[topology.host_of(rank)], peers[topology.lane_of(rank)]) for rank, kind in enumerate(kinds)]
        )
        if len(set(finer)) == len(set(kinds)):
            return kinds
        kinds = finer


def _beside(kinds: Sequence[int], ranks: Sequence[int]) -> Hashable:
    return tuple(sorted(Counter(kinds[rank] for rank in ranks).items()))


def _numbered(kinds: Sequence[Hashable]) -> tuple[int, ...]:
    numbers: dict[Hashable, int] = {}
    return tuple(numbers.setdefault(kind, len(numbers)) for kind in kinds)
