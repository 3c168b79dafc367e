"""``dmt explain`` as a user types it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmt_plugin.cli import app, main
from dmt_plugin.cli.explain import explain_data
from dmt_plugin.errors import ConfigError

runner = CliRunner(env={"COLUMNS": "160"})

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(20, 8) for _ in range(5))
        self.first = nn.EmbeddingBag(20, 1)
        self.head = nn.Linear(5 * 8 + 3, 1)

    def forward(self, dense, sparse):
        columns = [t(sparse[:, i:i + 1]) for i, t in enumerate(self.tables)]
        return self.head(torch.cat([dense, *columns], dim=1)) + self.first(sparse[:, 1:2])

def build():
    return Net()

def example_batch():
    return torch.randn(4, 3), torch.randint(0, 20, (4, 5))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "ds.json").write_text(json.dumps({"train_micro_batch_size_per_gpu": 64, "dmt": {}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_shows_plan_graphs_exchanges_and_findings(project: Path) -> None:
    result = runner.invoke(app, ["explain", "--model", "net.py:build", "--config", "ds.json"])
    assert result.exit_code == 0, result.output
    for text in (
        "2 host(s) x 2 rank(s)",
        "towers",
        "graph around the towers, before",
        "graph around the towers, after",
        "dmt_exchange.peers.start",
        "(H*B, ",
        "collectives of one step",
        "index.peers.ids",
        "head",
        "DMT301",
    ):
        assert text in result.output, text


def test_json_holds_what_the_text_shows(project: Path) -> None:
    result = runner.invoke(
        app, ["explain", "--model", "net.py:build", "--config", "ds.json", "--hosts", "3", "--json"]
    )
    assert result.exit_code == 0, result.output
    data = json.loads(result.output)
    assert data["topology"] == "3x2"
    assert sorted(f for tower in data["towers"] for f in tower["features"]) == sorted(
        f["name"] for f in data["plan"]["features"]
    )
    assert {c["name"] for c in data["collectives"]} >= {"index.peers.ids", "lanes", "peers"}
    assert data["batch_size"] == 64
    for graph in ("graph_before", "graph_after", "graph_placed"):
        names = {n["id"] for n in data[graph]["nodes"]}
        assert {end for e in data[graph]["edges"] for end in (e["source"], e["target"])} <= names


def test_pictures_are_written(project: Path) -> None:
    result = runner.invoke(
        app, ["explain", "--model", "net.py:build", "--config", "ds.json", "--svg", str(project / "net.svg")]
    )
    assert result.exit_code == 0, result.output
    for when in ("before", "after"):
        assert (project / f"net-{when}.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        ("net", "ds.json", "package.module:function"),
        ("nothing.py:build", "ds.json", "no such file"),
        ("net.py:builds", "ds.json", "has no function"),
        ("no_such_module:build", "ds.json", "no_such_module"),
        ("net.py:build", "missing.json", "no such configuration file"),
    ],
)
def test_what_cannot_be_found_is_said(project: Path, model: str, config: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        explain_data(model, config)


def test_switched_off_and_without_batch(project: Path) -> None:
    (project / "off.json").write_text(json.dumps({"dmt": {"enabled": False}}))
    with pytest.raises(ConfigError, match="stock engine"):
        explain_data("net.py:build", "off.json")
    (project / "bare.py").write_text(MODEL.split("def example_batch")[0])
    with pytest.raises(ConfigError, match="no example batch"):
        explain_data("bare.py:build", "ds.json")


def test_errors_are_messages_and_a_status(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "typo.json").write_text(json.dumps({"dmt": {"towers": {"cuont": 2}}}))
    monkeypatch.setattr(sys, "argv", ["dmt", "explain", "--model", "net.py:build", "--config", "typo.json"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "dmt.towers.cuont" in said and "count" in said and "Traceback" not in said


def test_config_lists_every_key() -> None:
    result = runner.invoke(app, ["config"])
    assert result.exit_code == 0
    for key in ("dmt.towers.module", "dmt.comm.route", "dmt.partition.strategy", "dmt.lookup.backend"):
        assert key in result.output


def test_the_command_is_installed() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("dmt")), "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "explain" in done.stdout
