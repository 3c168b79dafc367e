"""The survey's file has the promised keys, and its words for a person name what falls short."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.zoo import survey


def row(**changes: Any) -> dict[str, Any]:
    """A model without fault, changed."""
    sound = {"capture": True, "sptt_equal": True, "tm": "native", "oracle": "equal", "findings": [], "covered": "6/6"}
    return sound | changes


def note(stage: str, code: str) -> dict[str, str]:
    """What one stage said."""
    return {"stage": stage, "code": code, "severity": "error", "module": "head", "reason": "of no use\nmore"}


def test_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "zoo.json"
    assert survey.main(["dlrm_cat", "--output", str(target), "--check"]) == 0
    ((name, found),) = json.loads(target.read_text()).items()
    assert name == "dlrm_cat"
    assert found["capture"] is True and found["sptt_equal"] is True
    assert found["tm"] in ("native", "decoder", "transport", "refused")
    assert found["oracle"] in ("equal", "n/a") and isinstance(found["findings"], list)
    said = capsys.readouterr().out
    assert "dlrm_cat" in said and "native: 100%, asked for: at least 88%" in said and str(target) in said


def test_every_fault_is_named() -> None:
    rows = {
        "sound": row(findings=[note("towers c1 p1 D=N", "DMT401")]),
        "one": row(tm="decoder", findings=[note("towers c1 p0 D=N/2", "DMT401"), note("towers c1 p1 D=N", "DMT401")]),
        "two": row(sptt_equal=False, findings=[note("sptt", "Differs")]),
        "three": row(oracle="different", findings=[note("oracle (6, 8)", "Differs")]),
    }
    assert survey.reasons_of(rows) == [
        "one, towers: DMT401 head: of no use",
        "two, sptt: Differs head: of no use",
        "three, oracle: Differs head: of no use",
    ]
    assert survey.falls_short(rows)
    assert not survey.falls_short({"sound": rows["sound"]})
    assert "captured 4, SPTT equal 3" in survey.summary_of(rows)[0]


def test_a_name_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        survey.main(["no_such_model"])
    assert "no variant has no_such_model in its name; there are: dlrm_dot" in capsys.readouterr().err
