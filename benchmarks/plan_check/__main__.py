"""``python -m benchmarks.plan_check``: measure, calibrate on two settings, compare; writes ``build/plan/check.json``.

1. All settings are measured on an emulated cluster, each variant with the records that a user's run writes.
2. ``dmt plan --calibrate`` makes ``build/plan/cluster.yaml`` of the runs of two of them with ids as Kaggle's.
3. All other runs are predicted, and every pair of a setting bound by links and one bound by cores is calibrated on.

Exit status: 0; 1 if a bar is missed; 2 without a cluster, or if a rank fails.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from benchmarks.cluster import Cluster, ClusterError
from benchmarks.plan_check.compare import errors_of, pairs_of, read_all, regrets, said_of
from benchmarks.plan_check.core_rate import flops_of_a_core
from benchmarks.plan_check.measure import measure
from benchmarks.plan_check.settings import (
    CALIBRATED,
    EXACT,
    IDS,
    SETTINGS,
    VARIANTS,
    folder_of,
    link_of,
    name_of,
    with_ids,
)
from benchmarks.step.run import about, command_line, import_once
from benchmarks.step.setting import Setting
from dmt_plugin.planner.cluster.files import cluster_of

_LIMIT_S = 900
_APART = 1e-5
_MEMORY_GB = 4

BARS = {
    "others: within 15 %, at least": 0.90,
    "others: mean error, at most": 0.08,
    "pairs: median of mean errors, at most": 0.08,
    "pairs: worst mean error, at most": 0.12,
    "regret of the choice, at most": 0.05,
}


def main(
    output: Annotated[Path, typer.Option(help="Folder for records, cluster.yaml and check.json.")] = Path("build/plan"),
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each variant.")] = 2,
    steps: Annotated[int, typer.Option(min=3, help="Steps of a turn, the first of which does not count.")] = 5,
    again: Annotated[bool, typer.Option("--again", help="Compare what was recorded; measure nothing.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Fail where a bar is missed.")] = False,
) -> None:
    """Predict steps that were measured."""
    runs, found = output / "runs", {**about(command_line("benchmarks.plan_check"))}
    begun = time.monotonic()
    try:
        if not again:
            shutil.rmtree(runs, ignore_errors=True)
            _write(output / "base.yaml", yaml.safe_dump(_base(flops_of_a_core()), sort_keys=False))
            _measure(runs, rounds, steps)
    except ClusterError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    found["measured_s"] = time.monotonic() - begun
    _calibrate(output, runs)
    base, fitted = cluster_of(str(output / "base.yaml")), cluster_of(str(output / "cluster.yaml"))
    measured = read_all(runs, base)
    rows = errors_of(fitted, measured)
    told = [name in CALIBRATED and ids == IDS[0] for name, ids in ((row["setting"], row["ids"]) for row in rows)]
    for row, own in zip(rows, told, strict=True):
        row["calibrated_on"] = own
    others = [row for row in rows if not row["calibrated_on"]]
    found |= {
        "cluster": yaml.safe_load((output / "cluster.yaml").read_text()),
        "others": said_of(others),
        "calibrated_on": said_of([row for row in rows if row["calibrated_on"]]),
        "pairs": pairs_of(base, measured),
        "regrets": regrets(rows),
        "runs": rows,
    }
    found["bars"] = _verdicts(found)
    _write(output / "check.json", json.dumps(found, indent=2) + "\n")
    typer.echo(_table(rows, found))
    typer.echo(f"wrote {output / 'check.json'}")
    if check and not all(bar["holds"] for bar in found["bars"]):
        raise typer.Exit(1)


def _base(flops: float) -> dict[str, Any]:
    """The cluster as its owner knows it before anything ran."""
    setting = SETTINGS[0]
    return {
        "name": "emulated on one machine",
        "hosts": setting.hosts,
        "ranks_per_host": setting.lanes,
        "nic_GBps_per_host": link_of(setting) / 1e9,
        "cores_of_all_hosts": os.cpu_count() or 1,
        "tflops": {"fp32": float(f"{flops / 1e12:.3g}")},
        "memory_GB": _MEMORY_GB,
    }


def _measure(runs: Path, rounds: int, steps: int) -> None:
    import_once()
    total, begun = len(SETTINGS) * len(IDS), time.monotonic()
    for number, (setting, ids) in enumerate(((s, i) for s in SETTINGS for i in IDS), 1):
        own = with_ids(setting, ids)
        own.rows_of(0)
        with Cluster(own.hosts, own.lanes, own.rate) as cluster:
            losses = cluster.call(measure, own, str(runs), rounds, steps, timeout_s=_LIMIT_S)
            cluster.check()
        _check_losses(losses, own)
        spent = time.monotonic() - begun
        typer.echo(f"[{number}/{total}] {name_of(own)} {ids}, {spent:.0f} s", err=True)


def _check_losses(losses: Sequence[Mapping[str, float]], setting: Setting) -> None:
    """Variants that leave the model as it is begin with one loss."""
    for rank, own in enumerate(losses):
        first = own[EXACT[0]]
        for name in EXACT[1:]:
            if abs(own[name] - first) > _APART * abs(first):
                raise SystemExit(f"{name_of(setting)}, rank {rank}: loss {own[name]} of {name}, {first} of {EXACT[0]}")


def _calibrate(output: Path, runs: Path) -> None:
    """``dmt plan --calibrate``, as a user calls it."""
    chosen = [with_ids(setting, IDS[0]) for setting in SETTINGS if name_of(setting) in CALIBRATED]
    folders = [folder_of(runs, setting, VARIANTS[0]).parent for setting in chosen]
    (output / "cluster.yaml").unlink(missing_ok=True)
    command = [
        str(Path(sys.executable).with_name("dmt")), "plan", "--model", "benchmarks.plan_check.model:build",
        "--cluster", str(output / "base.yaml"), "--output", str(output / "cluster.yaml"),
        *(part for folder in folders for part in ("--calibrate", str(folder))),
    ]  # fmt: skip
    typer.echo("$ " + " ".join(["dmt", *command[1:]]))
    subprocess.run(command, check=True)


def _verdicts(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    means = [pair["mean"] for pair in found["pairs"]]
    values = {
        "others: within 15 %, at least": found["others"]["within_15"],
        "others: mean error, at most": found["others"]["mean"],
        "pairs: median of mean errors, at most": statistics.median(means) if means else float("inf"),
        "pairs: worst mean error, at most": max(means, default=float("inf")),
        "regret of the choice, at most": max(one["regret"] for one in found["regrets"]),
    }
    return [
        {
            "bar": name, "wanted": wanted, "found": values[name],
            "holds": values[name] >= wanted if name.endswith("at least") else values[name] <= wanted,
        }
        for name, wanted in BARS.items()
    ]  # fmt: skip


def _table(rows: Sequence[Mapping[str, Any]], found: Mapping[str, Any]) -> str:
    lines = [f"{'setting':22}{'ids':9}{'variant':16}{'ms':>9}{'quartiles':>16}{'predicted':>11}{'error':>8}{'link':>6}"]
    for row in rows:
        low, high = row["quartiles_ms"]
        mark = "*" if row["calibrated_on"] else ""
        lines.append(
            f"{row['setting']:22}{row['ids']:9}{row['variant']:16}{row['ms']:9.1f}{f'{low:.0f}-{high:.0f}':>16}"
            f"{row['predicted_ms']:11.1f}{100 * row['error']:+7.1f}%{100 * row['link_busy']:5.0f}%{mark}"
        )
    lines.append("* calibrated on")
    for one in found["regrets"]:
        choice = f"chosen {one['chosen']}, best {one['best']}"
        lines.append(f"{one['setting']:22}{one['ids']:9}{choice}: {one['regret']:.1%}")
    for pair in found["pairs"]:
        lines.append(f"calibrated on {' and '.join(pair['pair'])}: mean {pair['mean']:.1%}, worst {pair['worst']:.1%}")
    for bar in found["bars"]:
        lines.append(f"{'ok    ' if bar['holds'] else 'MISSED'} {bar['bar']} {bar['wanted']:.0%}: {bar['found']:.1%}")
    return "\n".join(lines)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


if __name__ == "__main__":
    typer.run(main)
