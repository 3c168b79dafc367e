"""What a command line names, and what is said where it cannot be had."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dmt_plugin.cli import app, main
from dmt_plugin.cli.load import load
from dmt_plugin.core.errors import ConfigError
from tests._util.programs import run_program
from tests.cli.conftest import MODEL

runner = CliRunner()
DMT = str(Path(sys.executable).with_name("dmt"))


@pytest.mark.parametrize(
    ("model", "config", "batch", "message"),
    [
        ("net", "ds.json", None, "--model net: expected package.module:function"),
        ("nothing.py:build", "ds.json", None, "--model nothing.py:build: no such file"),
        ("net.py:builds", "ds.json", None, "net.py has no function 'builds'. It defines Net, build, example_batch"),
        ("no_such_module:build", "ds.json", None, "no module 'no_such_module' can be imported"),
        ("net.py:build", "missing.json", None, "--config missing.json: no such configuration file: "),
        ("net.py:build", "net.py", None, "net.py: not valid JSON at line"),
        ("net.py:build", "off.json", None, "stock engine would run"),
        ("net.py:build", "ds.json", "net.py:batch", "--batch net.py:batch: net.py has no function 'batch'"),
        ("bad.py:raises", "ds.json", None, r"raises() raised ValueError: rows must be positive ({cwd}/bad.py:8)"),
        ("bad.py:needs", "ds.json", None, "needs() raised TypeError"),
        ("bad.py:nothing", "ds.json", None, "nothing() returned nothing; expected a torch.nn.Module"),
        ("bad.py:number", "ds.json", None, "number() returned a value of type int; expected a torch.nn.Module"),
        ("bad.py:class_", "ds.json", None, "returned the class Linear; expected a torch.nn.Module, or the pair"),
        ("bad.py:linear", "ds.json", None, "no example batch for bad.py:linear: give --batch"),
        ("net.py:build", "ds.json", "bad.py:raises", "--batch bad.py:raises: raises() raised ValueError"),
        ("net.py:build", "ds.json", "bad.py:one", "from --batch bad.py:one does not fit Net.forward(dense, sparse): "),
        ("net.py:build", "ds.json", "bad.py:wide", "model does not take the example batch: Net raised RuntimeError: "),
        ("net.py:build", "ds.json", "bad.py:high", "Net raised RuntimeError"),
    ],
)
def test_what_is_wrong_is_said(project: Path, model: str, config: str, batch: str | None, message: str) -> None:
    (project / "off.json").write_text(json.dumps({"dmt": {"enabled": False}}))
    (project / "bad.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def needs(rows): ...\n"
        "def nothing(): ...\n"
        "def number(): return 3\n"
        "def class_(): return nn.Linear\n"
        "def raises():\n"
        "    raise ValueError('rows must be positive')\n"
        "def linear(): return nn.Linear(3, 1)\n"
        "def one(): return [torch.randn(4, 3)]\n"
        "def wide(): return torch.randn(4, 9), torch.zeros(4, 5, dtype=torch.long)\n"
        "def high(): return torch.randn(4, 3), torch.full((4, 5), 99)\n"
    )
    with pytest.raises(ConfigError, match=re.escape(message.format(cwd=project))):
        load(model, config, batch)


@pytest.mark.parametrize(
    ("code", "batch", "key"),
    [
        ("def both():\n    return build(), example_batch()\n", None, None),
        ("def other(): return example_batch()\ndef both(): return build()\n", "net.py:other", None),
        ("def both(): return build()\n", None, None),
        ("def both(): return build()\ndel example_batch\n", None, "batches.py:make"),
    ],
)
def test_ways_to_give_a_batch(project: Path, code: str, batch: str | None, key: str | None) -> None:
    (project / "net.py").write_text(MODEL + code)
    (project / "batches.py").write_text(
        "import torch\ndef make(): return torch.randn(4, 3), torch.zeros(4, 5, dtype=torch.long)\n"
    )
    (project / "ds.json").write_text(json.dumps({"dmt": {"transform": {"example_batch": key}}}))
    loaded = load("net.py:both", "ds.json", batch)
    assert len(loaded.batch.args) == 2 and type(loaded.model).__name__ == "Net"


def test_modes_of_the_model_are_left_as_they_are(project: Path) -> None:
    (project / "net.py").write_text(MODEL.replace("return Net()", "net = Net(); net.drop.eval(); return net"))
    model = load("net.py:build", None, None).model
    assert model.training and not model.drop.training


def test_from_any_folder_a_file_is_run_once(project: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As the README shows it: a model outside the package, named by its path, from somewhere else."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    counted = "from pathlib import Path\nwith Path(__file__).with_suffix('.log').open('a') as f: f.write('run\\n')\n"
    (project / "net.py").write_text(MODEL + counted)
    section = {"transform": {"example_batch": f"{project}/net.py:example_batch"}}
    (project / "ds.json").write_text(json.dumps({"dmt": section}))
    path = f"{project}/net.py:build"
    page = elsewhere / "page.html"
    for arguments in (
        ["explain", "--model", path, "--config", f"{project}/ds.json", "--json", "--html", str(page)],
        ["verify", "--model", path, "--config", "ds.json", "--batch", f"{project}/net.py:example_batch", "--json"],
    ):
        (project / "net.log").unlink(missing_ok=True)
        done = run_program("-c", "from dmt_plugin.cli import main; main()", *arguments, cwd=elsewhere, timeout=300)
        assert done.returncode == 0, done.stderr
        data = json.loads(done.stdout)
        assert data.get("holds", True) and data.get("refused") is None
        assert (project / "net.log").read_text() == "run\n"
    assert page.is_file()


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
    done = subprocess.run([DMT, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "explain" in done.stdout
