"""Does it matter which feature is in which tower? Flat, SPTT and DMT on data given by path, over seeds.

    python -m benchmarks.quality                                   # the demo's flights, a small setting
    python -m benchmarks.quality --data a.npz b.npz --seeds 5 --random 10 --tune

1. Tune the flat model on the validation part (`--tune`), or take the settings given.
2. Train a flat model with a seed of its own, and measure affinities on it: cosine of its embeddings, and mutual
   information of the ids.
3. For every seed: flat, SPTT, and towers for each number of towers, ratio and strategy. Random partitions, the honest
   baseline, are spread over the seeds.
4. Every run is written to `runs.jsonl` as it ends, and not run again. Then `summary.json`, a table, `quality.png`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks import quality_runs as runs
from benchmarks import quality_statistics as statistics
from dmt_plugin.config import PartitionConfig
from dmt_plugin.feature_rows import FeatureRows
from dmt_plugin.partitioner import Affinity, Partition, make_partition
from dmt_plugin.partitioning import measure_affinity

STRATEGIES = ("strided", "random", *statistics.LEARNED)
AFFINITY_SEED = 10_000
TUNING_SEED = 20_000


@dataclasses.dataclass(frozen=True)
class Job:
    """One run; the fields are its name in `runs.jsonl`."""

    data: str
    variant: str
    towers: int | None
    ratio: float | None
    partition: int
    seed: int


def jobs(data: str, seeds: int, towers: Sequence[int], ratios: Sequence[float], random: int) -> Iterator[Job]:
    """All runs of a data set: seed by seed, so that what has run so far is balanced."""
    for seed in range(seeds):
        yield Job(data, "flat", None, None, 0, seed)
        yield Job(data, "sptt", towers[0], None, 0, seed)
        for count, ratio in itertools.product(towers, ratios):
            for variant in STRATEGIES:
                drawn = range(seed, random, seeds) if variant == "random" else (0,)
                for partition in drawn:
                    yield Job(data, variant, count, ratio, partition, seed)


def tuned(data: runs.Data, base: runs.Tuning) -> tuple[runs.Tuning, list[dict[str, Any]]]:
    """The settings with the least validation log loss of the flat model, and all that were tried."""
    grid = itertools.product((3e-3, 1e-2, 3e-2), (1e-3, 3e-3, 1e-2), (0.02, 0.1))
    tried = []
    for lr_tables, lr_dense, std in tqdm(list(grid), desc=f"{data.name}: tuning the flat model"):
        setting = dataclasses.replace(base, lr_tables=lr_tables, lr_dense=lr_dense, init_std=std)
        model = runs.flat_model(data, setting, TUNING_SEED)
        runs.train(model, data, setting, TUNING_SEED)
        tried.append({**dataclasses.asdict(setting), **runs.score(model, data, runs.VALIDATION)})
    best = min(tried, key=lambda entry: entry["logloss"])
    return runs.Tuning(**{f.name: best[f.name] for f in dataclasses.fields(runs.Tuning)}), tried


def affinities(data: runs.Data, tuning: runs.Tuning) -> tuple[FeatureRows, dict[str, Affinity]]:
    """Both kinds of affinity, from the training part alone."""
    model = runs.flat_model(data, tuning, AFFINITY_SEED)
    runs.train(model, data, tuning, AFFINITY_SEED)
    rows = FeatureRows(model, (data.dense[:8], data.sparse[:8]))
    some = data.rows(runs.TRAIN, tuning.most_rows)
    some = some[torch.randperm(len(some), generator=torch.Generator().manual_seed(AFFINITY_SEED))]
    return rows, {
        kind: measure_affinity(rows, runs.batches(data, some, 1024), kind, missing="zero")  # type: ignore[arg-type]
        for kind in ("cosine", "mutual_information")
    }


def partition_of(job: Job, rows: FeatureRows, known: dict[str, Affinity]) -> Partition:
    """The towers of a run."""
    assert job.towers is not None
    affinity = None
    if job.variant in statistics.LEARNED:
        config = PartitionConfig(strategy="learned", objective=job.variant)  # type: ignore[arg-type]
        affinity = known["mutual_information" if job.variant == "mutual_information" else "cosine"]
    elif job.variant == "random":
        config = PartitionConfig(strategy="random", seed=job.partition)
    else:
        config = PartitionConfig(strategy="strided")
    return make_partition(rows.features, rows.tables, job.towers, config, affinity=affinity, model=rows.fingerprint)


def run(job: Job, data: runs.Data, tuning: runs.Tuning, form: str, rows: FeatureRows, known: Any) -> dict[str, Any]:
    """One training and its scores."""
    start = time.perf_counter()
    model: Any = runs.flat_model(data, tuning, job.seed)
    ratio = 1.0
    if job.towers is not None:
        model, ratio = runs.tower_model(model, data, partition_of(job, rows, known), job.ratio, form, job.seed)
    runs.train(model, data, tuning, job.seed)
    found = runs.score(model, data, runs.TEST)
    return {**dataclasses.asdict(job), **found, "real_ratio": ratio, "seconds": round(time.perf_counter() - start, 2)}


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", nargs="*", type=Path, default=[], help="data sets as .npz; the flights without any")
    parser.add_argument("--flights", action="store_true", help="the flights beside the data sets given")
    parser.add_argument("--towers", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--ratios", nargs="+", type=float, default=[2.0, 4.0], help="compression ratios to aim at")
    parser.add_argument("--form", choices=("tower", "feature"), default="tower", help="what a tower gives: see runs")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--random", type=int, default=4, help="random partitions of each setting, spread over seeds")
    parser.add_argument("--rows", type=int, default=40_000, help="training rows; 0 for all")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr-tables", type=float, default=1e-2)
    parser.add_argument("--lr-dense", type=float, default=3e-3)
    parser.add_argument("--init-std", type=float, default=0.02)
    parser.add_argument("--tune", action="store_true", help="tune the flat model on the validation part first")
    parser.add_argument("--out", type=Path, default=Path("build/quality"))
    options = parser.parse_args(given)
    if options.random < options.seeds:
        parser.error(f"--random {options.random} leaves seeds without a random partition; give {options.seeds} or more")
    return options


def measured(data: runs.Data, options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All runs of a data set, those of earlier calls with the same settings included."""
    tuning = runs.Tuning(
        options.batch, options.lr_tables, options.lr_dense, options.init_std, options.epochs, options.rows or None
    )
    tried: list[dict[str, Any]] = []
    if options.tune:
        saved = options.out / f"tuning-{data.name}-{_short(dataclasses.asdict(tuning))}.json"
        if not saved.exists():
            found, attempts = tuned(data, tuning)
            saved.write_text(json.dumps([dataclasses.asdict(found), attempts]))
        best, tried = json.loads(saved.read_text())
        tuning = runs.Tuning(**best)
    setting = {"form": options.form, **dataclasses.asdict(tuning)}
    log = options.out / f"runs-{data.name}-{_short(setting)}.jsonl"
    before = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    wanted = list(jobs(data.name, options.seeds, options.towers, options.ratios, options.random))
    done = {Job(**{f.name: entry[f.name] for f in dataclasses.fields(Job)}): entry for entry in before}
    missing = [job for job in wanted if job not in done]
    if missing:
        rows, known = affinities(data, tuning)
        with log.open("a") as file:
            for job in tqdm(missing, desc=data.name, unit="run"):
                done[job] = run(job, data, tuning, options.form, rows, known)
                file.write(json.dumps(done[job]) + "\n")
                file.flush()
    return [done[job] for job in wanted], {"setting": setting, "tuned": options.tune, "tried": tried}


def _short(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def main(given: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 1 if SPTT and flat differ, which they never may."""
    options = arguments(given)
    options.out.mkdir(parents=True, exist_ok=True)
    sets = [runs.load(path) for path in options.data]
    if options.flights or not sets:
        sets.append(runs.load_flights(options.out / "flights.npz"))
    every: list[dict[str, Any]] = []
    about: dict[str, Any] = {}
    for data in sets:
        found, about[data.name] = measured(data, options)
        every += found
    entries = statistics.summarise(every)
    flat = {(r["data"], r["seed"]): r["auc"] for r in every if r["variant"] == "flat"}
    unequal = [r for r in every if r["variant"] == "sptt" and r["auc"] != flat[r["data"], r["seed"]]]
    compared = sum("p" in e.get(key, {}) for e in entries for key in ("to_flat", "to_random"))
    summary = {"settings": about, "entries": entries, "comparisons": compared, "sptt_equals_flat": not unequal}
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    statistics.plot(entries, options.out / "quality.png")
    console = Console(width=120)
    for data in sets:
        console.print(statistics.table_of(entries, data.name).to_rich(f"quality on {data.name}"))
    console.print(f"{compared} comparisons; {options.out}/summary.json, {options.out}/quality.png")
    if unequal:
        console.print(f"SPTT differs from flat in {len(unequal)} runs: a defect of the compiler")
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
