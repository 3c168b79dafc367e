"""What it costs to observe a run: steps of one training with and without records, taken in turn.

    python -m benchmarks.observed                  # 2 hosts x 2 ranks on this machine, about a minute

1. Two engines of the same model live in the same ranks; one writes records every 10 steps into a folder, the other is
   not observed. Each pair of steps takes one of either, every second pair backwards.
2. A step takes as long as its slowest rank. The ratio is the median over the pairs; its spread the middle half of them.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from rich.console import Console
from torch.nn.functional import binary_cross_entropy_with_logits

from dmt_plugin.doctor import tiny
from dmt_plugin.topology.shape import Topology

HOSTS, LANES, WARM = 2, 2, 20


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=300)
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, (folder, chosen.pairs), HOSTS * LANES)


def _rank(rank: int, folder: str, pairs: int) -> None:
    world = HOSTS * LANES
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "DS_ACCELERATOR": "cpu"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    engines = [_engine(None), _engine(f"{folder}/records")]
    ratios, plain = [], []
    for pair in range(WARM + pairs):
        times = [0.0, 0.0]
        for which in (0, 1) if pair % 2 else (1, 0):
            times[which] = _step(engines[which], rank)
        slowest = torch.tensor(times, dtype=torch.float64)
        dist.all_reduce(slowest, dist.ReduceOp.MAX)
        if pair >= WARM:
            plain.append(float(slowest[0]))
            ratios.append(float(slowest[1] / slowest[0]))
    if rank == 0:
        low, middle, high = statistics.quantiles(ratios, n=4)
        Console().print(
            f"a step: {statistics.median(plain) * 1e3:.1f} ms; observed to not observed {middle:.3f} "
            f"[{low:.3f} to {high:.3f}], {pairs} pairs",
            highlight=False,
        )
    dist.barrier()
    os._exit(0)


def _engine(folder: str | None) -> Any:
    import dmt_plugin

    config = copy.deepcopy(tiny.config({"module": "dlrm", "dim": 4}, Topology(HOSTS, LANES), 120.0))
    config["dmt"]["report"] = {"dir": folder, "every": 10}
    model, example = tiny.build(), tiny.batch(0, tiny.SAMPLES)[:2]
    made, *_ = dmt_plugin.initialize(
        model=model, model_parameters=model.parameters(), config=config, example_batch=example
    )
    return made


def _step(engine: Any, rank: int) -> float:
    own = slice(rank * tiny.SAMPLES, (rank + 1) * tiny.SAMPLES)
    dense, ids, label = (part[own] for part in tiny.batch(0, HOSTS * LANES * tiny.SAMPLES))
    dist.barrier()
    began = time.perf_counter()
    engine.backward(binary_cross_entropy_with_logits(engine(dense, ids), label))
    engine.step()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
