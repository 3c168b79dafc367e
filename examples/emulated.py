"""The four runs once more, on a network: two hosts are two network namespaces, with a link of a stated rate between.

On the loopback of one machine bytes cost next to nothing, so that samples per second say little of fewer bytes. Here
they mean something, as far as two hosts on the cores of one machine go. Needs root, and what `benchmarks.cluster`
needs; where that cannot be had, the demo says why.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.cluster import Cluster, ClusterError
from benchmarks.cluster.processes import host_variables, inside
from dmt_plugin.report.parts.tables import Column, Table
from examples import two_hosts

RATE = "100mbit"
IN_WORDS = "100 Mbit/s"
STEPS = 60
ORDER = ("flat", "sptt", "dmt", "stock")
"""What is left out first, if the machine is slow, is last."""

LONGEST_S = 180.0
"""After this much no further run begins."""


def run_all(out: Path, arguments: Any, timeout_s: float, console: Console) -> dict[str, Any]:
    """Trains for a few steps on the emulated network.

    Args:
        out: the demo's folder, with its data and compiled extensions.
        arguments: gives the script of a run and its arguments, by name, folder and number of steps.
        timeout_s: seconds one run may take.
        console: for a line per run.

    Returns:
        `rate`, `steps` and by run `samples_per_s`; `why`, where some or all of them are missing.
    """
    folder = out / "emulated"
    folder.mkdir(parents=True, exist_ok=True)
    for shared in ("torch_extensions", "flights.npz"):
        if not (folder / shared).exists():
            (folder / shared).symlink_to((out / shared).resolve())
    console.print(f"\n[bold]the same on a network of {IN_WORDS}[/bold] between the hosts", highlight=False)
    started, speeds = time.monotonic(), {}
    try:
        with Cluster(two_hosts.HOSTS, two_hosts.RANKS_PER_HOST, RATE) as cluster:
            network = network_of(cluster)
            for name in ORDER:
                if time.monotonic() - started > LONGEST_S:
                    console.print(f"  {name}: left out, the demo has taken long enough", style="dim")
                    continue
                two_hosts.run(name, arguments(name, folder, STEPS), folder, timeout_s=timeout_s, network=network)
                metrics = json.loads((folder / name / "metrics.json").read_text())
                speeds[name] = metrics["samples_per_s"]
                console.print(f"  {name}: {speeds[name]:,.0f} samples/s", style="dim", highlight=False)
    except ClusterError as error:
        console.print(f"  not here: {error}", style="dim", markup=False, highlight=False)
        return {"why": str(error)}
    except two_hosts.RunError as error:  # what the four runs before have found stands
        console.print(f"  {error}", style="red", markup=False, highlight=False)
        return {"rate": IN_WORDS, "steps": STEPS, "samples_per_s": speeds, "why": str(error)}
    return {"rate": IN_WORDS, "steps": STEPS, "samples_per_s": speeds}


def network_of(cluster: Cluster) -> two_hosts.Network:
    """How launchers are started on the hosts of a cluster, and where they meet."""
    shape = cluster.shape
    return two_hosts.Network(shape.address(0), lambda host, command: inside(shape, host, command), host_variables())


def speed_table(found: dict[str, Any], summary: dict[str, Any]) -> Table:
    """Samples per second on the network, beside the bytes that cross it.

    Args:
        found: what :func:`run_all` gave.
        summary: of the demo.
    """
    speeds = found["samples_per_s"]
    flat = speeds.get("flat")
    rows = [
        {
            "run": name,
            "speed": speed,
            "ratio": speed / flat if flat else None,
            "bytes": summary[name]["cross_host_bytes_per_sample"],
        }
        for name, speed in speeds.items()
    ]
    columns = (
        Column("run", "run"),
        Column("speed", "samples/s", ",.0f", f"{found['rate']} between hosts"),
        Column("ratio", "to flat", ".2f"),
        Column("bytes", "bytes", ",.0f", "per sample, across hosts"),
    )
    note = (
        f"{found['steps']} steps, the first 20 left out; 2 hosts of 2 ranks as network namespaces of this machine, "
        "whose cores they share: one run each."
    )
    return Table(columns, rows, (note,), emphasis="dmt")
