"""The command line of the runner, without starting anything but itself."""

from __future__ import annotations

import contextlib
import io
import json
import os

import deepspeed
import pytest

from dmt_plugin import run
from dmt_plugin.integrations.deepspeed import initialize
from tests._util.ranks import run_ranks


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


def as_main(rank: int, world: int, folder: str, arguments: list[str]) -> str:
    os.chdir(folder)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        run.main(arguments)
    return out.getvalue()


@pytest.mark.processes
def test_a_script_runs_as_main_with_its_own_arguments(script, tmp_path):
    """In a process of its own: it has its own path and arguments from then on."""
    (said,) = run_ranks(1, as_main, str(tmp_path), ["--local_rank=0", str(script), "--lr", "1"])
    line = next(line for line in said.splitlines() if line.startswith("RESULT "))
    name, argv, word, origin = json.loads(line.removeprefix("RESULT "))
    assert name == "__main__"
    assert argv == [str(script), "--local_rank=0", "--lr", "1"]
    assert word == "found"
    assert origin == initialize.__module__
