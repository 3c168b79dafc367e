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
from benchmarks.step.profiles import PROFILES, Profile, Run
from benchmarks.step.run import DifferentTraining, command_line, run
from benchmarks.step.summary import by_setting, table
from benchmarks.step.variants import VARIANTS


def main(
    profile: Annotated[str, typer.Option("--profile", "-p", help=f"One of {', '.join(PROFILES)}.")] = "quick",
    hosts: Annotated[int | None, typer.Option(min=1)] = None,
    lanes: Annotated[int | None, typer.Option(min=1, help="Ranks on each host.")] = None,
    rate: Annotated[str | None, typer.Option(help="Of each host's link.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples per rank.")] = None,
    width: Annotated[int | None, typer.Option(min=8)] = None,
    ids: Annotated[str | None, typer.Option(help="How ids are distributed: uniform, kaggle or flights.")] = None,
    bag: Annotated[int | None, typer.Option(min=1, help="Ids of each sample and feature.")] = None,
    repeats: Annotated[int | None, typer.Option("--repeats", "-n", min=1)] = None,
    settle: Annotated[int | None, typer.Option(min=0, help="Steps before each timing that are not timed.")] = None,
    iterations: Annotated[int | None, typer.Option(min=1, help="Steps of one timing.")] = None,
    variants: Annotated[str | None, typer.Option(help="Names separated by commas.")] = None,
    only: Annotated[str | None, typer.Option(help="Runs of the profile, such as kaggle_b512, commas between.")] = None,
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
                "bag": bag, "repeats": repeats, "settle": settle, "iterations": iterations,
            }  # fmt: skip
            changed = {key: value for key, value in changed.items() if value is not None}
            chosen = _chosen(profile, variants, only, changed)
            _rows(chosen, check, output or Path("build/bench/summary.json"))
    except ClusterError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except DifferentTraining as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(3) from None


def _chosen(profile: str, variants: str | None, only: str | None, changed: dict[str, Any]) -> Profile:
    """The profile as the options change it: runs that become one another's like are one.

    Variants that are named are measured by the first run, and by each other run that has them.
    """
    if profile not in PROFILES:
        raise typer.BadParameter(f"no profile {profile!r}; there are: {', '.join(PROFILES)}")
    runs = list(PROFILES[profile].runs)
    if only is not None:
        tags = [one.setting.tag for one in runs]
        if unknown := [tag for tag in only.split(",") if tag not in tags]:
            raise typer.BadParameter(f"no runs {unknown} in the profile {profile!r}; there are: {', '.join(tags)}")
        runs = [one for one in runs if one.setting.tag in only.split(",")]
    names = variants.split(",") if variants else None
    if names and (unknown := [name for name in names if name not in VARIANTS]):
        raise typer.BadParameter(f"unknown variants {unknown}; there are: {', '.join(VARIANTS)}")
    chosen: dict[str, Run] = {}
    for one in runs:
        setting = dataclasses.replace(one.setting, **changed)
        own = [name for name in names if not chosen or name in one.variants] if names else list(one.variants)
        if own:
            chosen.setdefault(setting.tag, dataclasses.replace(one, setting=setting, variants=own))
    whole = PROFILES[profile]
    return Profile(list(chosen.values()), whole.bars, {} if names else whole.absent)


def _rows(profile: Profile, check: bool, output: Path) -> None:
    summary: dict[str, Any] = {}
    for summary in run(profile, command_line("benchmarks.step")):
        _write(summary, output)  # what is measured stays, whatever becomes of the rest
        setting, rows = by_setting(summary)[-1]
        where = f"{setting['hosts']} x {setting['lanes']}, {setting['rate']}, {setting['batch']} samples per rank"
        typer.echo(f"{where}, {setting['ids']} ids; {output}\n{table(rows)}\n")
    found = verdicts(profile.bars, summary) if check else []
    summary["bars"] = [dataclasses.asdict(verdict) for verdict in found]
    _write(summary, output)
    draw_rows(summary, output.with_suffix(".png"))
    for name, why in summary["absent"].items():
        typer.echo(f"{name:26}{why}")
    if "memory" in summary:
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
