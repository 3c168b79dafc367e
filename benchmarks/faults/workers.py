"""Cases on several processes, each of which is ended where a case takes too long or takes the process with it.

1. A worker is forked from what has imported everything, does one case after the other, and sends each verdict home.
2. One that does not answer within the case's limit and some seconds is killed, with all that it has started, and the
   case has a problem; another worker takes its place.
3. Cases that start processes of their own run one at a time, beside cases that do not.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmarks.faults.judge import DIED, TOO_LONG, Kind, Verdict, judge

GRACE_S = 15.0
"""Beyond the limit of a case, which its own process judges by."""

Case = tuple[str, int]


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    case: Case | None = None
    since: float = 0.0


def run_cases(
    kinds: Mapping[str, Kind],
    cases: Sequence[Case],
    shared: Path,
    workers: int,
    report: Callable[[Verdict], object],
) -> list[Verdict]:
    """Does all cases.

    Args:
        kinds: by name.
        cases: kind and number of each.
        shared: what the kinds have prepared.
        workers: processes at once.
        report: is given every verdict as it comes.

    Returns:
        One verdict for each case, in no order.
    """
    heavy = deque(case for case in cases if kinds[case[0]].alone)
    light = deque(case for case in cases if not kinds[case[0]].alone)
    verdicts: list[Verdict] = []
    team = [_start(kinds, shared) for _ in range(min(workers, len(cases)))]

    def add(verdict: Verdict) -> None:
        verdicts.append(verdict)
        report(verdict)

    try:
        while len(verdicts) < len(cases):
            for worker in team:
                if worker.case is None:
                    busy = any(w.case is not None and kinds[w.case[0]].alone for w in team)
                    queue = heavy if heavy and not busy else light
                    if queue:
                        worker.case, worker.since = queue.popleft(), time.monotonic()
                        worker.pipe.send(worker.case)
            wait([worker.pipe for worker in team if worker.case is not None], timeout=1.0)
            for number, worker in enumerate(team):
                if worker.case is None:
                    continue
                name, case = worker.case
                seconds = time.monotonic() - worker.since
                try:
                    if worker.pipe.poll():
                        add(worker.pipe.recv())
                        worker.case = None
                        continue
                except (EOFError, OSError):
                    worker.process.join(5)
                    add(Verdict(name, case, seconds, DIED, f"exit code {worker.process.exitcode}"))
                else:
                    if seconds <= kinds[name].limit_s + GRACE_S:
                        continue
                    add(Verdict(name, case, seconds, TOO_LONG, f"no answer after {seconds:.0f} s; killed"))
                _end(worker)
                team[number] = _start(kinds, shared)
    finally:
        for worker in team:
            _end(worker)
    return verdicts


def _start(kinds: Mapping[str, Kind], shared: Path) -> _Worker:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, here, kinds, shared))
    process.start()
    there.close()
    return _Worker(process, here)


def _work(pipe: Connection, other: Connection, kinds: Mapping[str, Kind], shared: Path) -> None:
    other.close()
    os.setsid()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    while True:
        try:
            name, number = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)
        pipe.send(judge(kinds[name], number, shared))


def _end(worker: _Worker) -> None:
    """Kills a worker and what it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()
