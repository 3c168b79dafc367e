"""Does the partitioner find towers that were hidden in made-up data, and how long does it take?

    python -m benchmarks.planted                                # table, build/quality/planted.json
    python -m benchmarks.planted --page docs/partitioner.md     # the same, put into the page

1. Plant: the features of a block share a direction that is drawn again for each sample; each feature adds noise of its
   own. The affinity is measured on these rows as on a model's. Blocks are shuffled: the features' order says nothing.
2. Score: adjusted Rand index of towers against blocks, 1 for the same grouping and 0 for chance, mean and standard
   deviation over draws.
3. Time: 1,000 features into 64 towers by count, and under a balance by cost.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

from benchmarks.step.document import filled
from dmt_plugin.config.section import PartitionConfig
from dmt_plugin.partitioner import Affinity, Partition, make_partition
from dmt_plugin.partitioner.cosine import CosineAccumulator
from dmt_plugin.plan.tower_plan import FeatureSpec, TableSpec
from dmt_plugin.report.parts.tables import Column, Table

METHODS: dict[str, dict[str, Any]] = {
    "learned, refined": {"strategy": "learned"},
    "learned, as in the paper": {"strategy": "learned", "method": "paper"},
    "graph": {"strategy": "graph"},
    "random": {"strategy": "random"},
}
NOISES = (1.0, 2.0, 2.5, 3.0, 3.5)
FEATURES, BLOCKS, SAMPLES, WIDTH = 32, 8, 300, 16


def names_of(features: int) -> list[str]:
    """Names whose alphabetical order is that of their numbers."""
    return [f"f{i:04d}" for i in range(features)]


def planted_rows(
    features: int, blocks: int, noise: float, seed: int, samples: int = SAMPLES, width: int = WIDTH
) -> tuple[dict[str, Tensor], list[int]]:
    """Rows `(B, N)` of every feature, and its block; blocks are as even as it goes, in an order drawn from the seed.

    Args:
        features: number of features.
        blocks: number of blocks.
        noise: deviation of a feature's own part; the part that its block shares has 1.
        seed: of everything that is drawn.
        samples: `B`.
        width: `N`.
    """
    generator = torch.Generator().manual_seed(seed)
    block = (torch.randperm(features, generator=generator) % blocks).tolist()
    base = torch.randn(blocks, samples, width, generator=generator)
    rows = {
        name: base[b] + noise * torch.randn(samples, width, generator=generator)
        for name, b in zip(names_of(features), block, strict=True)
    }
    return rows, block


def planted(features: int, blocks: int, noise: float, seed: int, samples: int = SAMPLES) -> tuple[Affinity, list[int]]:
    """The affinity of planted features, and the block of each."""
    rows, block = planted_rows(features, blocks, noise, seed, samples)
    found = CosineAccumulator(list(rows))
    found.update(rows)
    return found.result(), block


def specs(features: int, seed: int = 0) -> tuple[list[FeatureSpec], list[TableSpec]]:
    """Features with a table each, of very unequal sizes."""
    rng = np.random.default_rng(seed)
    names = names_of(features)
    tables = [TableSpec(f"t.{n}", int(1000 * (1 + rng.pareto(1.2))), WIDTH) for n in names]
    return [FeatureSpec(n, (f"t.{n}",), 1) for n in names], tables


def made(affinity: Affinity | None, features: int, towers: int, **config: object) -> Partition:
    """A partition of planted features; `learned` unless said otherwise."""
    own, tables = specs(features)
    config = {"strategy": "learned", **config}
    return make_partition(own, tables, towers, PartitionConfig.model_validate(config), affinity=affinity)


def labels(partition: Partition, features: int) -> list[int]:
    """The tower of each feature."""
    tower = {name: t for t, names in enumerate(partition.towers) for name in names}
    return [tower[name] for name in names_of(features)]


def rand_index(affinity: Affinity, blocks: Sequence[int], seed: int, config: dict[str, Any]) -> float:
    """How well one partition finds the blocks."""
    from sklearn.metrics import adjusted_rand_score

    towers = made(affinity, len(blocks), len(set(blocks)), seed=seed, **config)
    return float(adjusted_rand_score(blocks, labels(towers, len(blocks))))


def recovery(noises: Sequence[float], draws: int) -> list[dict[str, Any]]:
    """A row per method: mean and deviation of its index at every noise, as numbers and in words."""
    found: dict[str, dict[float, list[float]]] = {method: {n: [] for n in noises} for method in METHODS}
    for noise in tqdm(noises, desc="planted blocks", unit="noise"):
        for seed in range(draws):
            affinity, blocks = planted(FEATURES, BLOCKS, noise, seed)
            for method, config in METHODS.items():
                found[method][noise].append(rand_index(affinity, blocks, seed, config))
    rows: list[dict[str, Any]] = []
    for method, own in found.items():
        mean = {f"{n:g}": float(np.mean(v)) for n, v in own.items()}
        std = {f"{n:g}": float(np.std(v, ddof=1)) if len(v) > 1 else 0.0 for n, v in own.items()}
        said = {key: f"{mean[key]:.2f} ± {std[key]:.2f}" for key in mean}
        rows.append({"label": method, **said, "mean": mean, "std": std})
    return rows


def timed(features: int, towers: int) -> list[dict[str, Any]]:
    """Seconds for a large model, by the clock and of the processor, and how even its towers are."""
    affinity, _ = planted(features, towers, 1.0, 0, samples=40)
    found = []
    for balance, config in (("count", {}), ("cost", {"bound": 1.1})):
        start, used = time.perf_counter(), time.process_time()
        partition = made(affinity, features, towers, balance=balance, **config)
        seconds, processor = time.perf_counter() - start, time.process_time() - used
        (group,) = partition.provenance["balance"]["groups"]
        even = group.get("heaviest_to_fair_share", group.get("largest_to_smallest"))
        found.append({"balance": balance, "seconds": seconds, "processor_seconds": processor, "evenness": even})
    return found


def main(given: Sequence[str] | None = None) -> int:
    """Runs both parts."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planted", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--noises", nargs="+", type=float, default=list(NOISES), help="noise to signal")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--features", type=int, default=1000, help="of the timed partition")
    parser.add_argument("--towers", type=int, default=64, help="of the timed partition")
    parser.add_argument("--page", type=Path, help="page to put the figures into")
    parser.add_argument("--out", type=Path, default=Path("build/quality/planted.json"))
    options = parser.parse_args(given)
    rows, times = recovery(options.noises, options.draws), timed(options.features, options.towers)
    table = Table(
        [Column("label", "noise to signal"), *(Column(f"{n:g}", f"{n:g}") for n in options.noises)], rows
    )
    count, cost = (f"{t['processor_seconds']:.1f} s of processor ({t['seconds']:.1f} s by the clock)" for t in times)
    told = (
        f"{options.features:,} features into {options.towers} towers: {count} by count, largest to smallest "
        f"{times[0]['evenness']:.2f}; {cost} by cost under a bound of 1.1, heaviest to fair share "
        f"{times[1]['evenness']:.2f}."
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"recovery": rows, "draws": options.draws, "timed": times}, indent=2) + "\n")
    console = Console(width=120)
    title = f"adjusted Rand index, {FEATURES} features in {BLOCKS} blocks, mean of {options.draws} draws"
    console.print(table.to_rich(title))
    console.print(told)
    if options.page is not None:
        heads = [c.title for c in table.columns]
        lines = [heads, ["---", *["---:"] * len(options.noises)]]
        lines += [[c.show(row) for c in table.columns] for row in table.rows]
        text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        origin = f"`python -m benchmarks.planted`, {os.cpu_count()} vCPU, {datetime.date.today()}."
        options.page.write_text(filled(options.page.read_text(), f"{text}\n\n{told} {origin}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
