"""Bytes of the exchanges of rows that travel once, in one training step on one rank.

They depend on how many rows of each owner are distinct: in a rank's batch (``n_rank``), and in the batches of its
host's ``L`` lanes together (``n_host``). Where nobody has counted them, the most that can be is taken: every id another
row, and no more than the owner has. Of rows that travel for every id both are numbers of ids. With ``b`` bytes of a row
on the wire, ``H`` hosts, and codes of 4 or 8 bytes:

* requests: to the lanes ``n_rank`` codes of each of their owners' rows, to the peers ``n_host`` of each of theirs;
* rows: an owner sends ``n_host * b`` to each other host, a lane ``n_rank * b`` to each other lane that asked;
* gradients: the same numbers of rows the other way;
* on the flat route all of it goes between ranks, with ``n_rank``;
* where a host consists of several machines, a machine takes the place of the host in all of this.

Micro-blocks change none of this but the headers, which count the codes of each block: a row goes once per batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dmt_plugin.comm.distinct.row_groups import RowGroup
from dmt_plugin.comm.formats import Format, row_bytes
from dmt_plugin.comm.input_dist.ids import IdSlot
from dmt_plugin.planner.cost import ExchangeCost
from dmt_plugin.planner.load import ASSUMED_IDS
from dmt_plugin.topology.group_names import groups_of_rows_once
from dmt_plugin.topology.shape import Topology

_HEADER_WORD = 8
_FAULT_WORDS = 4


class ByOwner(Mapping[tuple[int, int], float]):
    """Rows of each owner, the same for everybody who asks.

    Args:
        askers: their number.
        rows: by owner.
    """

    def __init__(self, askers: int, rows: Sequence[float]) -> None:
        self._askers, self._rows = askers, tuple(rows)

    def rounded(self) -> ByOwner:
        """In whole rows."""
        return ByOwner(self._askers, [round(count) for count in self._rows])

    def __getitem__(self, key: tuple[int, int]) -> float:
        return self._rows[key[1]]

    def __len__(self) -> int:
        return self._askers * len(self._rows)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return ((asker, owner) for asker in range(self._askers) for owner in range(len(self._rows)))


@dataclass(frozen=True)
class Needs:
    """Distinct rows of one group of tables, by who asks and who owns them.

    Attributes:
        rank: ``rank[asking rank, owner]`` in a rank's batch.
        host: ``host[asking host, owner]`` in all batches of a host (of a machine, where hosts have several).
    """

    rank: Mapping[tuple[int, int], float]
    host: Mapping[tuple[int, int], float]


def most_needs(groups: Sequence[RowGroup], slots: Sequence[IdSlot], topology: Topology, batch: int) -> list[Needs]:
    """By group the most rows that can be asked for, whoever asks.

    Args:
        groups: the tables.
        slots: id streams that their lookups read.
        topology: hosts and lanes.
        batch: samples per rank.
    """
    found = []
    for group in groups:
        ids = [0.0] * len(group.tables)
        for read in group.reads:
            ids[read.table] += batch * (slots[read.slot].hotness or ASSUMED_IDS)
        machines = topology.by_machine
        world, hosts, lanes = topology.world_size, machines.hosts, machines.ranks_per_host
        of_rank, of_host = [0.0] * world, [0.0] * world
        for table, wanted in zip(group.tables, ids, strict=True):
            for part in table.parts:
                share = wanted * part.rows / table.rows
                most = part.rows if group.once else math.inf
                of_rank[part.rank] += min(share, most)
                of_host[part.rank] += min(lanes * share, most)
        found.append(Needs(ByOwner(world, of_rank), ByOwner(hosts, of_host)))
    return found


def distinct_costs(
    groups: Sequence[RowGroup],
    slots: Sequence[IdSlot],
    topology: Topology,
    rank: int,
    batch: int,
    formats: Mapping[str, tuple[Format, Format]],
    as_trained: bool = False,
    needs: Sequence[Needs] | None = None,
    blocks: int = 1,
) -> list[ExchangeCost]:
    """The costs, at most, of one step on one rank, all ranks having ``batch`` samples.

    Args:
        groups: the tables.
        slots: id streams that their lookups read.
        topology: hosts and lanes.
        rank: the rank.
        batch: samples per rank.
        formats: wire formats of each exchange of rows by name, forward and backward.
        as_trained: as if no table were frozen.
        needs: by group the distinct rows that were counted (:mod:`dmt_plugin.model.row_counts`): then the
            costs are those that are to be expected.
        blocks: micro-blocks of a batch.
    """
    if not groups:
        return []
    trained = [group.name for group in groups if group.trained or as_trained]
    costs = _Costs(groups, slots, topology, rank, batch, formats, needs, blocks).found()
    return [cost for cost in costs if cost.phase == "forward" or cost.name.split(".")[0] in trained]


class _Costs:
    def __init__(
        self,
        groups: Sequence[RowGroup],
        slots: Sequence[IdSlot],
        topology: Topology,
        rank: int,
        batch: int,
        formats: Mapping[str, tuple[Format, Format]],
        needs: Sequence[Needs] | None,
        blocks: int,
    ) -> None:
        self.blocks = blocks
        self.far, self.near = groups_of_rows_once(topology)
        self.groups, self.topology, self.rank, self.formats = groups, topology.by_machine, rank, formats
        self.host = self.topology.host_of(rank)
        self.flat = any(name.endswith(".world") for name in formats)
        self.needs = needs or most_needs(groups, slots, topology, batch)
        spans = [max([1, *group.stacks.values()]) for group in groups]
        self.word = 8 if any(topology.world_size * span >= 2**31 for span in spans) else 4

    def found(self) -> list[ExchangeCost]:
        topology, me = self.topology, self.rank
        owners = range(topology.world_size)
        if self.flat:
            others = [r for r in owners if r != me]
            costs = self._requests("world", others, {r: sum(need.rank[me, r] for need in self.needs) for r in others})
            for group, need in zip(self.groups, self.needs, strict=True):
                out, back = {r: need.rank[r, me] for r in others}, {r: need.rank[me, r] for r in others}
                costs += self._rows(f"{group.name}.world", "world", group.width, out, back)
            return costs
        costs = []
        near = [r for r in topology.lanes_of(me) if r != me]
        peers = [r for r in topology.peers_of(me) if r != me]
        of_lane = {r: topology.peers_of(r) for r in (*near, me)}
        if near:
            codes = {r: sum(need.rank[me, o] for need in self.needs for o in of_lane[r]) for r in near}
            costs += self._requests(self.near, near, codes)
        if peers:
            codes = {r: sum(need.host[self.host, r] for need in self.needs) for r in peers}
            costs += self._requests(self.far, peers, codes)
        for group, need in zip(self.groups, self.needs, strict=True):
            out = {r: need.host[topology.host_of(r), me] for r in peers}
            back = {r: need.host[self.host, r] for r in peers}
            costs += self._rows(f"{group.name}.{self.far}", self.far, group.width, out, back)
            if near:
                out = {r: sum(need.rank[r, o] for o in of_lane[me]) for r in near}
                back = {r: sum(need.rank[me, o] for o in of_lane[r]) for r in near}
                costs += self._rows(f"{group.name}.{self.near}", self.near, group.width, out, back)
        return costs

    def _requests(self, group: str, members: Sequence[int], codes: Mapping[int, float]) -> list[ExchangeCost]:
        words = _FAULT_WORDS + len(self.groups) * self.blocks
        header = dict.fromkeys(members, _HEADER_WORD * words)
        sent = {r: self.word * n for r, n in codes.items()}
        name = f"requests.{group}"
        return [
            self._cost(f"{name}.header", group, "forward", f"{words} words to each", header),
            self._cost(f"{name}.codes", group, "forward", f"codes, int{8 * self.word}", sent),
        ]

    def _rows(
        self, name: str, group: str, width: int, out: Mapping[int, float], back: Mapping[int, float]
    ) -> list[ExchangeCost]:
        costs = []
        for phase, rows, form in zip(("forward", "backward"), (out, back), self.formats[name], strict=True):
            shown = f"(distinct rows, {width})" + ("" if form == "fp32" else f" {form}")
            size = row_bytes(form, width)
            costs.append(self._cost(name, group, phase, shown, {r: n * size for r, n in rows.items()}))
        return costs

    def _cost(self, name: str, group: str, phase: str, shape: str, size: Mapping[int, float]) -> ExchangeCost:
        away = sum(b for r, b in size.items() if self.topology.host_of(r) != self.host)
        near = sum(b for r, b in size.items() if self.topology.host_of(r) == self.host)
        return ExchangeCost(name, group, phase, shape, round(away), round(near))
