"""A training step as tasks: what a rank does, in the order of the dependencies, and how long it takes.

Resources are the accelerator (``compute``), links inside the host (``lanes``) and the rank's link to other hosts
(``nic``). A step is a batch forward and backward, with the ids of the next batch on their way beside it:

* hierarchical: lookup, lanes, shuffle, tower, peers, dense forward and backward, and all of it the other way round;
* flat: lookup, one exchange between all ranks, dense forward and backward, the exchange back, update.

With micro-blocks all between lookup and update runs once per block, backward in reverse order, so that the exchange of
one block goes on beside the computing of another. Where a host is several machines, its lanes exchange over the link to
other hosts as well.

The sums of the dense gradients start after the dense backward pass, and give way to exchanges that the pass waits
for, as do the ids of the next batch. What a step costs beside its FLOPs and bytes (launches, Python, elementwise
operations) is a time of its own, before the dense forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dmt_plugin.planner.time.timeline import Task, Timeline, schedule

COMPUTE, LANES, NIC = "compute", "lanes", "nic"
EXCHANGES = ("rows out", "rows back", "lanes out", "lanes back", "machines out", "machines back")
"""Exchanges of embeddings and of their gradients, which the pass waits for."""


@dataclass(frozen=True)
class Exchanges:
    """How many exchanges a rank takes part in, of groups of more than one.

    Attributes:
        ids: for the ids of a batch.
        rows: between hosts (on the flat route: all ranks), of one micro-block and direction.
        lanes: inside the host, of one micro-block and direction.
        sums: to sum gradients.
    """

    ids: int = 0
    rows: int = 0
    lanes: int = 0
    sums: int = 0


@dataclass(frozen=True)
class Load:
    """What a rank does in one step; forward and backward where there are two.

    Exchanges end when the busiest link is done, so that their bytes are that link's.

    Attributes:
        ids: bytes of ids to other hosts.
        lookup: bytes that the lookup reads and writes; the update moves twice as many.
        rows: bytes over the busiest link to other hosts.
        lanes: bytes over the busiest link inside a host; none on the flat route, where these go beside ``rows``.
        shuffle: bytes that are reordered each way between lanes and tower.
        tower: FLOPs of the tower modules.
        dense: FLOPs of the dense part.
        sums: bytes that it sends to other hosts, or around the ring over all ranks, to sum gradients.
        machines: bytes of the lanes' exchange that leave a machine, where a host is several.
        sums_inside: bytes that it sends to other lanes to sum gradients.
        update: bytes that the update of tables moves; None for twice those of the lookup.
        blocks: micro-blocks.
        coded: whether the exchange of lanes, and that between hosts, has a wire format that takes time to make.
        exchanges: how many; each costs something where ranks compute on processor cores.
        numbered: ids of rows that travel once, and distinct rows that the rank, and its part of the host, asks for;
            they cost something where ranks compute on processor cores.
    """

    ids: float
    lookup: float
    rows: tuple[float, float]
    dense: tuple[float, float]
    sums: float
    lanes: tuple[float, float] = (0.0, 0.0)
    shuffle: float = 0.0
    tower: tuple[float, float] = (0.0, 0.0)
    machines: tuple[float, float] = (0.0, 0.0)
    sums_inside: float = 0.0
    update: float | None = None
    blocks: int = 1
    coded: tuple[bool, bool] = (False, False)
    exchanges: Exchanges = field(default_factory=Exchanges)
    numbered: float = 0.0


@dataclass(frozen=True)
class Rates:
    """How fast a rank is.

    Attributes:
        flops: FLOP/s.
        memory: bytes/s of gathers and copies.
        rows: bytes/s of the exchange between hosts.
        ids: bytes/s of ids.
        lanes: bytes/s inside the host.
        sums: bytes/s of the sums.
        fixed: seconds that every step takes beside its FLOPs and bytes.
        exchange: seconds that an exchange takes beside its bytes.
        codec: seconds that making and reading a wire format takes, of one exchange.
    """

    flops: float
    memory: float
    rows: float
    ids: float
    lanes: float
    sums: float
    fixed: float
    exchange: float = 0.0
    codec: float = 0.0


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step.

    Attributes:
        seconds: from start to end.
        compute: in which the accelerator works.
        exposed: in which an exchange of embeddings runs and the accelerator does nothing.
        timeline: of all tasks.
        tasks: what was scheduled.
    """

    seconds: float
    compute: float
    exposed: float
    timeline: Timeline
    tasks: tuple[Task, ...]

    def exposed_by(self) -> dict[str, float]:
        """By exchange the seconds in which it runs and the accelerator does nothing."""
        found = {name: self.timeline.exposed(_of(self.tasks, (name,)), COMPUTE) for name in EXCHANGES}
        return {name: seconds for name, seconds in found.items() if seconds}

    def critical(self) -> dict[str, float]:
        """Seconds by part of the step, of the chain of tasks that each began when the one before ended."""
        found: dict[str, float] = {}
        for name in self.timeline.critical(self.tasks):
            start, end = self.timeline.spans[name]
            found[part_of(name)] = found.get(part_of(name), 0.0) + end - start
        return found


def part_of(task: str) -> str:
    """The part of a step that a task is, whichever block it is of."""
    return task.rpartition(" ")[0] if task[-1].isdigit() else task


def tasks_of(load: Load, rates: Rates) -> list[Task]:
    """The tasks of a step; see the module."""
    lookup = load.lookup / rates.memory
    found = [Task("lookup", COMPUTE, lookup), Task("next ids", NIC, load.ids / rates.ids, urgency=2)]
    blocks = range(load.blocks)

    def chain(block: int, before: Sequence[str], parts: Sequence[tuple[str, str, float]]) -> str:
        """The parts of a block, one after the other; the name of the last."""
        after = tuple(before)
        for name, on, seconds in parts:
            if seconds:
                own = name if load.blocks == 1 else f"{name} {block + 1}"
                found.append(Task(own, on, seconds / load.blocks, after))
                after = (own,)
        return after[0]

    def exchange(name: str, on: str, size: float, rate: float, coded: bool = False) -> list[tuple[str, str, float]]:
        if not size:
            return []
        codec = [(f"{name} format", COMPUTE, load.blocks * rates.codec)] if coded else []
        return [*codec, (name, on, size / rate + load.blocks * rates.exchange)]

    def rows(way: int, name: str) -> list[tuple[str, str, float]]:
        return exchange(f"rows {name}", NIC, load.rows[way], rates.rows, load.coded[1])

    def lanes(way: int, name: str) -> list[tuple[str, str, float]]:
        return [
            *exchange(f"lanes {name}", LANES, load.lanes[way], rates.lanes, load.coded[0]),
            *exchange(f"machines {name}", NIC, load.machines[way], rates.ids),
        ]

    forward = [
        *lanes(0, "out"),
        ("shuffle", COMPUTE, load.shuffle / rates.memory),
        ("tower", COMPUTE, load.tower[0] / rates.flops),
        *rows(0, "out"),
        ("fixed", COMPUTE, rates.fixed),
        ("dense", COMPUTE, load.dense[0] / rates.flops),
    ]
    done = [chain(block, ("lookup",), forward) for block in blocks]
    back = [chain(b, done, [("dense backward", COMPUTE, load.dense[1] / rates.flops)]) for b in reversed(blocks)]
    ready = tuple(back)
    if load.sums_inside:
        found.append(Task("sums inside", LANES, load.sums_inside / rates.lanes, ready, urgency=1))
        ready = ("sums inside",)
    found.append(Task("sums", NIC, load.sums / rates.sums, ready, urgency=1))
    behind = [
        *rows(1, "back"),
        ("tower backward", COMPUTE, load.tower[1] / rates.flops),
        ("shuffle back", COMPUTE, load.shuffle / rates.memory),
        *lanes(1, "back"),
    ]
    ends = [chain(b, (before,), behind) for b, before in zip(reversed(blocks), back, strict=True)]
    update = 2 * lookup if load.update is None else load.update / rates.memory
    found.append(Task("update", COMPUTE, update, tuple(dict.fromkeys(ends))))
    return found


def _of(tasks: Sequence[Task], parts: Sequence[str]) -> list[str]:
    return [task.name for task in tasks if part_of(task.name) in parts]


def step_time(load: Load, rates: Rates) -> StepTime:
    """How long a step takes.

    Args:
        load: of a rank.
        rates: of its hardware.
    """
    tasks = tuple(tasks_of(load, rates))
    timeline = schedule(tasks)
    exposed = timeline.exposed(_of(tasks, EXCHANGES), COMPUTE)
    return StepTime(timeline.seconds, timeline.busy(COMPUTE), exposed, timeline, tasks)
