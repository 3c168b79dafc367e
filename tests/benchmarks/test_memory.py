"""Peaks of memory by phase: all phases of both runs on small tables, and what is said of a bound that is broken."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import memory
from benchmarks.memory_runs import END, LOAD, PHASES, SAVE, Seen
from dmt_plugin.core.memory import MemoryLimit
from tests._util.programs import run_program

PHASES_OF = {
    "meta_8gib": ["initialize", "steps", "save", "load", "to_flat"],
    "real_1gib": ["steps", "save", "load", "to_flat"],
    "behind_8gib": ["save", "save_behind"],
}


@pytest.mark.processes
def test_small_tables_go_through_every_phase(tmp_path: Path) -> None:
    """In a process of its own: those that are watched are forked from it, and this one may have threads."""
    output = tmp_path / "memory.json"
    done = run_program("benchmarks.memory", "--small", "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert {name: list(run["peak_mib"]) for name, run in found["runs"].items()} == PHASES_OF
    for run in found["runs"].values():
        assert run["share_mib"] == pytest.approx(run["tables_mib"] / 2 * (1 + 1 / 64))
        copies = 2 if run["saving"] else 1
        assert run["bound_mib"] == pytest.approx(copies * run["share_mib"] * 1.05 + 700)
        assert all(0 < peak <= run["bound_mib"] for peak in run["peak_mib"].values())
        assert all(run["seconds"][phase] >= 0 for phase in run["peak_mib"])
    saving = found["runs"]["behind_8gib"]["saving"]
    assert len(saving["behind_seconds"]) == len(saving["written_seconds"]) == 2
    assert min(saving["behind_seconds"]) > 0 and saving["behind_seconds"] < saving["written_seconds"]
    assert saving["ratio"] == pytest.approx(max(saving["behind_seconds"]) / saving["in_step_seconds"])
    assert "holds" in done.stdout and "BROKEN" not in done.stdout
    assert len(found["making"]["kinds"]) == 4
    assert list(tmp_path.iterdir()) == [output]  # nothing is left behind


def test_a_bound_that_is_broken_is_said() -> None:
    run: dict[str, Any] = {"bound_mib": 800.0, "peak_mib": {"steps": 799.0, "save": 801.0}, "saving": None}
    slow: dict[str, Any] = {"bound_mib": 800.0, "peak_mib": {}, "tables_mib": 8192.0, "saving": {"ratio": 0.31}}
    quick = {**slow, "saving": {"ratio": 0.29}}
    found = {
        "runs": {"meta_8gib": run, "slow": slow, "quick": quick, "small": {**slow, "tables_mib": 1.0}},
        "making": {"kinds": {"row_wise": {"ratio": 3.9}, "table_wise": {"ratio": 4.1}}},
    }
    peak, save, making = memory.broken(found)
    assert peak.startswith("meta_8gib: 801 MiB at the peak of save") and "table_wise: 4.10 times" in making
    assert save.startswith("slow: a save behind the steps waits 31% as long")


def test_nothing_starts_without_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "memory_limits", lambda: [MemoryLimit("a small machine", 2**30, "key")])
    with pytest.raises(SystemExit, match=r"a small machine has 1\.0 GiB"):
        memory.check_room(memory.FULL, tmp_path)


def holds_for_a_moment(number: int, seen: Seen, folder: str, mib: int) -> None:
    """A buffer in the phase "save", which is gone in the phase "load"."""
    seen.phases[number] = SAVE
    buffer = torch.ones(mib * 2**18)
    seen.shares[number] = float(buffer.nbytes)
    for _ in range(20):
        buffer.add_(1)
    del buffer
    seen.phases[number] = LOAD
    multiprocessing.Event().wait(0.2)
    seen.phases[number] = END


def test_a_peak_belongs_to_its_phase(tmp_path: Path) -> None:
    """What is seen from outside of a process that works: 200 MiB more while it holds them."""
    peaks = memory.watch(1, str(tmp_path), holds_for_a_moment, 200)
    assert peaks.share == 200 * 2**20
    held, after = peaks.bytes[PHASES.index("save")], peaks.bytes[PHASES.index("load")]
    assert 195 * 2**20 < held - after < 260 * 2**20


def test_a_process_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"(?s)process 0 of holds_for_a_moment failed.*TypeError"):
        memory.watch(1, str(tmp_path), holds_for_a_moment, "many")
