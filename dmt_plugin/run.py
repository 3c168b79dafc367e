"""Train an unchanged DeepSpeed script with the "dmt" section of its configuration.

``deepspeed --module dmt_plugin.run train.py --deepspeed_config ds.json`` starts, on every rank,
``python -u -m dmt_plugin.run --local_rank=<i> train.py --deepspeed_config ds.json``. Then:

1. ``--local_rank``, which the launcher puts before the script, is taken off;
2. ``deepspeed.initialize`` becomes ``dmt_plugin``'s, which hands everything to the original where the
   configuration has no "dmt" section;
3. the script runs as ``__main__`` with the arguments it would have got from the launcher: its own, after
   ``--local_rank=<i>`` where that was given.

``python -m dmt_plugin.run train.py ...`` works as well, and so does ``-m package.module`` in place of a script.
"""

from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import deepspeed

from dmt_plugin.integrations.deepspeed import initialize

USAGE = """\
usage: deepspeed [launcher options] --module dmt_plugin.run SCRIPT [SCRIPT OPTIONS]
       python -m dmt_plugin.run SCRIPT [SCRIPT OPTIONS]
       python -m dmt_plugin.run -m MODULE [OPTIONS]
"""


class UsageError(ValueError):
    """The command line names no script that could be run."""


@dataclass(frozen=True)
class Command:
    """What to run.

    Attributes:
        target: Path of the script, or name of the module.
        is_module: Whether ``target`` is a module.
        argv: The script's own arguments, ``--local_rank=<i>`` first where the launcher gave it.
    """

    target: str
    is_module: bool
    argv: tuple[str, ...]


def parse(arguments: list[str]) -> Command:
    """Splits the command line of the runner.

    Raises:
        UsageError: If there is no script, or it does not exist.
    """
    rest = list(arguments)
    rank: list[str] = []
    while rest and rest[0].replace("-", "_").startswith("__local_rank"):
        option = rest.pop(0)
        if "=" not in option:
            if not rest:
                raise UsageError(f"{option} needs a number")
            option = f"{option}={rest.pop(0)}"
        rank = [option]
    is_module = bool(rest) and rest[0] in ("-m", "--module")
    if is_module:
        rest.pop(0)
    if not rest:
        raise UsageError("no training script given")
    target = rest.pop(0)
    if target.startswith("-"):
        raise UsageError(f"unknown option {target}; options of the script go after its name")
    if not is_module and not Path(target).is_file():
        raise UsageError(f"there is no file {target} in {Path.cwd()}")
    return Command(target, is_module, (*rank, *rest))


def patch() -> None:
    """Put :func:`dmt_plugin.integrations.deepspeed.initialize` in the place of ``deepspeed.initialize``."""
    deepspeed.initialize = initialize


def main(arguments: list[str] | None = None) -> None:
    """Runs the script named on the command line.

    Args:
        arguments: The command line without the program's name; ``sys.argv[1:]`` by default.

    Raises:
        SystemExit: With status 2 and the usage on standard error if there is nothing to run.
    """
    try:
        command = parse(sys.argv[1:] if arguments is None else arguments)
    except UsageError as error:
        sys.stderr.write(f"{USAGE}dmt_plugin.run: error: {error}\n")
        raise SystemExit(2) from None
    patch()
    sys.argv = [command.target, *command.argv]
    if command.is_module:
        runpy.run_module(command.target, run_name="__main__", alter_sys=True)
    else:
        # What `python script.py` does: imports beside the script work.
        sys.path[0] = str(Path(command.target).resolve().parent)
        runpy.run_path(command.target, run_name="__main__")


if __name__ == "__main__":
    main()
