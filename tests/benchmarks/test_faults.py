"""A small share of the campaign; ``make campaign`` has more. And that wrong cases are told as such."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults import __main__ as campaign
from benchmarks.faults import models, sections
from benchmarks.faults.judge import DIED, FOREIGN, REFUSED, TOO_LONG, WRONG, Kind, Outcome, Wrong, judge, settled
from benchmarks.faults.kinds import KINDS
from benchmarks.faults.workers import run_cases
from dmt_plugin.core.errors import ConfigError, DMTError

FEW = {"configurations": 60, "plans": 20, "ids": 20, "records": 20}


@pytest.mark.parametrize("name", FEW)
def test_a_few_cases_of_each_kind(tmp_path: Path, name: str) -> None:
    verdicts = [judge(KINDS[name], 5 * campaign.APART + number, tmp_path) for number in range(FEW[name])]
    assert [(verdict.again, verdict.said) for verdict in verdicts if verdict.problem] == []
    assert campaign.summary_of(KINDS[name], verdicts)["right share"] >= 0.3


def test_a_section_that_is_read_otherwise_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = sections.read_dmt_config

    def other(*args: Any) -> Any:
        found = read(*args)
        return None if found is None else found.model_copy(update={"comm": type(found.comm)(timeout_s=17.0)})

    monkeypatch.setattr(sections, "read_dmt_config", other)
    found = {judge(KINDS["configurations"], number, tmp_path).problem for number in range(30)}
    assert WRONG in found


def test_outputs_that_differ_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from benchmarks.faults import plans

    monkeypatch.setattr(plans, "outputs", lambda model: models.outputs(model) + random.random())
    found = {judge(KINDS["plans"], number, tmp_path).problem for number in range(12)}
    assert WRONG in found


def test_every_problem_is_told() -> None:
    """Also of a case that takes too long, and of one that takes its process with it."""

    def case(what: str) -> Any:
        def run(draw: random.Random, room: Path, shared: Path) -> Outcome:
            if what == "long":
                time.sleep(60)
            if what == "dies":
                os._exit(3)
            if what == "foreign":
                raise KeyError("x")
            if what == "another class":
                raise DMTError("not the class that this case allows")
            error = None if what in ("right", "taken") else ConfigError("a reason that is long enough")
            return settled({"taken": "refused", "refused": "taken"}.get(what, "either"), what, error)  # type: ignore[arg-type]

        return Kind(what, what, 1, run, limit_s=0.2)

    names = ("right", "taken", "refused", "foreign", "another class", "dies", "long")
    kinds = {name: case(name) for name in names}
    import benchmarks.faults.workers as workers

    grace, workers.GRACE_S = workers.GRACE_S, 0.3
    try:
        found = run_cases(kinds, [(name, 0) for name in names], Path("."), 2, lambda verdict: None)
    finally:
        workers.GRACE_S = grace
    assert {verdict.kind: verdict.problem for verdict in found} == {
        "right": "", "taken": WRONG, "refused": REFUSED, "foreign": FOREIGN, "another class": FOREIGN, "dies": DIED,
        "long": TOO_LONG,
    }  # fmt: skip


def test_a_refusal_needs_a_reason() -> None:
    with pytest.raises(Wrong, match="without a reason"):
        settled("refused", "a case", ConfigError("no"))


def test_the_same_arguments_are_the_same_cases() -> None:
    cases = campaign.cases_of(["plans", "ids"], 3, 0.5, None)
    assert len(cases) == KINDS["plans"].cases + KINDS["ids"].cases and cases[0] == ("plans", 3 * campaign.APART)
    assert campaign.cases_of(["ids"], 1, 0.5, 2) == [("ids", campaign.APART), ("ids", campaign.APART + 1)]


def test_half_an_hour_has_what_it_must_have() -> None:
    least = {"configurations": 2000, "plans": 2000, "ids": 1000}
    assert all(KINDS[name].cases >= count for name, count in least.items())
    assert 4 * KINDS["kills"].cases + KINDS["kills-behind"].cases >= 25


@pytest.mark.campaign
@pytest.mark.processes
def test_the_command(tmp_path: Path) -> None:
    from tests._util.programs import run_program

    output = tmp_path / "summary.json"
    done = run_program("benchmarks.faults", "--kinds", "ids", "records", "--cases", 60, "--output", output)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(output.read_text())
    assert found["kinds"]["ids"]["cases"] == 60 and found["problems"] == []
