"""``dmt verify``: runs the user's model and its rewritten graphs on one batch and compares outputs and gradients.

Prints a verdict for each law (:mod:`dmt_plugin.verification.laws`), with the first node that differs where one fails.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmt_plugin.cli.load import load
from dmt_plugin.cli.options import Batch, Config, Hosts, Model
from dmt_plugin.topology.shape import Topology
from dmt_plugin.verification.laws import check_laws

_MARKS = {True: "[green]yes[/green]", False: "[red]NO[/red]", None: "[yellow]not checked[/yellow]"}


def command(
    model: Model,
    config: Config = None,
    batch: Batch = None,
    hosts: Hosts = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON instead of a table.")] = False,
) -> None:
    """Check on your model and batch that the rewritten graph computes what it must.

    Where it does not, the first node that differs is named. Exit status: 0, or 1 if a law fails, or 2 if something
    cannot be found, or 3 if no law fails but not all could be checked.
    """
    loaded = load(model, config, batch)
    topology = Topology(*loaded.config.shape_without_launcher(hosts, 1))
    verdicts = check_laws(loaded.model, loaded.batch, loaded.config, topology)
    kept, broken = (sum(v.holds is held for v in verdicts) for held in (True, False))
    holds = False if broken else kept == len(verdicts) or None
    if as_json:
        data = {
            "model": model,
            "config": loaded.source,
            "topology": str(topology),
            "holds": holds,
            "laws": [dataclasses.asdict(v) for v in verdicts],
        }
        typer.echo(json.dumps(data, indent=2))
    else:
        table = Table("law", "holds", title="laws of the transformation", box=box.SIMPLE_HEAD, title_justify="left")
        table.add_column("what was compared, or what differs", overflow="fold")
        for verdict in verdicts:
            table.add_row(escape(verdict.law), _MARKS[verdict.holds], escape(verdict.detail))
        console = Console() if Console().is_terminal else Console(width=140)
        console.print(table)
        console.print(f"{kept} of {len(verdicts)} laws hold" if holds is not None else "not everything was checked")
    if not holds:
        raise typer.Exit(1 if broken else 3)
