"""Does a rank hold its own rows and nothing else? Peaks of memory from the start of a run to its flat model.

    python -m benchmarks.memory                      # all runs, about eight minutes; table, build/bench/memory.json
    python -m benchmarks.memory --check              # and exit with 1 where a bound is broken
    python -m benchmarks.memory --small              # the same with tables of a few MiB, in seconds

1. ``meta_8gib``: four ranks, 2 x 2, build a model with 8 GiB of tables on the meta device, so that a rank's share is
   2 GiB, initialize, take 20 steps and save. Four new processes load that at 4 x 1. One more process makes the flat
   model out of the checkpoint.
2. ``real_1gib``: the same with 1 GiB of tables that every rank builds whole; what counts begins after ``initialize``.
3. ``behind_8gib``: 8 GiB of tables again, in a run that writes its checkpoints behind the steps; it saves in the step,
   then twice behind it. How long the slowest rank waits for a save is compared: at most 30 %.
4. The parent reads every 20 ms how much anonymous and shared memory each process has (mapped files do not count), and
   notes the peak of each phase. The largest rank counts. The bound is its share of tables with their optimizer's state
   times 1.05, and 700 MiB for the process, the dense part and bounded buffers; with a snapshot twice the share.
5. Making rows by the rule of a table is held beside ``torch.normal_`` for as many bytes on as many threads, whole
   tables, rows and columns, in turn; the median of five.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.memory_runs import (
    END,
    MIB,
    PHASES,
    START,
    Seen,
    Setting,
    load,
    make,
    save_behind,
    to_flat,
    train,
    watched,
)
from dmt_plugin.core.memory import memory_limits, smallest
from dmt_plugin.core.sizes import say_bytes
from dmt_plugin.core.versions import installed_versions
from dmt_plugin.report.parts.tables import Column, Table

FACTOR, ALLOWANCE_MIB, MAKING_RATIO, SAVING_RATIO = 1.05, 700, 4.0, 0.3
LARGE_MIB = 1024
"""Tables from which a save's time is that of its bytes."""
SAMPLE_S = 0.02

FULL = (
    Setting("meta_8gib", True, 8, 4_194_304),
    Setting("real_1gib", False, 8, 524_288),
    Setting("behind_8gib", True, 8, 4_194_304, behind=True),
)
SMALL = (
    Setting("meta_8gib", True, 4, 4_096, trains=(2, 1), loads=(1, 2)),
    Setting("real_1gib", False, 4, 2_048, trains=(2, 1), loads=(1, 2)),
    Setting("behind_8gib", True, 4, 4_096, trains=(2, 1), behind=True),
)


@dataclass
class Peaks:
    """What was seen: for each phase the largest memory of any process in bytes, and first and last moment."""

    bytes: dict[int, int] = field(default_factory=dict)
    first: dict[int, float] = field(default_factory=dict)
    last: dict[int, float] = field(default_factory=dict)
    share: float = 0.0

    def note(self, phase: int, size: int) -> None:
        """One sample."""
        now = time.monotonic()
        self.bytes[phase] = max(self.bytes.get(phase, 0), size)
        self.first.setdefault(phase, now)
        self.last[phase] = now


def resident(pid: int) -> int | None:
    """Bytes of anonymous and shared memory of a process; None where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    found = [line.split() for line in lines if line.startswith(("RssAnon:", "RssShmem:"))]
    return sum(int(words[1]) for words in found) * 1024 if found else None


def watch(count: int, folder: str, work: Callable[..., None], *args: Any) -> Peaks:
    """Runs ``work`` in processes of their own, and notes their memory by phase.

    Args:
        count: number of processes.
        folder: for what they leave.
        work: ``(number, seen, folder, *args)``.
        args: the rest of its arguments.

    Raises:
        SystemExit: one of them failed; with the end of what it said.
    """
    context = multiprocessing.get_context("fork")
    seen = Seen(context.Array("b", count, lock=False), context.Array("d", count, lock=False))
    processes = [
        context.Process(target=watched, args=(number, seen, folder, work, args), daemon=True) for number in range(count)
    ]
    peaks = Peaks()
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            for number, process in enumerate(processes):
                before = seen.phases[number]
                size = resident(process.pid or 0)
                for phase in {before, seen.phases[number]} if size else ():
                    peaks.note(phase, size or 0)
            if any(process.exitcode for process in processes):
                break
            time.sleep(SAMPLE_S)
    finally:
        failed = [number for number, process in enumerate(processes) if process.exitcode]
        for process in processes:
            process.kill()
            process.join()
    if failed:
        said = Path(folder, f"log{failed[0]}").read_text()[-4000:]
        raise SystemExit(f"process {failed[0]} of {work.__name__} failed:\n{said}")
    peaks.share = max(seen.shares)
    return peaks


def one_run(setting: Setting, folder: str) -> dict[str, Any]:
    """All phases of one run, as ``memory.json`` has them."""
    ranks = setting.trains[0] * setting.trains[1]
    if setting.behind:
        parts = [watch(ranks, folder, save_behind, setting)]
    else:
        parts = [
            watch(ranks, folder, train, setting),
            watch(setting.loads[0] * setting.loads[1], folder, load, setting),
            watch(1, folder, to_flat, setting),
        ]
    share = max(part.share for part in parts) / MIB
    peak: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for part in parts:
        for number, size in part.bytes.items():
            phase = PHASES[number]
            if phase in setting.phases:
                peak[phase] = max(peak.get(phase, 0.0), size / MIB)
            if START < number < END:
                seconds[phase] = max(seconds.get(phase, 0.0), part.last[number] - part.first[number])
    return {
        "share_mib": share,
        "peak_mib": {phase: peak[phase] for phase in setting.phases},
        "seconds": seconds,
        "bound_mib": FACTOR * share * (2 if setting.behind else 1) + ALLOWANCE_MIB,
        "saving": saving_of(ranks, folder) if setting.behind else None,
        "tables_mib": setting.bytes / MIB,
        "topologies": ["{}x{}".format(*on) for on in (setting.trains, setting.loads)[: 1 if setting.behind else 2]],
    }


def saving_of(ranks: int, folder: str) -> dict[str, Any]:
    """How long the slowest rank waited for each save, and until it was written behind the steps."""
    of_ranks = [json.loads(Path(folder, f"saving{rank}.json").read_text()) for rank in range(ranks)]
    in_step = max(one["in_step"] for one in of_ranks)
    behind, written = (
        [max(times) for times in zip(*(one[key] for one in of_ranks), strict=True)] for key in ("behind", "written")
    )
    return {
        "in_step_seconds": in_step, "behind_seconds": behind, "written_seconds": written,
        "ratio": max(behind) / in_step,
    }  # fmt: skip


def broken(found: dict[str, Any]) -> list[str]:
    """Every bound that does not hold, in words."""
    said = [
        f"{name}: {size:,.0f} MiB at the peak of {phase}, at most {run['bound_mib']:,.0f} MiB are allowed"
        for name, run in found["runs"].items()
        for phase, size in run["peak_mib"].items()
        if size > run["bound_mib"]
    ]
    said += [
        f"{name}: a save behind the steps waits {run['saving']['ratio']:.0%} as long as one in the step, at most "
        f"{SAVING_RATIO:.0%}"
        for name, run in found["runs"].items()
        if run["saving"] and run["tables_mib"] >= LARGE_MIB and run["saving"]["ratio"] > SAVING_RATIO
    ]
    for kind, one in found["making"]["kinds"].items():
        if one["ratio"] > MAKING_RATIO:
            said.append(
                f"making rows, {kind}: {one['ratio']:.2f} times as long as torch.normal_, at most {MAKING_RATIO}"
            )
    return said


def check_room(settings: Sequence[Setting], folder: Path) -> None:
    """Says what is missing before anything is started.

    Raises:
        SystemExit: memory or disk will not do.
    """
    memory = max(_memory_of(setting) for setting in settings)
    disk = max(int(2.2 * setting.bytes) for setting in settings)
    least, free = smallest(memory_limits()), shutil.disk_usage(folder).free
    if least is not None and least.available < memory:
        raise SystemExit(f"{say_bytes(memory)} of memory are needed; {least.source} has {say_bytes(least.available)}")
    if free < disk:
        raise SystemExit(f"{say_bytes(disk)} of disk are needed in {folder}; {say_bytes(free)} are free")


def _memory_of(setting: Setting) -> int:
    """Bytes that all ranks of a run take together, at most: tables with their state, and each process."""
    ranks = setting.trains[0] * setting.trains[1]
    copies = 2 if setting.behind else 1 if setting.meta else ranks + 1
    return int(setting.bytes * (1 + 1 / setting.width) * copies) + ranks * 512 * MIB


def show(found: dict[str, Any], console: Console) -> None:
    """The tables for the terminal."""
    columns = [
        Column("run", "run"),
        Column("phase", "phase", text=True),
        Column("share", "share of a rank", ",.0f", "MiB"),
        Column("peak", "peak", ",.0f", "MiB, largest rank"),
        Column("bound", "bound", ",.0f", "MiB"),
        Column("seconds", "seconds", ".1f"),
        Column("verdict", "verdict", text=True, styles={"BROKEN": "red", "holds": "green"}),
    ]
    rows = [
        {
            "run": name, "phase": phase, "share": run["share_mib"], "peak": peak, "bound": run["bound_mib"],
            "seconds": run["seconds"].get(phase), "verdict": "holds" if peak <= run["bound_mib"] else "BROKEN",
        }
        for name, run in found["runs"].items()
        for phase, peak in run["peak_mib"].items()
    ]  # fmt: skip
    console.print(Table(columns, rows).to_rich("peak of anonymous and shared memory"))
    columns = [
        Column("run", "run"),
        Column("tables", "tables", ",.0f", "MiB"),
        Column("in_step", "in the step", ".2f", "s"),
        Column("first", "behind, first", ".2f", "s waited"),
        Column("second", "behind, second", ".2f", "s waited"),
        Column("written", "written", ".2f", "s, with steps"),
        Column("ratio", "ratio", ".2f", f"at most {SAVING_RATIO:g}"),
    ]
    rows = [
        {
            "run": name, "tables": run["tables_mib"], "in_step": run["saving"]["in_step_seconds"],
            "first": run["saving"]["behind_seconds"][0], "second": run["saving"]["behind_seconds"][1],
            "written": max(run["saving"]["written_seconds"]), "ratio": run["saving"]["ratio"],
        }
        for name, run in found["runs"].items()
        if run["saving"]
    ]  # fmt: skip
    console.print(Table(columns, rows).to_rich("how long a save holds up the step"))
    columns = [
        Column("kind", "rows"),
        Column("mib", "MiB", ",.0f"),
        Column("seconds", "by rule", ".3f", "s"),
        Column("normal_seconds", "torch.normal_", ".3f", "s"),
        Column("ratio", "ratio", ".2f", f"at most {MAKING_RATIO:g}"),
    ]
    rows = [{"kind": kind, **one} for kind, one in found["making"]["kinds"].items()]
    console.print(Table(columns, rows).to_rich(f"making tables, {found['making']['threads']} thread(s)"))


def main(arguments: Sequence[str] | None = None) -> int:
    """All runs and the comparisons; exit status 1 with ``--check`` where a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bound is broken")
    parser.add_argument("--small", action="store_true", help="tables of a few MiB")
    parser.add_argument("--output", type=Path, default=Path("build/bench/memory.json"))
    options = parser.parse_args(arguments)
    settings = SMALL if options.small else FULL
    options.output = options.output.resolve()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    check_room(settings, options.output.parent)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    torch.set_num_threads(1)
    import dmt_plugin.cli
    import dmt_plugin.integrations.deepspeed  # noqa: F401 - so that processes, which are forked, have it

    found: dict[str, Any] = {"runs": {}}
    for setting in settings:
        with tempfile.TemporaryDirectory(prefix="memory-", dir=options.output.parent) as folder:
            found["runs"][setting.name] = one_run(setting, folder)
    with tempfile.TemporaryDirectory(prefix="memory-", dir=options.output.parent) as folder:
        watch(1, folder, make, *((2_048, 64) if options.small else (524_288, 64)))
        found["making"] = json.loads(Path(folder, "making.json").read_text())
    problems = broken(found)
    least = smallest(memory_limits())
    found |= {
        "small": options.small,
        "problems": problems,
        "made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": {"cpus": os.cpu_count(), "system": platform.platform(), "available": least and least.available},
        "versions": installed_versions(),
    }
    options.output.write_text(json.dumps(found, indent=1))
    console = Console() if Console().is_terminal else Console(width=120)
    show(found, console)
    for problem in problems:
        console.print(problem, style="red")
    return int(bool(problems) and options.check)


if __name__ == "__main__":
    raise SystemExit(main())
