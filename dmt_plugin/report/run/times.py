"""How long the steps of a recorded run took, and in how much of that a rank computed: what a time model is fitted to.

1. A step takes as long as its slowest rank says. Of all steps the median counts: evaluations, saves and a slow loader
   are outside of most of them. Steps before which the script did something else for long are left out.
2. On an accelerator a rank computes while it is in one of the engine's calls and waits for no exchange. On processor
   cores, which others use as well, it is what the process had of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dmt_plugin.core.errors import ReportError
from dmt_plugin.report.run.records import Run

_LONG = 3.0
"""So many times the median before a step, and it is left out."""

_LEAST_STEPS = 3


@dataclass(frozen=True)
class RunTimes:
    """Times of a step.

    Attributes:
        seconds: median over the steps.
        quarters: the first and the third quartile.
        busy: seconds in which a rank computes, mean over ranks of the median over steps.
        records: how many were counted.
    """

    seconds: float
    quarters: tuple[float, float]
    busy: float
    records: int


def times_of(run: Run, name: str) -> RunTimes:
    """The times of a run.

    Args:
        run: its records.
        name: of it, for messages.

    Raises:
        ReportError: too few records, or records of before that have no seconds on the processor.
    """
    on_cores = str(run.header.get("device", "cpu")).startswith("cpu")
    by_rank = {rank: {record["step"]: record for record in one.warm} for rank, one in run.ranks.items()}
    steps = sorted(set.intersection(*(set(own) for own in by_rank.values())))
    kept = [step for step in steps if not _interrupted(step, by_rank)]
    if len(kept) < _LEAST_STEPS:
        raise ReportError(
            f"{name}: {len(kept)} record(s) that all ranks wrote, behind the first; at least {_LEAST_STEPS} are needed "
            'to say how long a step takes. Train for longer, or write records more often ("report": {"every": 1}).'
        )
    if on_cores and any("cpu_s" not in own[step] for own in by_rank.values() for step in kept):
        raise ReportError(f"{name}: was recorded by an earlier version, without cpu_s; record it again.")
    slowest = [max(own[step]["seconds"] for own in by_rank.values()) for step in kept]
    busy = [statistics.median(_busy(own[step], on_cores) for step in kept) for own in by_rank.values()]
    first, middle, third = statistics.quantiles(slowest, n=4, method="inclusive")
    return RunTimes(middle, (first, third), statistics.fmean(busy), len(kept))


def _interrupted(step: int, by_rank: Mapping[int, Mapping[int, Mapping[str, Any]]]) -> bool:
    """Whether a rank did something else before the step, for longer than it usually does and a tenth of a step."""
    for own in by_rank.values():
        between = own[step]["parts_s"].get("between", 0.0)
        usual = statistics.median(record["parts_s"].get("between", 0.0) for record in own.values())
        took = statistics.median(record["seconds"] for record in own.values())
        if between > _LONG * usual and between - usual > 0.1 * took:
            return True
    return False


def _busy(record: Mapping[str, Any], on_cores: bool) -> float:
    if on_cores:
        return float(record["cpu_s"])
    parts = sum(seconds for part, seconds in record["parts_s"].items() if part != "between")
    waited = sum(own.get("waited_s", 0.0) for own in record["exchanges"].values())
    return max(parts - waited, 1e-9)
