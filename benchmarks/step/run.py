"""The runs of a profile, one after the other: cluster up, measure, compare, put together.

1. Everything that ranks need is imported once; they are forked from this process.
2. All variants of a run are measured in one set of ranks, in turn (:mod:`benchmarks.step.measure`).
3. Variants that do not train as they must end the call: there is no figure of them to tell.
4. The links are verified again at the end.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.cluster import Cluster
from benchmarks.step.measure import measure
from benchmarks.step.memory import MEASURED, memory_rows, peak_memory
from benchmarks.step.profiles import Profile, Run
from benchmarks.step.summary import differing, rows_of

_LIMIT_S = 1800


class DifferentTraining(Exception):
    """Variants that ought to compute the same do not."""


def run(profile: Profile, command: str) -> Iterator[dict[str, Any]]:
    """Measure a profile.

    Args:
        profile: what to measure.
        command: that the figures are reported to come from.

    Yields:
        After each run the summary of all so far: ``setting`` (of the first run, and where the figures come from),
        ``settings`` of all runs, ``rows`` by variant, ids and batch, ``absent`` and, where asked for, ``memory``.

    Raises:
        ClusterError: no cluster, or a rank failed.
        DifferentTraining: with a line for each variant.
    """
    summary: dict[str, Any] = {
        "setting": {**profile.runs[0].setting.to_dict(), **about(command)},
        "settings": [],
        "rows": {},
        "absent": dict(profile.absent),
    }
    for one in profile.runs:
        rows, memory = run_one(one)
        summary["settings"].append(one.setting.to_dict())
        summary["rows"].update({f"{name}_{one.setting.tag}": row for name, row in rows.items()})
        if memory:
            summary["memory"] = memory
        yield summary


def run_one(one: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measure one run of a profile: its rows by variant, and its memory; raises as :func:`run` does."""
    import_once()
    setting = one.setting
    setting.rows_of(0)  # reads ids that come from a file, so that the ranks have them
    with Cluster(setting.hosts, setting.lanes, setting.rate) as cluster:
        ranks = cluster.call(measure, setting, list(one.variants), list(one.rare), timeout_s=_LIMIT_S)
        cluster.check()
        if wrong := differing(ranks, setting.tables_apart):
            raise DifferentTraining("\n".join([f"the variants do not train the same model ({setting.tag}):", *wrong]))
        peaks = {name: cluster.call(peak_memory, setting, name) for name in MEASURED} if one.memory else {}
    return rows_of(setting, ranks), memory_rows(peaks) if peaks else {}


def about(command: str) -> dict[str, Any]:
    """Where figures come from: command, machine and its cores, date, versions."""
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", "torchrec", "deepspeed")}
    return {
        "command": command,
        "date": datetime.date.today().isoformat(),
        "machine": f"{_processor()} ({_abilities()}), {os.cpu_count()} cores, Linux {platform.release()}",
        "cores": os.cpu_count(),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }


def command_line(module: str) -> str:
    """How this process was started."""
    return " ".join([f"python -m {module}", *sys.argv[1:]])


def import_once() -> None:
    """Import what the ranks need before they are forked from this process."""
    for module in (
        "torchrec.distributed.model_parallel",
        "torchrec.distributed.embedding_tower_sharding",
        "torchrec.distributed.planner",
        "dmt_plugin.integrations.deepspeed",
    ):
        importlib.import_module(module)


def _abilities() -> str:
    """What tells machines of one name apart: vector instructions that torch uses, and the cache that cores share."""
    found = [torch.backends.cpu.get_cpu_capability()]
    with contextlib.suppress(OSError):
        found.append(f"{Path('/sys/devices/system/cpu/cpu0/cache/index3/size').read_text().strip()} L3")
    return ", ".join(found)


def _processor() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()
