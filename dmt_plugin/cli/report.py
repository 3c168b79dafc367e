"""``dmt report``: where the time and the bytes of a run went, from the records of its ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dmt_plugin.report.run import tables as run_tables
from dmt_plugin.report.run.page import page_of
from dmt_plugin.report.run.records import read_run
from dmt_plugin.report.run.summary import summary_of


def command(
    folder: Annotated[
        Path,
        typer.Argument(help='The "report": {"dir": ...} of a run; files of all hosts together.', show_default=False),
    ],
    html: Annotated[Path | None, typer.Option(help="Also write one page with everything, pictures included.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead of tables.")] = False,
) -> None:
    """Show where the time of a run went: parts of a step, exchanges, ranks, towers, tables. The run may still go on.

    Exit status: 0, or 2 if the records are missing or cannot be read.
    """
    data = summary_of(read_run(folder))
    written = None
    if html is not None:
        written = page_of(data, str(folder)).write(html)
    if as_json:
        typer.echo(json.dumps(data, indent=2))
        return
    console = Console() if Console().is_terminal else Console(width=140)
    console.print(run_tables.headline(data), style="bold", highlight=False)
    most = run_tables.MOST
    shown = {
        "time by part of a step": run_tables.parts_table(data),
        "exchanges": run_tables.exchanges_table(data),
        "ranks, the busiest first": run_tables.ranks_table(data, most),
        "towers": run_tables.towers_table(data),
        "distinct rows": run_tables.distinct_table(data),
        "tables": run_tables.tables_table(data, most),
    }
    for title, table in shown.items():
        if table.rows:
            console.print(table.to_rich(title))
    for note in data["notes"]:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)
    if written is not None:
        console.print(f"wrote {written}", highlight=False, soft_wrap=True)
