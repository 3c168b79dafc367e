"""Commands on the hosts of a cluster.

1. A command enters its host (network, name, and the host's own /etc files) and becomes a session of its own.
2. What it prints is passed on line by line, marked with its rank, and kept.
3. After the first failure the others get ``grace_s`` to end by themselves; then, and at ``timeout_s``, they are
   ended with everything they started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.cluster.errors import ClusterError
from benchmarks.cluster.network import DEVICE
from benchmarks.cluster.shape import Shape

MASTER_PORT = 29_500
"""Free on every cluster: its network is its own."""

Echo = Callable[[str], None]


@dataclass
class Outcome:
    """One process.

    Attributes:
        label: such as ``"rank 3"``.
        code: exit code; negative for a signal.
        output: everything it printed.
        ended_by: ``"itself"``, ``"timeout"`` or ``"failure"`` (of another).
    """

    label: str
    code: int = 0
    output: str = ""
    ended_by: str = "itself"


@dataclass
class _Running:
    process: subprocess.Popen[str]
    outcome: Outcome
    lines: list[str] = field(default_factory=list)
    reader: threading.Thread | None = None


def inside(shape: Shape, host: int, command: Sequence[str]) -> list[str]:
    """The command line that runs ``command`` on a host."""
    naming = 'echo "$0" > /proc/sys/kernel/hostname; exec "$@"'
    return [
        *("ip", "netns", "exec", shape.namespace(host), "unshare", "--uts"),
        *("sh", "-c", naming, shape.hostname(host), *command),
    ]


def rank_variables(shape: Shape, rank: int) -> dict[str, str]:
    """What a launcher would set for a rank."""
    host, lane = divmod(rank, shape.lanes)
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(shape.world_size),
        "LOCAL_RANK": str(lane),
        "LOCAL_SIZE": str(shape.lanes),
        "LOCAL_WORLD_SIZE": str(shape.lanes),
        "CROSS_RANK": str(host),
        "CROSS_SIZE": str(shape.hosts),
        "MASTER_ADDR": shape.address(0),
        "MASTER_PORT": str(MASTER_PORT),
        **host_variables(),
    }


def host_variables() -> dict[str, str]:
    """What every process on a host needs: gloo's device, and one thread as there are more ranks than cores."""
    return {"GLOO_SOCKET_IFNAME": DEVICE, "OMP_NUM_THREADS": "1"}


def run_ranks(
    shape: Shape,
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    timeout_s: float = 600,
    grace_s: float = 20,
    echo: Echo | None = None,
) -> list[Outcome]:
    """Run a command once per rank, with the variables a launcher sets."""
    jobs = [
        (f"rank {rank}", rank // shape.lanes, {**rank_variables(shape, rank), **(env or {})})
        for rank in range(shape.world_size)
    ]
    return _run(shape, command, jobs, timeout_s, grace_s, echo)


def run_on(
    shape: Shape,
    host: int,
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    timeout_s: float = 600,
    echo: Echo | None = None,
) -> Outcome:
    """Run a command once on one host, without any rank."""
    if not 0 <= host < shape.hosts:
        raise ClusterError(f"host {host} found, expected 0 to {shape.hosts - 1}")
    return _run(shape, command, [(f"host {host}", host, {**host_variables(), **(env or {})})], timeout_s, 0, echo)[0]


def failures(outcomes: Sequence[Outcome]) -> str:
    """What went wrong, with the last lines of each process; empty where nothing did."""
    parts = []
    for outcome in outcomes:
        if outcome.code:
            tail = "\n".join(outcome.output.splitlines()[-30:])
            parts.append(f"--- {outcome.label}: exit code {outcome.code}, ended by {outcome.ended_by} ---\n{tail}")
    return "\n".join(parts)


def _run(
    shape: Shape,
    command: Sequence[str],
    jobs: Sequence[tuple[str, int, Mapping[str, str]]],
    timeout_s: float,
    grace_s: float,
    echo: Echo | None,
) -> list[Outcome]:
    running: list[_Running] = []
    try:
        for label, host, env in jobs:
            # A host has no environment of its own: it is this process's, as with a shell on that host.
            process = subprocess.Popen(
                inside(shape, host, command),
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            job = _Running(process, Outcome(label))
            job.reader = threading.Thread(target=_read, args=(job, echo), daemon=True)
            job.reader.start()
            running.append(job)
        _wait(running, timeout_s, grace_s)
    finally:
        for job in running:
            _end(job)
    return [job.outcome for job in running]


def _read(job: _Running, echo: Echo | None) -> None:
    assert job.process.stdout is not None
    for line in job.process.stdout:
        job.lines.append(line)
        if echo is not None:
            echo(f"[{job.outcome.label}] {line.rstrip()}")


def _wait(running: Sequence[_Running], timeout_s: float, grace_s: float) -> None:
    deadline, why = time.monotonic() + timeout_s, "timeout"
    while any(job.process.poll() is None for job in running) and time.monotonic() < deadline:
        if why == "timeout" and any(job.process.poll() for job in running):
            deadline, why = min(deadline, time.monotonic() + grace_s), "failure"
        time.sleep(0.02)
    for job in running:
        if job.process.poll() is None:
            job.outcome.ended_by = why


def _end(job: _Running) -> None:
    for sign, patience in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 10.0)):
        # Also where the process itself has ended: it may have left others behind in its session.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.process.wait(patience)
            if sign is signal.SIGTERM and _empty(job.process.pid):
                break
    assert job.reader is not None and job.process.stdout is not None
    job.reader.join(5)
    job.process.stdout.close()
    job.outcome.code = job.process.returncode
    job.outcome.output = "".join(job.lines)


def _empty(session: int) -> bool:
    """Whether no process of a session is left."""
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return True
    return False
