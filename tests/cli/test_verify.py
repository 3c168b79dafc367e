"""``dmt verify``: green on a sound rewrite, red, with the node named, on a wrong one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmt_plugin.cli import app
from dmt_plugin.passes.base import PassContext, PassResult
from dmt_plugin.passes.insert_towers import InsertTowers
from tests.cli.test_explain import MODEL

runner = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "ds.json").write_text(json.dumps({"dmt": {"towers": {"c": 1, "p": 1, "dim": 4}}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_laws_hold(project: Path) -> None:
    result = runner.invoke(app, ["verify", "--model", "net.py:build", "--config", "ds.json"])
    assert result.exit_code == 0, result.output
    assert "9 of 9 laws hold" in result.output


def test_json(project: Path) -> None:
    result = runner.invoke(app, ["verify", "--model", "net.py:build", "--json"])
    assert result.exit_code == 0, result.output
    verdicts = json.loads(result.output)
    assert len(verdicts) == 9 and all(v["holds"] for v in verdicts)


def test_a_wrong_rewrite_is_found_and_its_node_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = InsertTowers.run

    def two_streams_swapped(self: InsertTowers, ctx: PassContext) -> PassResult:
        result = sound(self, ctx)
        join = ctx.groups[0].joins[0]
        entries = list(join.args[0])  # type: ignore[arg-type]
        entries[1], entries[2] = entries[2], entries[1]
        join.args = (entries, *join.args[1:])
        return result

    monkeypatch.setattr(InsertTowers, "run", two_streams_swapped)
    result = runner.invoke(app, ["verify", "--model", "net.py:build", "--config", "ds.json", "--json"])
    assert result.exit_code == 1, result.output
    failed = [v for v in json.loads(result.output) if not v["holds"]]
    assert any("keep outputs (eval mode)" in v["law"] and "node cat" in v["detail"] for v in failed), failed
    assert any("keep every gradient" in v["law"] and "tables" in v["detail"] for v in failed), failed
