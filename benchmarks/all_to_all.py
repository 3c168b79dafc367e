"""All-to-all on an emulated cluster: the library's, and this project's point-to-point form.

    python -m benchmarks.all_to_all --hosts 4 --lanes 2 --rate 200mbit

1. For each size (bytes each rank sends, itself included), group and form: a warm-up, then repeats, forms in turn.
   Ranks enter each repeat a little out of step, as they do in training (``--skew``).
2. The time of a repeat is that of the slowest rank; printed are the medians.
3. ``limit`` is the time the links need for the bytes alone.
"""

from __future__ import annotations

import random
import statistics
import time
from datetime import timedelta
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer

from benchmarks.cluster import Cluster, ClusterError
from dmt_plugin.comm.wire.transport import Transport
from dmt_plugin.topology.groups import create_groups
from dmt_plugin.topology.shape import Topology

GROUPS = ("world", "peers", "lanes")
FORMS = ("library", "messages")


def measure(
    rank: int, hosts: int, lanes: int, sizes: list[int], repeats: int, skew_ms: float
) -> dict[Any, list[float]]:
    """Seconds of every repeat on this rank, by (group, size, form)."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    groups = create_groups(Topology(hosts, lanes), timeout_s=60)
    members = {"world": hosts * lanes, "peers": hosts, "lanes": lanes}
    wires = {form: Transport(groups, messages=form == "messages") for form in FORMS}
    random.seed(rank)
    found: dict[Any, list[float]] = {}
    for group in GROUPS:
        for size in sizes:
            count = size // 4 // members[group]
            send, splits = torch.ones(count * members[group]), [count] * members[group]
            for repeat in range(-1, repeats):
                for form in FORMS:
                    dist.barrier()
                    time.sleep(random.random() * skew_ms / 1e3)
                    begun = time.perf_counter()
                    wires[form].all_to_all("measured", "forward", group, send, splits, splits).wait()  # type: ignore[arg-type]
                    if repeat >= 0:
                        found.setdefault((group, size, form), []).append(time.perf_counter() - begun)
    dist.barrier()
    return found


def main(
    hosts: Annotated[int, typer.Option(min=1)] = 2,
    lanes: Annotated[int, typer.Option(min=1)] = 2,
    rate: str = "200mbit",
    sizes: Annotated[str, typer.Option(help="kB per rank, separated by commas.")] = "4,64,512,4096",
    repeats: Annotated[int, typer.Option(min=1)] = 7,
    skew: Annotated[float, typer.Option(help="Ranks enter within so many milliseconds.")] = 2.0,
) -> None:
    """Compare the two forms on a cluster of its own."""
    chosen = [int(float(size) * 1000) for size in sizes.split(",")]
    try:
        with Cluster(hosts, lanes, rate) as cluster:
            ranks = cluster.call(measure, hosts, lanes, chosen, repeats, skew)
    except ClusterError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    bits = cluster.shape.rate_bit
    typer.echo(f"{hosts} x {lanes}, {rate}, medians of {repeats}, ms (slowest rank)")
    typer.echo(f"{'group':8}{'kB/rank':>9}{'limit':>9}" + "".join(f"{form:>10}" for form in FORMS))
    for group in GROUPS:
        for size in chosen:
            away = 0 if group == "lanes" else size * lanes * (hosts - 1) / hosts
            line = f"{group:8}{size / 1000:9g}{8e3 * away / bits:9.1f}"
            for form in FORMS:
                times = [max(repeat) for repeat in zip(*(r[group, size, form] for r in ranks), strict=True)]
                line += f"{1e3 * statistics.median(times):10.1f}"
            typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
