"""What ``dmt plan --simulate`` shows: exchanges with their bytes, the order of a rank, and the parts of a step."""

from __future__ import annotations

from dmt_plugin.planner.time.devices import GIGA
from dmt_plugin.planning.simulation import Simulation
from dmt_plugin.report.parts.tables import Column, Table


def headline(ran: Simulation) -> str:
    """What was simulated, and whether all agrees."""
    ranks = ran.topology.world_size
    made = (
        f"the graphs of all {ranks:,} ranks"
        if len(ran.made) == ranks
        else f"one rank's graph of each of {len(ran.made)} kinds of alike ranks, of {ranks:,}"
    )
    begin = f"Simulated {ran.choice} on {ran.topology}, {ran.samples:,} samples per rank: {made}."
    if ran.differences:
        return f"{begin} They do not agree: {len(ran.differences)} difference(s)."
    pairs = sum(own.pairs for own in ran.exchanges)
    return (
        f"{begin} In {len(ran.exchanges)} exchanges and {pairs:,} pairs of ranks each sends what the other waits for, "
        "all in one order, and every rank's bytes are those of the formulas."
    )


def exchanges_table(ran: Simulation) -> Table:
    """Bytes of each exchange."""
    rows = [
        {
            "name": own.name,
            "phase": own.phase,
            "group": own.group,
            "total": own.total / GIGA,
            "away": own.other_hosts / GIGA,
            "busiest": own.busiest / GIGA,
            "pairs": own.pairs,
        }
        for own in ran.exchanges
    ]
    columns = [
        Column("name", "exchange"),
        Column("phase", "phase", text=True),
        Column("group", "among", text=True),
        Column("total", "all ranks", ".4f", "GB"),
        Column("away", "between hosts", ".4f", "GB"),
        Column("busiest", "busiest rank, between hosts", ".4f", "GB"),
        Column("pairs", "pairs compared", ",d"),
    ]
    notes = [f"Each rank, in this order: {', '.join(ran.order)}."]
    return Table(columns, rows, [*notes, *ran.differences])


def schedule_table(ran: Simulation) -> Table:
    """When each part of a step runs."""
    rows = [
        {"task": task, "on": on, "start": start, "end": end}
        for task, on, start, end in sorted(ran.tasks, key=lambda own: own[2:])
        if end > start
    ]
    columns = [
        Column("task", "part"),
        Column("on", "on", text=True),
        Column("start", "from", ".2f", "ms"),
        Column("end", "to", ".2f", "ms"),
    ]
    notes = ["compute: the accelerator; nic: its link to other hosts; lanes: links inside its host."]
    return Table(columns, rows, notes)
