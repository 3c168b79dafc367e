"""The kinds of cases, and how many of each half an hour on two cores has."""

from __future__ import annotations

from benchmarks.faults import ids, kills, plans, records, sections
from benchmarks.faults.judge import Kind

KINDS = {
    kind.name: kind
    for kind in (
        Kind("configurations", 'the "dmt" section and the file that holds it', 4000, sections.run),
        Kind("plans", "plan files", 3000, plans.run),
        Kind("ids", "batches of simulated ranks", 2000, ids.run),
        Kind("records", "records of runs", 600, records.run),
        Kind("kills", "four ranks, killed one after the other", 5, kills.run, False, True, 400.0),
        Kind("kills-behind", "a rank, killed in an asynchronous save", 5, kills.run_behind, False, True, 150.0),
    )
}
