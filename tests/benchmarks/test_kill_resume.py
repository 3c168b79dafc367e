"""A few kills; ``python -m benchmarks.kill_resume`` has more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import kill_resume
from tests._util.programs import run_program


@pytest.mark.processes
def test_killed_runs_go_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """In a process of its own: ranks are forked from it, and this one may have threads."""
    output = tmp_path / "kills.json"
    done = run_program("benchmarks.kill_resume", "--kills", 4, "--seed", 3, "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert len(found["runs"]) == 4 and found["compared"] > 0
    assert [run["aimed at"] for run in found["runs"]] == ["save", "load", "load", "step"]
    assert {run["topology"] for run in found["runs"]} == {"2x2", "4x1"} and found["hits"].keys() >= {"step", "load"}
    assert all(run["seconds"] < kill_resume.LIMIT_S for run in found["runs"])


@pytest.mark.campaign  # what a kill leaves of a save is the law above: both ways of saving write by the same code
@pytest.mark.processes
def test_runs_killed_while_they_write_behind_the_steps_go_on(tmp_path: Path) -> None:
    output = tmp_path / "kills.json"
    done = run_program("benchmarks.kill_resume", "--asynchronous", "--kills", 2, "--seed", 5, "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert [run["aimed at"] for run in found["runs"]] == ["write", "write"] and found["asynchronous"]
    assert [run["topology"] for run in found["runs"]] == ["2x2", "4x1"]
    assert found["runs"][1]["loaded"] is not None


def test_what_is_wrong_is_said() -> None:
    """Logs of runs that went wrong in each of the ways."""
    good = [
        {"loaded": 4, "history": "h", "wrong": []},
        {"step": 5, "state": "a"},
        {"error": "ExchangeError: rank 1, step 5: gone"},
    ]
    states = {("h", 5, rank): ["a"] for rank in range(4)}
    found = {"hung": [], "killed": [0], "victim": 0, "in": "save"}

    def check(*logs: list[dict], saved: int = 4, **changed: object) -> list[str]:
        return kill_resume.check_run({**found, **changed}, list(logs), {k: list(v) for k, v in states.items()}, saved)

    assert check(good[:2], good, good, good) == []
    assert "still ran after" in check(good, good, good, good, hung=[2])[0]
    assert "[3] were" in check(good, good, good, good, killed=[3])[0]
    assert "although step 5 was saved" in check(good, good, good, good, saved=5)[0]
    other = [{**line, "state": "b"} if "state" in line else line for line in good]
    assert check(good, good, other, good) == ["rank 2 is in another state after step 5 than a run before"]
    assert check(good, good, [{**good[0], "wrong": ["t"]}, *good[1:]], good)[0].endswith("than is stored of ['t']")
    assert "loaded step []" in check(good[2:], good, good, good)[0]
    assert check(good[2:], good[2:], good[2:], good[2:], **{"in": "load"}) == []
    assert "without an error" in check(good, good, good, good[:2])[0]


def test_what_the_last_kill_left_is_looked_at(tmp_path: Path) -> None:
    assert kill_resume.last_problems(tmp_path, 0) == []
    assert "of step None, although step 4 was saved" in kill_resume.last_problems(tmp_path, 4)[0]
