"""The ``dmt`` command: one file per subcommand."""

from __future__ import annotations

import sys

import typer

from dmt_plugin.cli import bench, checkpoint, config, doctor, explain, partition, report, verify
from dmt_plugin.core.errors import DMTError

app = typer.Typer(
    name="dmt",
    help="Disaggregated Multi-Tower for DeepSpeed: look at what the transformation does before a cluster is rented.",
    epilog="Start with: dmt explain --model path/to/model.py:build",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("explain")(explain.command)
app.command("verify")(verify.command)
app.command("partition")(partition.command)
app.command("config")(config.command)
app.command("doctor")(doctor.command)
app.command("report")(report.command)
app.add_typer(checkpoint.app)
app.command("bench", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(bench.command)


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
