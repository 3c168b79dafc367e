"""``dmt plan``: how long a training step takes, by a model; on a cluster, or in the paper's figures with its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from dmt_plugin.cli.options import Config
from dmt_plugin.cli.plan_calibrate import AskedToFit
from dmt_plugin.cli.plan_calibrate import write as write_calibrated
from dmt_plugin.cli.plan_model import Asked, write
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.planner.paper.evaluation import evaluate
from dmt_plugin.planning.paper_models import paper_sizes
from dmt_plugin.report.plan import picture as plan_picture
from dmt_plugin.report.plan import tables
from dmt_plugin.report.plan.page import page_of


def command(
    model: Annotated[
        str | None, typer.Option(help="Whose steps: package.module:factory or path/to/file.py:factory.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help='With --model: a preset with hosts, such as "h100-dgx:8", or cluster.yaml.')
    ] = None,
    links: Annotated[
        str | None, typer.Option(help="With --model: what dmt doctor --json printed on that cluster.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="With --model: samples per rank; default: the config's micro batch.")
    ] = None,
    config: Config = None,
    batch: Annotated[
        str | None, typer.Option(help="With --model: factory of an example batch; default as for dmt explain.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="With --model: function that returns an iterable of batches, to count their distinct rows."),
    ] = None,
    distinct_share: Annotated[
        str | None,
        typer.Option(help="Without --data: distinct rows per id of a rank's batch and of a host's, such as 0.4,0.2."),
    ] = None,
    towers: Annotated[
        str | None, typer.Option(help="With --model: kinds of tower modules to try; default: the config's, else dlrm.")
    ] = None,
    ratios: Annotated[
        str | None, typer.Option(help="With --model: compression ratios of tower modules to try; default: 2,4,8.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(help="With --model: one line per value of hosts=2,4,8, batch=1024,4096 or nic=12.5,25 (GB/s)."),
    ] = None,
    simulate: Annotated[
        str | None,
        typer.Option(
            help='With --model: let the exchanges of every rank run without data for one choice: "best", or a name '
            "such as SPTT, and compare what each sends with what others wait for."
        ),
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(help="With --model: folder of a run's records, or of such folders; fit the cluster to them."),
    ] = None,
    output: Annotated[Path, typer.Option(help="With --calibrate: the file to write.")] = Path("cluster.yaml"),
    paper: Annotated[
        bool, typer.Option("--paper", help="Predict Figs. 10 to 13 of the DMT paper, and show every error.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Also write one page with tables and picture.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Also write the picture: .svg, .png or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON instead of tables.")] = False,
) -> None:
    """Predict step times with towers and without, on a cluster or for the DMT paper's figures. Needs no cluster.

        dmt plan --model file.py:build --cluster h100-dgx:8 --batch-size 16384
        dmt plan --model file.py:build --cluster h100-dgx:8 --calibrate runs/monday --output ours.yaml

    Exit status: 0; 1 if nothing fits the memory, or ranks of a simulation do not agree; 2 for bad input.
    """
    if paper == (model is not None):
        raise ConfigError(
            "dmt plan: say what to predict; --model file.py:build --cluster h100-dgx:8 predicts steps of your model, "
            "--paper predicts the figures of the DMT paper" + (": keep one of them." if paper else ".")
        )
    if paper:
        _only_with_model(
            cluster=cluster, links=links, batch_size=batch_size, config=config, batch=batch, data=data,
            distinct_share=distinct_share, towers=towers, ratios=ratios, sweep=sweep, simulate=simulate,
            calibrate=calibrate,
        )  # fmt: skip
    if calibrate:
        _not_with_calibrate(
            batch_size=batch_size, config=config, data=data, distinct_share=distinct_share, towers=towers,
            ratios=ratios, sweep=sweep, simulate=simulate, html=html, picture=picture,
        )  # fmt: skip
        _calibrate(model, cluster, calibrate, output, batch, links, as_json)
        return
    if picture is not None and picture.suffix not in (".svg", ".png", ".pdf"):
        raise ConfigError(f"--picture {picture}: expected a name that ends in .svg, .png or .pdf.")
    if model is not None:
        asked = Asked(
            model, cluster, config, batch, batch_size, links, data, distinct_share, towers, ratios, sweep, simulate
        )
        if status := write(asked, html, picture, as_json):
            raise typer.Exit(status)
        return
    _paper(html, picture, as_json)


def _only_with_model(**given: object) -> None:
    """Refuses what says nothing of the paper's figures."""
    said = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if said:
        raise ConfigError(f"dmt plan --paper: {', '.join(said)} goes with --model; the paper's settings are fixed.")


def _not_with_calibrate(**given: object) -> None:
    """Refuses what a calibration does not ask for."""
    said = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
    if said:
        raise ConfigError(
            f"dmt plan --calibrate: {', '.join(said)} says nothing to it: the records of the runs have it. First "
            "calibrate, then plan with --cluster and the file that it writes."
        )


def _calibrate(
    model: str | None, cluster: str | None, runs: list[Path], output: Path, batch: str | None, links: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    if model is None or cluster is None:
        raise ConfigError(
            "dmt plan --calibrate: of which model, and on which cluster, as far as it is known? Add --model "
            'file.py:build and --cluster, such as "h100-dgx:8" or cluster.yaml.'
        )
    write_calibrated(AskedToFit(model, cluster, runs, output, batch, links), as_json)


def _paper(html: Path | None, picture: Path | None, as_json: bool) -> None:
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
