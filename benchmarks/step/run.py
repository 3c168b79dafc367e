"""One run of a profile: cluster up, measure, compare, put together.

1. Everything that ranks need is imported once; they are forked from this process.
2. All variants are measured in one set of ranks, in turn (:mod:`benchmarks.step.measure`).
3. Variants that do not train as they must end the run: there is no figure of them to tell.
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
from pathlib import Path
from typing import Any

import torch

from benchmarks.cluster import Cluster
from benchmarks.step.measure import measure
from benchmarks.step.memory import MEASURED, memory_rows, peak_memory
from benchmarks.step.profiles import Profile
from benchmarks.step.summary import differing, rows_of
from benchmarks.step.variants import ABSENT, VARIANTS

_LIMIT_S = 1800


class DifferentTraining(Exception):
    """Variants that ought to compute the same do not."""


def run(profile: Profile, command: str) -> dict[str, Any]:
    """Measure a profile.

    Args:
        profile: what to measure.
        command: that the figures are reported to come from.

    Returns:
        The summary: ``setting``, ``rows``, ``absent`` and, where asked for, ``memory``.

    Raises:
        ClusterError: no cluster, or a rank failed.
        DifferentTraining: with a line for each variant.
    """
    import_once()
    setting = profile.setting
    with Cluster(setting.hosts, setting.lanes, setting.rate) as cluster:
        ranks = cluster.call(measure, setting, list(profile.variants), list(profile.rare), timeout_s=_LIMIT_S)
        cluster.check()
        if wrong := differing(ranks):
            raise DifferentTraining("\n".join(["the variants do not train the same model:", *wrong]))
        summary = {
            "setting": {**setting.to_dict(), **about(command)},
            "rows": rows_of(setting, ranks),
            "absent": {name: why for name, why in ABSENT.items() if len(profile.variants) == len(VARIANTS)},
        }
        if profile.memory:
            peaks = {name: cluster.call(peak_memory, setting, name) for name in MEASURED}
            summary["memory"] = memory_rows(peaks)
    return summary


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
