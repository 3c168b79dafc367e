"""The whole of ``dmt doctor``: alone, or as one rank of several.

Alone:

1. the checks of this machine (``machine.py``);
2. two processes of this program as ranks on this machine, connected over loopback, which play two hosts of one rank
   each; the first writes what they found to a file. Where there are fewer accelerators than two, on the CPU.
3. If they do not end in time they are killed, and what they wrote to their standard error is shown.

Started by a launcher (``deepspeed --module dmt_plugin.doctor``, ``torchrun -m dmt_plugin.doctor``): the checks of every
machine, and then those of all ranks together (``ranks.py``); rank 0 speaks.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dmt_plugin.doctor import machine
from dmt_plugin.doctor.check import Check, Finding, run_limited, worst
from dmt_plugin.doctor.ranks import Ranks

LOCAL_RANKS = 2
#: A program that starts, imports torch and deepspeed, and makes four checks, may take so many limits of one check.
LIMITS_OF_A_RUN = 4.0

MACHINE: dict[str, Callable[[], Finding]] = {
    "versions": machine.versions,
    "fbgemm": machine.fbgemm,
    "compiler": machine.compiler,
    "ninja": machine.ninja,
    "accelerator": machine.accelerator,
}


@dataclass(frozen=True)
class Diagnosis:
    """All checks, and how they were made.

    Attributes:
        checks: In the order they were made.
        how: Who the ranks were, for a person.
        world_size: Ranks there were.
        on_cpu: Whether these computed on processors beside accelerators.
    """

    checks: tuple[Check, ...]
    how: str
    world_size: int
    on_cpu: bool = False

    @property
    def status(self) -> str:
        """The worst status of all checks."""
        return worst([check.status for check in self.checks])

    @property
    def device(self) -> str | None:
        """What the ranks computed on, e.g. ``"NVIDIA H100"``; None where that could not be found out."""
        if self.on_cpu:
            return "cpu"
        data = next((check.finding.data for check in self.checks if check.name == "accelerator"), {})
        return ", ".join(data.get("models") or ()) or data.get("accelerator")

    @property
    def exit_status(self) -> int:
        """0, or 1 if a check failed. A warning is no failure."""
        return int(self.status == "fail")

    @property
    def stuck(self) -> bool:
        """Whether a thread of a check is still running."""
        return any(check.stuck for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "status": self.status,
            "date": datetime.now(timezone.utc).date().isoformat(),
            "device": self.device,
            "how": self.how,
            "world_size": self.world_size,
            "checks": [{"name": c.name, **asdict(c.finding), "seconds": round(c.seconds, 3)} for c in self.checks],
        }


def of_this_machine(limit_s: float) -> list[Check]:
    """The checks that need no other rank."""
    return [run_limited(name, check, limit_s) for name, check in MACHINE.items()]


def as_rank(rank: int, world_size: int, limit_s: float, hosts: int | None = None) -> Diagnosis:
    """This process is one rank of several.

    Args:
        rank: Its number.
        world_size: Ranks there are.
        limit_s: Limit of one check.
        hosts: Hosts to play; None: what the launcher says.
    """
    own = of_this_machine(limit_s)
    versions = own[0].finding.data.get("versions", {})
    checks = Ranks(rank, world_size, limit_s, hosts).run(own, versions)
    return Diagnosis(tuple(checks), f"{world_size} ranks of a launcher", world_size)


def alone(limit_s: float) -> Diagnosis:
    """This process is on its own: it starts two ranks."""
    own = of_this_machine(limit_s)
    accelerator = own[-1].finding.data
    by_cpu = accelerator.get("accelerator") != "cpu" and accelerator.get("devices", 0) < LOCAL_RANKS
    place = " on the CPU, for want of a second accelerator" if by_cpu else ""
    how = f"alone: {LOCAL_RANKS} local ranks played two hosts{place}; links are those of this machine"
    started = time.monotonic()
    checks, problem = _local_ranks(limit_s, by_cpu)
    if problem:
        finding = Finding(problem, "fail", "two ranks that end by themselves", "look at what they say")
        return Diagnosis((*own, Check("local ranks", finding, time.monotonic() - started)), how, 1, by_cpu)
    mine = {check.name for check in own}
    return Diagnosis((*own, *(check for check in checks if check.name not in mine)), how, LOCAL_RANKS, by_cpu)


def _local_ranks(limit_s: float, by_cpu: bool) -> tuple[list[Check], str]:
    """The checks of two ranks on this machine, or what went wrong with them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="dmt-doctor-") as folder:
        file = Path(folder, "found.json")
        ranks = []
        for rank in range(LOCAL_RANKS):
            variables = {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": LOCAL_RANKS, "LOCAL_SIZE": LOCAL_RANKS,
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
                **({"DS_ACCELERATOR": "cpu"} if by_cpu else {}),
            }  # fmt: skip
            command = [
                "env", *(f"{name}={value}" for name, value in variables.items()),
                sys.executable, "-m", "dmt_plugin.doctor", "--json", "--timeout", f"{limit_s:g}",
                "--play-hosts", str(LOCAL_RANKS), "--write-to", str(file),
            ]  # fmt: skip
            with Path(folder, f"log.{rank}").open("w") as log:
                ranks.append(subprocess.Popen(command, stdout=log, stderr=log))
        deadline = time.monotonic() + limit_s * LIMITS_OF_A_RUN
        late = []
        try:
            for rank, process in enumerate(ranks):
                try:
                    process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    late.append(rank)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        logs = [Path(folder, f"log.{rank}").read_text().strip()[-800:] for rank in range(LOCAL_RANKS)]
        written = file.read_text() if file.exists() else None
    ended = [f"rank {rank}: {'killed' if rank in late else f'status {p.returncode}'}" for rank, p in enumerate(ranks)]
    says = "; ".join(f"rank {rank} says: {log or 'nothing'}" for rank, log in enumerate(logs))
    if written is None:
        return [], f"no result; {', '.join(ended)}; {says}"
    checks = _read(json.loads(written))
    # Rank 0 tells of all, but not of one that is gone: only that one's own words say why.
    failed = [rank for rank, process in enumerate(ranks) if rank and (rank in late or process.returncode < 0)]
    for rank in failed:
        finding = Finding(
            f"{ended[rank]}; it says: {logs[rank] or 'nothing'}", "fail", "two ranks that end by themselves",
            "look at what it says",
        )  # fmt: skip
        checks.append(Check(f"local rank {rank}", finding, 0.0))
    return checks, ""


def _read(data: dict[str, Any]) -> list[Check]:
    return [
        Check(
            one["name"],
            Finding(*(one[key] for key in ("found", "status", "expected", "change", "data"))),
            one["seconds"],
        )
        for one in data["checks"]
    ]
