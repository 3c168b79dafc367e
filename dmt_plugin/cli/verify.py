"""``dmt verify``: the laws of the transformation, on the user's own model and batch."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmt_plugin.cli.load import find_config, importable_here, load_model_and_batch
from dmt_plugin.cli.shape import topology_shape
from dmt_plugin.config import DMTConfig, load_ds_config, read_dmt_config
from dmt_plugin.loading import load_factory


def command(
    model: Annotated[str, typer.Option(help="package.module:factory or path/to/file.py:factory.")],
    config: Annotated[
        str | None, typer.Option(help='DeepSpeed JSON with a "dmt" section; default: the default section.')
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="Factory of an example batch; default: example_batch() beside the model.")
    ] = None,
    hosts: Annotated[int | None, typer.Option(min=1, help="Hosts; default: the config, else 2.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
) -> None:
    """Check on your model that the rewritten graph computes what it must; exit status 1 if any law fails."""
    importable_here()
    section = DMTConfig()
    if config is not None:
        path = find_config(config, load_factory(model, "--model"))
        section = read_dmt_config(load_ds_config(path), str(path)) or section
    built, example, _ = load_model_and_batch(model, batch, section.transform.example_batch)
    from dmt_plugin.laws import check_laws
    from dmt_plugin.topology import Topology

    verdicts = check_laws(built, example, section, Topology(topology_shape(section, hosts, None)[0], 1))
    failed = [v for v in verdicts if not v.holds]
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(v) for v in verdicts], indent=2))
    else:
        table = Table("law", "holds", "detail", title="laws of the transformation")
        for verdict in verdicts:
            mark = "[green]yes[/green]" if verdict.holds else "[red]NO[/red]"
            table.add_row(escape(verdict.law), mark, escape(verdict.detail))
        Console().print(table)
        Console().print(f"{len(verdicts) - len(failed)} of {len(verdicts)} laws hold")
    if failed:
        raise typer.Exit(1)
