"""The ``dmt`` command: a table of subcommands, each in a file of its own.

1. ``dmt --help`` shows the names and lines of :data:`COMMANDS` and loads no file of them, so that it needs no torch.
2. A subcommand's file is loaded when it is called, with all that it imports; its options and texts are in it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_group

from dmt_plugin.core.errors import DMTError


class Entry(NamedTuple):
    """Where a subcommand is: a function, or an app with subcommands of its own; and what ``dmt --help`` says of it."""

    module: str
    name: str
    help: str
    settings: Mapping[str, Any] = {}


_ANY_OPTION = {"allow_extra_args": True, "ignore_unknown_options": True}

COMMANDS = {
    "explain": Entry(
        "dmt_plugin.cli.explain",
        "command",
        "Show what would be made of a model: towers, graphs before and after, bytes, findings. Starts no process.",
    ),
    "verify": Entry(
        "dmt_plugin.cli.verify",
        "command",
        "Check on your model and batch that the rewritten graph computes what it must.",
    ),
    "partition": Entry(
        "dmt_plugin.cli.partition",
        "command",
        "Decide which feature belongs to which tower, from a model and its data, and show why.",
    ),
    "plan": Entry(
        "dmt_plugin.cli.plan",
        "command",
        "Predict step times with towers and without, on a cluster or for the DMT paper's figures. Needs no cluster.",
    ),
    "config": Entry(
        "dmt_plugin.cli.config", "command", 'Print every key of the "dmt" section: its default and what it does.'
    ),
    "doctor": Entry(
        "dmt_plugin.doctor.command",
        "command",
        "Check whether training with towers works here: versions, compiler, backends, hosts, links, a tiny training.",
    ),
    "report": Entry(
        "dmt_plugin.cli.report",
        "command",
        "Show where the time of a run went: parts of a step, exchanges, ranks, towers, tables. The run may still go "
        "on.",
    ),
    "bench": Entry(
        "dmt_plugin.cli.bench",
        "command",
        "Measure training steps on an emulated cluster on this machine (needs root and a checkout).",
        _ANY_OPTION,
    ),
    "checkpoint": Entry(
        "dmt_plugin.cli.checkpoint", "app", "Look at checkpoints of tower-decomposed models, and take them elsewhere."
    ),
}


def command_of(name: str) -> Any:
    """The subcommand of this name, loaded from its file."""
    entry = COMMANDS[name]
    found = getattr(importlib.import_module(entry.module), entry.name)
    holder = typer.Typer()
    if isinstance(found, typer.Typer):
        holder.add_typer(found)
    else:
        holder.command(name, context_settings=dict(entry.settings))(found)
    return get_group(holder).commands[name]


class LazyGroup(TyperGroup):
    """Subcommands that stand for their names and lines only, until one is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """The subcommand that is called, now with its options."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, command_of(name) if name and command else command, rest


app = typer.Typer(
    name="dmt",
    cls=LazyGroup,
    help="Disaggregated Multi-Tower for DeepSpeed: look at what the transformation does before a cluster is rented.",
    epilog="Start with: dmt explain --model path/to/model.py:build",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _name, _entry in COMMANDS.items():
    app.command(_name, help=_entry.help)(lambda: None)


@app.callback()
def _version() -> None:
    """Disaggregated Multi-Tower for DeepSpeed."""


def main() -> None:
    """Entry point: errors of this package are messages, not tracebacks; exit status 2."""
    try:
        app()
    except DMTError as error:
        typer.secho(f"{type(error).__name__}: {error}", fg=typer.colors.RED, err=True)
        sys.exit(2)
