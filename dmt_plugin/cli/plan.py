"""``dmt plan``: how long a training step takes, by a model, and how far that model is off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.planner.paper.evaluation import evaluate
from dmt_plugin.planning.paper_models import paper_sizes
from dmt_plugin.report.plan import picture as plan_picture
from dmt_plugin.report.plan import tables
from dmt_plugin.report.plan.page import page_of


def command(
    paper: Annotated[
        bool, typer.Option("--paper", help="Predict Figs. 10 to 13 of the DMT paper, and show every error.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Also write one page with tables and picture.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Also write the picture: .svg, .png or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead of tables.")] = False,
) -> None:
    """Predict step times with towers and without, and check the prediction against the DMT paper. Needs no cluster.

    Exit status: 0, or 2 for bad input.
    """
    if not paper:
        raise ConfigError("dmt plan: say what to predict; --paper predicts the figures of the DMT paper.")
    if picture is not None and picture.suffix not in (".svg", ".png", ".pdf"):
        raise ConfigError(f"--picture {picture}: expected a name that ends in .svg, .png or .pdf.")
    data = evaluate(paper_sizes())
    notes = []
    if html is not None:
        notes.append(f"wrote {page_of(data).write(html)}")
    if picture is not None:
        notes.append(f"wrote {plan_picture.save(data, picture)}")
    if as_json:
        typer.echo(json.dumps(data, indent=2))
        return
    console = Console() if Console().is_terminal else Console(width=140)
    console.print(tables.headline(data), style="bold", highlight=False)
    shown = {
        "FLOPs of a sample, forward and backward": tables.mflops_table(data),
        "every cell": tables.cells_table(data),
        "constants": tables.constants_table(data),
        "errors": tables.errors_table(data),
    }
    for title, table in shown.items():
        console.print(table.to_rich(title))
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
