"""``dmt bench``: what it runs, and where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from dmt_plugin.cli import app, bench
from dmt_plugin.core.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Path]]:
    calls: list[tuple[list[str], Path]] = []

    def run(command: list[str], cwd: Path) -> SimpleNamespace:
        assert command[:5] == ["env", "OMP_NUM_THREADS=1", sys.executable, "-m", command[4]]
        calls.append((command[4:], cwd))
        return SimpleNamespace(returncode=3)

    monkeypatch.setattr(subprocess, "run", run)
    return calls


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], ["benchmarks.step", "--check"]),
        (["--repeats", "9", "-p", "full"], ["benchmarks.step", "--repeats", "9", "-p", "full"]),
        (["--full"], ["benchmarks.step", "--profile", "full", "--check"]),
        (["--full", "-n", "9"], ["benchmarks.step", "--profile", "full", "--check", "-n", "9"]),
        (["--curve"], ["benchmarks.step", "--curve"]),
        (["--breakdown", "--hosts", "4"], ["benchmarks.step.breakdown", "--hosts", "4"]),
        (["--", "--help"], ["benchmarks.step", "--help"]),
    ],
)
def test_what_is_run(started: list[tuple[list[str], Path]], options: list[str], expected: list[str]) -> None:
    result = CliRunner().invoke(app, ["bench", *options])
    assert result.exit_code == 3, result.output  # the benchmark's own status
    assert started == [(expected, ROOT)]


def test_one_at_a_time(started: list[tuple[list[str], Path]]) -> None:
    result = CliRunner().invoke(app, ["bench", "--full", "--curve"])
    assert result.exit_code == 2 and "choose one" in result.output and not started


def test_where_there_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"not part of the installed package; none is at .*--checkout PATH"):
        bench._checkout(tmp_path)
    assert bench._checkout(ROOT) == ROOT


def test_a_checkout_above_this_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "benchmarks" / "step").mkdir(parents=True)
    (tmp_path / "benchmarks" / "step" / "__main__.py").touch()
    inner = tmp_path / "examples" / "deep"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert bench._checkout(None) == tmp_path
