"""A training step on ranks that compute on processor cores, which they share with each other and with the exchanges.

An accelerator computes while a network card sends. A core does both: whatever a rank sends or receives is copied by a
core, and every exchange costs one some time. With more ranks than cores a rank also waits for its neighbours, and what
one waits for on the link is hidden by what another computes. So all ranks that share cores are scheduled together:

* compute tasks of all ranks run on ``cores`` servers, one task of a rank at a time on each;
* the link of a host does one exchange at a time, of all its lanes together;
* an exchange is read when all ranks of its group have sent.

Hosts with cores of their own are alike, and one stands for all. Where all hosts are on one machine (an emulated
cluster) every rank is scheduled. Parts and their order are those of :mod:`dmt_plugin.planner.time.step`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dmt_plugin.planner.time.step import COMPUTE, EXCHANGES, NIC, Load, StepTime, part_of
from dmt_plugin.planner.time.timeline import Task, schedule
from dmt_plugin.topology.shape import Topology

_ENTRY_PER_CODED = 4
"""Bytes of an fp32 entry for each of int8, which making and reading the format goes through."""


@dataclass(frozen=True)
class Cores:
    """How fast ranks on processor cores are.

    Attributes:
        cores: of a host, or of all hosts together.
        together: whether all hosts share them: a cluster that is emulated on one machine.
        flops: FLOP/s of a core.
        moved: bytes/s that a core reads, writes, sends or receives.
        link: bytes/s that the exchanges reach on a host's link to others.
        exchange: seconds of a core that an exchange takes, beside its bytes, to how many ranks it may be.
        fixed: seconds of a core that every step of a rank takes beside all that.
        row: seconds of a core for each id, and each distinct row, of rows that travel once.
    """

    cores: int
    together: bool
    flops: float
    moved: float
    link: float
    exchange: float
    fixed: float
    row: float = 0.0


def step_on_cores(load: Load, rates: Cores, topology: Topology, *, flat: bool) -> StepTime:
    """How long a step takes.

    Args:
        load: of a rank.
        rates: of the cores and of a host's link.
        topology: hosts and lanes.
        flat: whether rows go from every rank to every other.

    Returns:
        The time, with ``compute`` in seconds of a core for one rank.
    """
    shape = topology if rates.together else Topology(1, topology.ranks_per_host)
    tasks = tuple(_Step(load, rates, shape, flat).tasks())
    timeline = schedule(tasks, {COMPUTE: rates.cores})
    exposed = timeline.exposed([task.name for task in tasks if part_of(task.name) in EXCHANGES], COMPUTE)
    return StepTime(timeline.seconds, timeline.busy(COMPUTE) / shape.world_size, exposed, timeline, tasks)


class _Step:
    """The tasks of all ranks; every method returns, by rank, what comes next waits for."""

    def __init__(self, load: Load, rates: Cores, topology: Topology, flat: bool) -> None:
        self.load, self.rates, self.topology, self.flat = load, rates, topology, flat
        self.ranks = range(topology.world_size)
        self.found: list[Task] = []

    def tasks(self) -> list[Task]:
        load, rates = self.load, self.rates
        blocks = range(load.blocks)
        nothing = [() for _ in self.ranks]
        lookup = self._compute("lookup", 0, load.lookup / rates.moved, nothing)
        ids = self._compute("ids", 0, load.exchanges.ids * rates.exchange + load.ids / rates.moved, nothing, urgency=2)
        self._send("next ids", 0, load.ids, ids, urgency=2)
        done = [self._forward(block, lookup) for block in blocks]
        ready = [tuple(name for block in done for name in block[rank]) for rank in self.ranks]
        each = load.dense[1] / rates.flops + rates.fixed / 2
        back = [(b, self._compute("dense backward", b, each / load.blocks, ready)) for b in reversed(blocks)]
        self._sums([tuple(name for _, block in back for name in block[rank]) for rank in self.ranks])
        ends = [self._backward(block, before) for block, before in back]
        update = 2 * load.lookup if load.update is None else load.update
        ended = [tuple(name for block in ends for name in block[rank]) for rank in self.ranks]
        self._compute("update", 0, update / rates.moved, ended)
        return self.found

    def _forward(self, block: int, after: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        load, rates, share = self.load, self.rates, 1 / self.load.blocks
        after = self._lanes("out", block, 0, after)
        after = self._compute("shuffle", block, share * self._shuffle(), after)
        after = self._compute("tower", block, share * load.tower[0] / rates.flops, after)
        after = self._rows("out", block, 0, after)
        after = self._compute("fixed", block, share * rates.fixed / 2, after)
        return self._compute("dense", block, share * load.dense[0] / rates.flops, after)

    def _backward(self, block: int, after: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        load, rates, share = self.load, self.rates, 1 / self.load.blocks
        after = self._rows("back", block, 1, after)
        after = self._compute("tower backward", block, share * load.tower[1] / rates.flops, after)
        after = self._compute("shuffle back", block, share * self._shuffle(), after)
        return self._lanes("back", block, 1, after)

    def _shuffle(self) -> float:
        """Seconds for one direction; which rows are distinct is found, and what comes of it undone, half each way."""
        return self.load.shuffle / self.rates.moved + self.load.numbered * self.rates.row / 2

    def _rows(self, way: str, block: int, side: int, after: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        load = self.load
        return self._exchange(
            f"rows {way}", block, load.rows[side], load.rows[side], load.exchanges.rows, load.coded[1], after, self.flat
        )

    def _lanes(self, way: str, block: int, side: int, after: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
        load = self.load
        size, away = load.lanes[side] + load.machines[side], load.machines[side]
        return self._exchange(
            f"lanes {way}", block, size, away, load.exchanges.lanes, load.coded[0], after, inside=True
        )

    def _exchange(
        self,
        part: str,
        block: int,
        size: float,
        away: float,
        count: int,
        coded: bool,
        after: Sequence[tuple[str, ...]],
        everyone: bool = False,
        inside: bool = False,
    ) -> list[tuple[str, ...]]:
        """Sent by every rank, carried by the links, and read when all of the group have sent.

        Args:
            part: its name.
            block: micro-block.
            size: bytes of a rank.
            away: of these over the link to other hosts.
            count: exchanges that go together.
            coded: whether it has a wire format that takes time to make.
            after: what each rank waits for.
            everyone: whether all ranks exchange, and not those of one lane.
            inside: whether the ranks of a host exchange.
        """
        if not size:
            return list(after)
        rates, topology, share = self.rates, self.topology, 1 / self.load.blocks
        moved = size * (1 + (_ENTRY_PER_CODED if coded else 0))
        each = share * moved / rates.moved + count * rates.exchange / 2
        sent = self._compute(f"{part} sent", block, each, after)
        sent = self._send(part, block, share * away, sent)
        groups = [topology.lanes_of(rank) if inside else topology.peers_of(rank) for rank in self.ranks]
        if everyone:
            groups = [tuple(self.ranks) for _ in self.ranks]
        arrived = [tuple(dict.fromkeys(name for other in group for name in sent[other])) for group in groups]
        return self._compute(f"{part} read", block, each, arrived)

    def _send(
        self, part: str, block: int, size: float, after: Sequence[tuple[str, ...]], urgency: int = 0
    ) -> list[tuple[str, ...]]:
        """Over the links of the hosts, of all lanes of a host at once."""
        if not size:
            return list(after)
        lanes = self.topology.ranks_per_host
        found: list[tuple[str, ...]] = []
        for host in range(self.topology.hosts):
            own = after[host * lanes : (host + 1) * lanes]
            task = Task(
                f"{part} {block + 1}.{host}", f"{NIC} {host}", lanes * size / self.rates.link,
                tuple(name for names in own for name in names), urgency,
            )  # fmt: skip
            self.found.append(task)
            found += [(task.name,)] * lanes
        return found

    def _compute(
        self, part: str, block: int, seconds: float, after: Sequence[tuple[str, ...]], urgency: int = 0
    ) -> list[tuple[str, ...]]:
        if not seconds:
            return list(after)
        made = [Task(f"{part} {block + 1}.{rank}", COMPUTE, seconds, after[rank], urgency) for rank in self.ranks]
        self.found += made
        return [(task.name,) for task in made]

    def _sums(self, after: Sequence[tuple[str, ...]]) -> None:
        load, rates = self.load, self.rates
        size = load.sums + load.sums_inside
        if size:
            seconds = 2 * size / rates.moved + load.exchanges.sums * rates.exchange
            self._send("sums", 0, load.sums, self._compute("sums sent", 0, seconds, after, urgency=1), urgency=1)
