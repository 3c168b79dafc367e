"""Does it matter which feature is in which tower? Flat, SPTT and DMT on data given by path, over seeds.

    python -m benchmarks.quality                                   # the demo's flights, a small setting
    python -m benchmarks.quality --data a.npz b.npz --flights --seeds 5 --random 10 --rows 0 --tune --epochs 4

1. Tune the flat model on the validation part (`--tune`), or take the settings given.
2. Train a flat model with a seed of its own, and measure affinities on it: cosine of its embeddings, and mutual
   information of the ids.
3. For every seed: flat, SPTT, and towers for each form of output, number of towers, ratio and strategy. Random
   partitions, the honest baseline, are spread over the seeds.
4. Every run is written to a log as it ends, and not run again: a call with other strategies or more seeds adds to it,
   and `--done` sums up all that is there. Then `summary.json`, a table, `quality.png`; with `--page`, a page's figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tqdm import tqdm

from benchmarks import quality_report as report
from benchmarks import quality_runs as runs
from benchmarks import quality_statistics as statistics
from benchmarks import quality_tuning as tuning_of
from benchmarks.step.document import filled
from dmt_plugin.config.section import PartitionConfig
from dmt_plugin.partitioner import Affinity, Partition, make_partition
from dmt_plugin.partitioning.feature_rows import FeatureRows
from dmt_plugin.partitioning.partition_model import measure_affinity

STRATEGIES = ("strided", "random", *statistics.LEARNED)
AFFINITY_SEED = 10_000


@dataclasses.dataclass(frozen=True)
class Job:
    """One run; the fields are its name in the log."""

    data: str
    variant: str
    form: str | None
    towers: int | None
    ratio: float | None
    partition: int
    seed: int


def jobs(data: str, options: argparse.Namespace) -> Iterator[Job]:
    """All runs of a data set: seed by seed, so that what has run so far is balanced."""
    for seed in range(options.seeds):
        yield Job(data, "flat", None, None, None, 0, seed)
        yield Job(data, "sptt", None, options.towers[0], None, 0, seed)
        for form, towers, ratio, variant in itertools.product(
            options.forms, options.towers, options.ratios, options.strategies
        ):
            drawn = range(seed, options.random, options.seeds) if variant == "random" else (0,)
            for partition in drawn:
                yield Job(data, variant, form, towers, ratio, partition, seed)


def affinities(data: runs.Data, tuning: runs.Tuning) -> tuple[FeatureRows, dict[str, Affinity]]:
    """All kinds of affinity, from the training part alone."""
    model = runs.flat_model(data, tuning, AFFINITY_SEED)
    runs.train(model, data, tuning, AFFINITY_SEED)
    rows = FeatureRows(model, (data.dense[:8], data.sparse[:8]))
    some = data.rows(runs.TRAIN, tuning.most_rows)  # the samples are the first 50,000 of these, in random order
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


def run(job: Job, data: runs.Data, tuning: runs.Tuning, partition: Callable[[Job], Partition]) -> dict[str, Any]:
    """One training and its scores."""
    start = time.perf_counter()
    model: Any = runs.flat_model(data, tuning, job.seed)
    ratio = 1.0
    if job.towers is not None:
        model, ratio = runs.tower_model(model, data, partition(job), job.ratio, job.form, job.seed)
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
    parser.add_argument(
        "--forms", nargs="+", choices=runs.FORMS, default=["tower"],
        help="tower: outputs of the tower as a whole; feature: a narrower one per feature, by weights the tower "
        "shares; :torch: started as torch starts linear layers",
    )  # fmt: skip
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--random", type=int, default=4, help="random partitions of each setting, spread over seeds")
    parser.add_argument(
        "--rows", nargs="+", default=["40000"], metavar="N|NAME=N",
        help="training rows, evenly spread, 0 for all; for every data set, or for the one named",
    )  # fmt: skip
    parser.add_argument("--epochs", type=int, default=1, help="passes over the rows; with --tune, the most to try")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--lr-tables", type=float, default=1e-2)
    parser.add_argument("--lr-dense", type=float, default=3e-3)
    parser.add_argument("--init-std", type=float, default=0.02)
    parser.add_argument("--tune", action="store_true", help="tune the flat model on the validation part first")
    parser.add_argument(
        "--tune-seeds", nargs="+", default=["1"], metavar="N|NAME=N",
        help="trainings per trial of the tuning; for every data set, or for the one named",
    )  # fmt: skip
    parser.add_argument("--done", action="store_true", help="train nothing: the summary of the runs that are there")
    parser.add_argument("--page", type=Path, help="page to put the figures into, such as docs/quality.md")
    parser.add_argument("--out", type=Path, default=Path("build/quality"))
    options = parser.parse_args(given)
    if options.random < options.seeds:
        parser.error(f"--random {options.random} leaves seeds without a random partition; give {options.seeds} or more")
    return options


def number_of(name: str, given: Sequence[str]) -> int:
    """The number that an option such as `--rows` has for a data set; 0 if it has none.

    Raises:
        ValueError: it says something else than numbers.
    """
    numbers = dict(["", *text.split("=", 1)][-2:] for text in given)
    return int(numbers.get(name, numbers.get("", 0)))


def measured(data: runs.Data, options: argparse.Namespace) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """All runs of a data set, those of earlier calls with the same settings included, and what they were run with."""
    rows = number_of(data.name, options.rows) or None
    tuning = runs.Tuning(
        options.batch, options.lr_tables, options.lr_dense, options.init_std, options.epochs, rows
    )
    tried: list[dict[str, Any]] = []
    ends: list[str] = []
    seeds = max(1, number_of(data.name, options.tune_seeds)) if options.tune else 0
    if options.tune:
        about_tuning = {**dataclasses.asdict(tuning), **({"seeds": seeds} if seeds > 1 else {})}
        saved = options.out / f"tuning-{data.name}-{_short(about_tuning)}.json"
        if not saved.exists():
            if options.done:
                return [], {}
            found, attempts = tuning_of.tune(data, tuning, options.epochs, seeds)
            saved.write_text(json.dumps([dataclasses.asdict(found), attempts]))
        best, tried = json.loads(saved.read_text())
        tuning = runs.Tuning(**best)
        ends = tuning_of.at_end(tuning, options.epochs)
    setting = dataclasses.asdict(tuning)
    log = options.out / f"runs-{data.name}-{_short(setting)}.jsonl"
    before = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {Job(**{f.name: entry[f.name] for f in dataclasses.fields(Job)}): entry for entry in before}
    if not options.done:
        wanted = list(jobs(data.name, options))
        missing = [job for job in wanted if job not in done]
        done |= _run_all(missing, data, tuning, log)
        done = {job: done[job] for job in wanted}
    about = {
        "setting": setting, "tuned": options.tune, "tune_seeds": seeds, "at_end": ends, "tried": tried,
        "rows": len(data.rows(runs.TRAIN, tuning.most_rows)), "test_rows": len(data.rows(runs.TEST)),
    }  # fmt: skip
    return list(done.values()), about


def _run_all(missing: Sequence[Job], data: runs.Data, tuning: runs.Tuning, log: Path) -> dict[Job, dict[str, Any]]:
    """Runs jobs in order; each is in the log as soon as it has ended."""
    if not missing:
        return {}
    rows, known = affinities(data, tuning)
    # A partition depends on the number of towers, not on the form, the ratio or the seed of the run.
    made: dict[tuple[Any, ...], Partition] = {}

    def partition(job: Job) -> Partition:
        key = (job.variant, job.towers, job.partition)
        if key not in made:
            made[key] = partition_of(job, rows, known)
        return made[key]

    found = {}
    with log.open("a") as file:
        for job in tqdm(missing, desc=data.name, unit="run"):
            found[job] = run(job, data, tuning, partition)
            file.write(json.dumps(found[job]) + "\n")
            file.flush()
    return found


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
    compared = statistics.comparisons(entries)
    summary = {
        "command": _command(options), "settings": about, "entries": entries, "comparisons": compared,
        "sptt_equals_flat": not unequal, "runs": len(every),
    }  # fmt: skip
    (options.out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    report.plot(entries, options.out / "quality.png")
    console = Console(width=170)
    for data in sets:
        console.print(report.table_of(entries, data.name).to_rich(f"quality on {data.name}"))
    console.print(f"{compared} tests; {options.out}/summary.json, {options.out}/quality.png")
    if options.page is not None:
        origin = (
            f"`{_command(options)}`, {os.cpu_count()} vCPU ({platform.machine()}), {datetime.date.today()}; "
            f"{len(every)} trainings, {compared} tests. SPTT is flat, bit for bit: {'no' if unequal else 'yes'}."
        )
        picture = f"![Test AUC less the flat model's]({options.page.stem}.svg)"
        text = f"{report.markdown(entries, about, origin)}\n\n{picture}"
        options.page.write_text(filled(options.page.read_text(), text))
        report.plot(entries, options.page.with_suffix(".svg"))
    if unequal:
        console.print(f"SPTT differs from flat in {len(unequal)} runs: a defect of the compiler")
    return 1 if unequal else 0


def _command(options: argparse.Namespace) -> str:
    """The call that makes these figures from nothing: paths of data by their names alone."""
    words = ["python -m benchmarks.quality"]
    if options.data:
        words.append("--data " + " ".join(path.name for path in options.data))
    words += ["--flights"] * bool(options.flights) + ["--tune"] * bool(options.tune)
    if options.tune:
        words.append("--tune-seeds " + " ".join(options.tune_seeds))
    words += [f"--{key} {getattr(options, key)}" for key in ("seeds", "random", "epochs", "batch")]
    words += [f"--{key} " + " ".join(map(str, getattr(options, key))) for key in ("rows", "forms", "towers", "ratios")]
    return " ".join(words)


if __name__ == "__main__":
    sys.exit(main())
