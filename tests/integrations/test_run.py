"""The command line of the runner, without starting anything but itself."""

from __future__ import annotations

import json
import subprocess
import sys

import deepspeed
import pytest

from dmt_plugin import run
from dmt_plugin.integrations.deepspeed import initialize


@pytest.fixture
def script(tmp_path):
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "beside.py").write_text("WORD = 'found'\n")
    path = folder / "job.py"
    path.write_text(
        "import json, sys\n"
        "import deepspeed, beside\n"
        "from deepspeed import initialize\n"
        "sys.stdout.write('RESULT ' + json.dumps([__name__, sys.argv, beside.WORD, initialize.__module__]) + '\\n')\n"
    )
    return path


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], []),
        (["--local_rank=3"], ["--local_rank=3"]),
        (["--local-rank=3"], ["--local-rank=3"]),
        (["--local_rank", "3"], ["--local_rank=3"]),
    ],
)
def test_the_scripts_arguments(script, before, after):
    command = run.parse([*before, str(script), "--lr", "1", "--local_rank", "9"])
    assert command == run.Command(str(script), False, (*after, "--lr", "1", "--local_rank", "9"))


def test_a_module_in_place_of_a_script():
    assert run.parse(["--local_rank=0", "-m", "pkg.train", "-x"]) == run.Command(
        "pkg.train", True, ("--local_rank=0", "-x")
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no training script given"),
        (["--local_rank=1"], "no training script given"),
        (["--local_rank"], "needs a number"),
        (["-m"], "no training script given"),
        (["--lr", "1"], "unknown option --lr"),
        (["missing.py"], "there is no file missing.py"),
    ],
)
def test_usage_errors(arguments, said, capsys):
    with pytest.raises(SystemExit) as caught:
        run.main(arguments)
    assert caught.value.code == 2
    shown = capsys.readouterr().err
    assert "usage: deepspeed" in shown
    assert said in shown


def test_patching(monkeypatch):
    monkeypatch.setattr(deepspeed, "initialize", deepspeed.initialize)
    run.patch()
    assert deepspeed.initialize is initialize


def test_a_script_runs_as_main_with_its_own_arguments(script, tmp_path):
    command = [sys.executable, "-m", "dmt_plugin.run", "--local_rank=0", str(script), "--lr", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    name, argv, word, origin = json.loads(line.removeprefix("RESULT "))
    assert name == "__main__"
    assert argv == [str(script), "--local_rank=0", "--lr", "1"]
    assert word == "found"
    assert origin == initialize.__module__
