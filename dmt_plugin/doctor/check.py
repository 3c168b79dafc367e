"""One check: what was found, what was expected, what to change; and a time limit around it.

1. A check is a function that returns a ``Finding``; whatever it raises counts as failed, with the error as what was
   found.
2. ``run_limited`` runs it in a thread of its own and gives up after a limit: a check that hangs is a failed check. Its
   thread may still be stuck then, so whoever runs checks ends the process without waiting for threads.
3. ``merged`` folds the same check of all ranks into one: the worst status, and the ranks that say otherwise by number.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Status = Literal["ok", "skip", "warn", "fail"]
RISING: tuple[Status, ...] = ("ok", "skip", "warn", "fail")


@dataclass(frozen=True)
class Finding:
    """What a check says.

    Attributes:
        found: What there is.
        status: ``"ok"``, ``"skip"`` (could not be looked at), ``"warn"`` (training works, something is lost),
            ``"fail"``.
        expected: What should be there; empty where ``found`` is just that.
        change: What to do about it.
        data: Figures for ``--json``.
    """

    found: str
    status: Status = "ok"
    expected: str = ""
    change: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A finding with its name, the time it took, and whether its thread is still stuck in it."""

    name: str
    finding: Finding
    seconds: float
    stuck: bool = False

    @property
    def status(self) -> Status:
        """Of the finding."""
        return self.finding.status


def run_limited(name: str, check: Callable[[], Finding], limit_s: float, change: str = "") -> Check:
    """Run a check in a thread, no longer than ``limit_s`` seconds.

    Args:
        name: Of the check.
        check: What to run.
        limit_s: Its time limit, seconds.
        change: What to do if it does not come back.
    """
    said: list[Finding] = []
    started = time.monotonic()
    thread = threading.Thread(target=lambda: said.append(_told(check)), name=f"dmt-doctor-{name}", daemon=True)
    thread.start()
    thread.join(limit_s)
    seconds = time.monotonic() - started
    if said:
        return Check(name, said[0], seconds)
    hung = Finding(
        f"no answer within {limit_s:g} s",
        "fail",
        "an answer",
        change or "look for what holds it up, or allow more with --timeout",
    )
    return Check(name, hung, seconds, stuck=True)


def skipped(name: str, because: str) -> Check:
    """A check that was not run because another one failed."""
    return Check(name, Finding(f"not run, because {because} failed", "skip"), 0.0)


def worst(statuses: Sequence[Status]) -> Status:
    """The worst of several; ``"ok"`` for none."""
    return max(statuses, key=RISING.index, default="ok")


def merged(by_rank: Sequence[Check]) -> Check:
    """The same check of all ranks as one.

    Rank 0's words stand for all ranks that say the same; ranks that do worse than ``"ok"``, or say something else, are
    named.
    """
    groups: dict[tuple[Status, str, str, str], list[int]] = {}
    for rank, check in enumerate(by_rank):
        f = check.finding
        groups.setdefault((f.status, f.found, f.expected, f.change), []).append(rank)
    seconds = max(check.seconds for check in by_rank)
    stuck = any(check.stuck for check in by_rank)
    if len(groups) == 1:
        return Check(by_rank[0].name, by_rank[0].finding, seconds, stuck)
    leading = max(groups, key=lambda said: (RISING.index(said[0]), len(groups[said])))
    found = "; ".join(f"{ranks_in_words(ranks)}: {said[1]}" for said, ranks in groups.items())
    _, _, expected, change = leading
    finding = replace(
        by_rank[groups[leading][0]].finding, status=leading[0], found=found, expected=expected, change=change
    )
    return Check(by_rank[0].name, finding, seconds, stuck)


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Rank numbers for a person: ``rank 3``, ``ranks 0-3, 6``."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and runs[-1][-1] == rank - 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    words = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {words}"


def _told(check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:  # the doctor's work is to tell, whatever it is
        lines = str(error).strip().splitlines() or [type(error).__name__]
        change = "" if type(error).__module__.startswith("dmt_plugin") else "the error says more: see its text"
        return Finding(f"{type(error).__name__}: {' '.join(lines)[:600]}", "fail", "no error", change)
