"""``python -m benchmarks.step``: time the variants on an emulated cluster, write ``build/bench/summary.json``."""

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
from benchmarks.step.measure import measure
from benchmarks.step.setting import Setting
from benchmarks.step.summary import differing, rows_of, table
from benchmarks.step.variants import QUICK, VARIANTS


def main(
    hosts: Annotated[int, typer.Option(min=1)] = 2,
    lanes: Annotated[int, typer.Option(min=1, help="Ranks on each host.")] = 2,
    rate: Annotated[str, typer.Option(help="Of each host's link.")] = "100mbit",
    batch: Annotated[int, typer.Option(min=1, help="Samples per rank.")] = 512,
    width: Annotated[int, typer.Option(min=8)] = 64,
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    iterations: Annotated[int, typer.Option(min=1, help="Steps of one timing.")] = 1,
    variants: Annotated[str, typer.Option(help="Names separated by commas.")] = ",".join(QUICK),
    at_least: Annotated[
        list[str] | None, typer.Option(help="NAME=RATIO: fail where that variant's ratio is lower.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the summary goes.")] = Path("build/bench/summary.json"),
) -> None:
    """Measure the variants in turn on a cluster of their own."""
    names = variants.split(",")
    unknown = [name for name in names if name not in VARIANTS]
    bars = {name: float(ratio) for name, _, ratio in (text.partition("=") for text in at_least or [])}
    if unknown or set(bars) - set(names):
        strange = unknown or sorted(set(bars) - set(names))
        raise typer.BadParameter(f"unknown variants {strange}; there are: {', '.join(VARIANTS)}")
    setting = Setting(hosts, lanes, rate, batch, width=width, repeats=repeats, iterations=iterations)
    _import_once()
    try:
        with Cluster(hosts, lanes, rate) as cluster:
            ranks = cluster.call(measure, setting, names)
            cluster.check()
    except ClusterError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    if wrong := differing(ranks):
        typer.echo("\n".join(["error: the variants do not train the same model:", *wrong]), err=True)
        raise typer.Exit(3)
    rows = rows_of(setting, ranks)
    output.parent.mkdir(parents=True, exist_ok=True)
    about = {
        **setting.to_dict(),
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Linux {platform.release()}",
        "command": " ".join(["python -m benchmarks.step", *sys.argv[1:]]),
    }
    output.write_text(json.dumps({"setting": about, "rows": rows}, indent=2) + "\n")
    typer.echo(f"{setting.hosts} x {setting.lanes}, {setting.rate}, {setting.batch} samples per rank; {output}")
    typer.echo(table(rows))
    low = [f"{name}: {rows[name]['ratio']:.2f}x, at least {bar}x expected" for name, bar in bars.items()
           if not rows[name]["ratio"] >= bar]  # fmt: skip
    if low:
        typer.echo("\n".join(["below the bar:", *low]), err=True)
        raise typer.Exit(1)


def _import_once() -> None:
    """Import what the ranks need before they are forked from this process."""
    for module in ("torchrec.distributed.model_parallel", "dmt_plugin.integrations.deepspeed"):
        importlib.import_module(module)


if __name__ == "__main__":
    typer.run(main)
