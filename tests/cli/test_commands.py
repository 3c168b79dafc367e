"""The table of commands: what it says is what the files have, and what ``dmt --help`` loads."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from dmt_plugin.cli import COMMANDS, app, command_of


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_file_says(name: str) -> None:
    command = command_of(name)
    assert " ".join(inspect.cleandoc(command.help).split("\n\n")[0].split()) == COMMANDS[name].help


def test_help_loads_no_command_and_no_torch() -> None:
    code = (
        "import sys\nfrom dmt_plugin.cli import main\n"
        "try:\n    main()\nfinally:\n    print('loaded', *sorted(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS), done.stderr
    loaded = set(done.stderr.partition("loaded")[2].split())
    heavy = {"torch", "deepspeed", "numpy", "matplotlib", "pydantic", "networkx", "pandas"}
    ours = {entry.module for entry in COMMANDS.values()}
    assert "dmt_plugin.cli" in loaded and not loaded & (heavy | ours), loaded & (heavy | ours)


def test_a_command_that_is_not_there() -> None:
    result = CliRunner().invoke(app, ["explan"])
    assert result.exit_code == 2 and "Did you mean 'explain'" in result.output


def test_a_commands_own_help_and_options() -> None:
    result = CliRunner(env={"COLUMNS": "120"}).invoke(app, ["checkpoint", "reshard", "--help"])
    assert result.exit_code == 0 and "--to" in result.output and "4x2" in result.output
