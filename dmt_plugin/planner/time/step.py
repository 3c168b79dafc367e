"""A training step as tasks: what a rank does, in the order of the dependencies, and how long it takes.

Resources are the accelerator (``compute``), links inside the host (``lanes``) and the rank's link to other hosts
(``nic``). A step is a batch forward and backward, with the ids of the next batch on their way beside it:

* hierarchical: lookup, lanes, shuffle, tower, peers, dense forward and backward, and all of it the other way round;
* flat: lookup, one exchange between all ranks, dense forward and backward, the exchange back, update.

The sums of the dense gradients start after the dense backward pass, and give way to exchanges that the pass waits
for, as do the ids of the next batch. What a step costs beside its FLOPs and bytes (launches, Python, elementwise
operations) is a time of its own, before the dense forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from dmt_plugin.planner.time.timeline import Task, Timeline, schedule

COMPUTE, LANES, NIC = "compute", "lanes", "nic"
EXCHANGES = ("rows out", "rows back", "lanes out", "lanes back")
"""Exchanges of embeddings and of their gradients, which the pass waits for."""


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
        sums: bytes that it sends to sum the dense gradients.
    """

    ids: float
    lookup: float
    rows: tuple[float, float]
    dense: tuple[float, float]
    sums: float
    lanes: tuple[float, float] = (0.0, 0.0)
    shuffle: float = 0.0
    tower: tuple[float, float] = (0.0, 0.0)


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
    """

    flops: float
    memory: float
    rows: float
    ids: float
    lanes: float
    sums: float
    fixed: float


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step.

    Attributes:
        seconds: from start to end.
        compute: in which the accelerator works.
        exposed: in which an exchange of embeddings runs and the accelerator does nothing.
        timeline: of all tasks.
    """

    seconds: float
    compute: float
    exposed: float
    timeline: Timeline


def tasks_of(load: Load, rates: Rates) -> list[Task]:
    """The tasks of a step; see the module."""
    lookup = load.lookup / rates.memory
    found = [Task("lookup", COMPUTE, lookup), Task("next ids", NIC, load.ids / rates.ids, urgency=2)]
    before = "lookup"

    def add(name: str, on: str, seconds: float) -> None:
        nonlocal before
        if seconds:
            found.append(Task(name, on, seconds, (before,)))
            before = name

    add("lanes out", LANES, load.lanes[0] / rates.lanes)
    add("shuffle", COMPUTE, load.shuffle / rates.memory)
    add("tower", COMPUTE, load.tower[0] / rates.flops)
    add("rows out", NIC, load.rows[0] / rates.rows)
    add("fixed", COMPUTE, rates.fixed)
    add("dense", COMPUTE, load.dense[0] / rates.flops)
    add("dense backward", COMPUTE, load.dense[1] / rates.flops)
    found.append(Task("sums", NIC, load.sums / rates.sums, (before,), urgency=1))
    add("rows back", NIC, load.rows[1] / rates.rows)
    add("tower backward", COMPUTE, load.tower[1] / rates.flops)
    add("shuffle back", COMPUTE, load.shuffle / rates.memory)
    add("lanes back", LANES, load.lanes[1] / rates.lanes)
    add("update", COMPUTE, 2 * lookup)
    return found


def step_time(load: Load, rates: Rates) -> StepTime:
    """How long a step takes.

    Args:
        load: of a rank.
        rates: of its hardware.
    """
    timeline = schedule(tasks_of(load, rates))
    return StepTime(timeline.seconds, timeline.busy(COMPUTE), timeline.exposed(EXCHANGES, COMPUTE), timeline)
