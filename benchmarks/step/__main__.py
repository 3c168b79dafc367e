"""``python -m benchmarks.step``: time the variants on an emulated cluster, write ``build/bench/summary.json``.

A profile says what is measured; options change it. ``--check`` ends with the list of what it has to show. ``--curve``
measures the same ratios in other settings instead.

Exit status: 0; 1 if a bar is missed; 2 without a cluster, or if a rank fails; 3 if variants train differently.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.cluster import ClusterError
from benchmarks.step.bars import listed, verdicts
from benchmarks.step.curve import CURVE, measure_curve
from benchmarks.step.memory import memory_table
from benchmarks.step.plots import draw_curve, draw_rows
from benchmarks.step.profiles import PROFILES, Profile
from benchmarks.step.run import DifferentTraining, command_line, run
from benchmarks.step.summary import table
from benchmarks.step.variants import VARIANTS


def main(
    profile: Annotated[str, typer.Option("--profile", "-p", help=f"One of {', '.join(PROFILES)}.")] = "quick",
    hosts: Annotated[int | None, typer.Option(min=1)] = None,
    lanes: Annotated[int | None, typer.Option(min=1, help="Ranks on each host.")] = None,
    rate: Annotated[str | None, typer.Option(help="Of each host's link.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per rank.")] = None,
    width: Annotated[int | None, typer.Option(min=8)] = None,
    ids: Annotated[str | None, typer.Option(help="How ids are distributed: uniform or kaggle.")] = None,
    table_lr: Annotated[float | None, typer.Option(help="Learning rate of the tables.")] = None,
    repeats: Annotated[int | None, typer.Option("--repeats", "-n", min=1)] = None,
    settle: Annotated[int | None, typer.Option(min=0, help="Steps before each timing that are not timed.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Steps of one timing.")] = None,
    variants: Annotated[str | None, typer.Option(help="Names separated by commas.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Fail where a bar of the profile is missed.")] = False,
    curve: Annotated[bool, typer.Option("--curve", help="A few variants in many settings instead.")] = False,
    output: Annotated[Path | None, typer.Option(help="Where the JSON goes; a picture goes beside it.")] = None,
) -> None:
    """Measure the variants in turn on a cluster of their own."""
    try:
        if curve:
            _curve(repeats, output or Path("build/bench/curve.json"))
        else:
            changed = {
                "hosts": hosts, "lanes": lanes, "rate": rate, "batch": batch, "width": width, "ids": ids,
                "table_lr": table_lr, "repeats": repeats,
                "settle": settle, "iterations": iterations,
            }  # fmt: skip
            chosen = _chosen(profile, variants, {key: value for key, value in changed.items() if value is not None})
            _rows(chosen, check, output or Path("build/bench/summary.json"))
    except ClusterError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except DifferentTraining as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(3) from None


def _chosen(profile: str, variants: str | None, changed: dict[str, Any]) -> Profile:
    if profile not in PROFILES:
        raise typer.BadParameter(f"no profile {profile!r}; there are: {', '.join(PROFILES)}")
    own = PROFILES[profile]
    names = variants.split(",") if variants else list(own.variants)
    if unknown := [name for name in names if name not in VARIANTS]:
        raise typer.BadParameter(f"unknown variants {unknown}; there are: {', '.join(VARIANTS)}")
    return dataclasses.replace(own, setting=dataclasses.replace(own.setting, **changed), variants=names)


def _rows(profile: Profile, check: bool, output: Path) -> None:
    summary, setting = run(profile, command_line("benchmarks.step")), profile.setting
    found = verdicts(profile.bars, summary) if check else []
    summary["bars"] = [dataclasses.asdict(verdict) for verdict in found]
    _write(summary, output)
    draw_rows(summary, output.with_suffix(".png"))
    typer.echo(f"{setting.hosts} x {setting.lanes}, {setting.rate}, {setting.batch} samples per rank; {output}")
    typer.echo(table(summary["rows"]))
    for name, why in summary["absent"].items():
        typer.echo(f"{name:26}{why}")
    if profile.memory:
        typer.echo("\n" + memory_table(summary["memory"]))
    if found:
        typer.echo("\n" + listed(found))
    if not all(verdict.holds for verdict in found):
        raise typer.Exit(1)


def _curve(repeats: int | None, output: Path) -> None:
    found: dict[str, Any] = {}
    for found in measure_curve(CURVE, repeats, command_line("benchmarks.step")):
        _write(found, output)  # what is measured stays, whatever becomes of the rest
        point = found["points"][-1]
        own = point["setting"]
        typer.echo(f"{own['hosts']} x {own['lanes']}, {own['rate']}, width {own['width']}, MLP {own['top']}")
        typer.echo(table(point["rows"]) + "\n")
    draw_curve(found, output.with_suffix(".png"))
    typer.echo(f"{output}, {output.with_suffix('.png')}")


def _write(content: dict[str, Any], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
