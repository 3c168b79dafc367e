"""``python -m benchmarks.step.breakdown``: where the time of a step goes, part by part.

1. Train the variants in turn on an emulated cluster, with labels on the parts and a trace under way (``_measure``,
   ``_labels``).
2. Every moment of each rank's main thread becomes one part (``_trace``); ``build/bench/breakdown.json``, a table, and
   what is exposed (``_summary``).
3. A picture of stacked bars (``_picture``) and, if asked for, one rank's step over time (``_timeline``).
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.cluster import Cluster, ClusterError
from benchmarks.step.breakdown_measure import measure_parts
from benchmarks.step.breakdown_page import markdown
from benchmarks.step.breakdown_picture import draw_bars
from benchmarks.step.breakdown_summary import rows_of, sentences, table
from benchmarks.step.breakdown_timeline import draw_timeline
from benchmarks.step.document import filled
from benchmarks.step.setting import Setting
from benchmarks.step.variants import VARIANTS

DEFAULT = ("flat_fp32", "sptt_fp32", "dmt_cr4_fp32")


def main(
    hosts: Annotated[int, typer.Option(min=1)] = 2,
    lanes: Annotated[int, typer.Option(min=1, help="Ranks on each host.")] = 2,
    rate: Annotated[str, typer.Option(help="Of each host's link.")] = "100mbit",
    batch: Annotated[int, typer.Option(min=1, help="Samples per rank.")] = 512,
    width: Annotated[int, typer.Option(min=8)] = 64,
    ids: Annotated[str, typer.Option(help="How ids are distributed: uniform or kaggle.")] = "uniform",
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    iterations: Annotated[int, typer.Option(min=1, help="Steps of one trace.")] = 2,
    variants: Annotated[str, typer.Option(help="Names of this project's variants, comma between.")] = ",".join(DEFAULT),
    output: Annotated[Path, typer.Option(help="Where the figures go.")] = Path("build/bench/breakdown.json"),
    picture: Annotated[Path, typer.Option(help="Where the bars go.")] = Path("build/bench/breakdown.png"),
    timeline: Annotated[Path | None, typer.Option(help="Draw one rank's step over time: .svg or .png.")] = None,
    rank: Annotated[int, typer.Option(min=0, help="Whose step the timeline shows.")] = 0,
    page: Annotated[Path | None, typer.Option(help="Put table and pictures there, such as docs/breakdown.md.")] = None,
) -> None:
    """Measure the parts of a step on a cluster of its own."""
    names = variants.split(",")
    if strange := [name for name in names if name not in VARIANTS or name.startswith("torchrec")]:
        known = ", ".join(name for name in VARIANTS if not name.startswith("torchrec"))
        raise typer.BadParameter(f"no variants of this project: {strange}; there are: {known}")
    setting = Setting(hosts, lanes, rate, batch, ids=ids, width=width, repeats=repeats, iterations=iterations)
    if rank >= setting.world_size:
        raise typer.BadParameter(f"there is no rank {rank}: the cluster has {setting.world_size}")
    for module in ("dmt_plugin.integrations.deepspeed", "torch.profiler", "matplotlib"):
        importlib.import_module(module)  # once, before the ranks are forked from this process
    try:
        with Cluster(hosts, lanes, rate) as cluster:
            ranks = cluster.call(measure_parts, setting, names, timeline is not None)
            cluster.check()
    except ClusterError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    rows = rows_of(ranks)
    about = {
        **setting.to_dict(),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "command": " ".join(["python -m benchmarks.step.breakdown", *sys.argv[1:]]),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"setting": about, "rows": rows}, indent=2) + "\n")
    where = f"{hosts} x {lanes}, {rate}, {batch} samples per rank, width {width}, {ids} ids"
    draw_bars(picture, rows, where)
    typer.echo(f"{where}; {output}, {picture}")
    typer.echo(table(rows))
    typer.echo("\n".join(sentences(rows, setting.world_size / (os.cpu_count() or 1))))
    if timeline is not None:
        link = ranks[rank // lanes * lanes].link
        draw_timeline(timeline, ranks[rank].variants, link, rate, f"rank {rank}, {where}")
        typer.echo(f"timeline of rank {rank}: {timeline}")
    if page is not None:
        page.write_text(filled(page.read_text(), markdown(about, rows)))
        draw_bars(page.with_suffix(".svg"), rows, where)
        typer.echo(f"{page}, {page.with_suffix('.svg')}")


if __name__ == "__main__":
    typer.run(main)
