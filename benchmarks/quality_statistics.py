"""What the runs of the quality benchmark say: means, paired differences, and how sure they are.

1. Runs of one seed have the same batches and the same initial tables: differences are taken seed by seed.
2. Random partitions stand for chance: of each seed, the mean of its random partitions is what a strategy is paired
   with.
3. Beside every number of towers stands the mean over all of them (`towers` is `"all"`): fewer questions, and more runs
   for each answer.
4. A difference is *shown* if the 95 % interval of the paired t-test excludes zero. Ask often enough, and something is
   shown by chance: `p_holm` is corrected (Holm) for all questions of the same kind on the same data, those of single
   numbers of towers and those of the means apart.
5. Against flat, a mean difference of at most the flat model's own standard deviation over seeds is *within seed noise*.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

Run = Mapping[str, Any]
BySeed = Mapping[int, float]
LEARNED = ("coherent", "diverse", "mutual_information")
METRICS = ("auc", "logloss")
ALL = "all"


def paired(differences: Sequence[float]) -> dict[str, Any]:
    """Mean, 95 % interval and p of paired differences, by Student's t."""
    from scipy.stats import t as student
    from scipy.stats import ttest_1samp

    values = np.asarray(differences, dtype=float)
    found: dict[str, Any] = {"pairs": len(values), "mean": float(values.mean())}
    if len(values) < 2 or not values.std(ddof=1):
        return {**found, "low": None, "high": None, "p": None, "shown": False}
    half = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    p = float(ttest_1samp(values, 0.0).pvalue)
    return {
        **found, "low": found["mean"] - half, "high": found["mean"] + half, "p": p, "shown": abs(found["mean"]) > half,
    }  # fmt: skip


def holm(values: Sequence[float]) -> list[float]:
    """Holm's correction: each p as it would have to be if it were the only question asked."""
    found, least = [0.0] * len(values), 0.0
    for rank, i in enumerate(np.argsort(values, kind="stable")):
        least = max(least, min(1.0, (len(values) - rank) * values[i]))
        found[i] = least
    return found


def summarise(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One entry for every data set, form, number of towers, ratio and strategy, and for the mean over all towers.

    Args:
        runs: entries with `data`, `variant` ("flat", "sptt" or a strategy), `form`, `towers`, `ratio`, `seed`, `auc`,
            `logloss`, `real_ratio`.

    Returns:
        Entries with the paired differences `to_flat` and `to_random`, each with one entry per metric.
    """
    cells: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        cells[run["data"], run["form"], run["towers"], run["ratio"], run["variant"]].append(run)
    entries = [_entry(cells, key) for key in cells]
    entries += _means_over_towers(cells)
    for data in {entry["data"] for entry in entries}:
        for key in ("to_flat", "to_random"):
            for metric in METRICS:
                for pooled in (False, True):
                    _correct(
                        entry[key][metric]
                        for entry in entries
                        if entry["data"] == data and (entry["towers"] == ALL) == pooled and key in entry
                    )
    return entries


def comparisons(entries: Sequence[Mapping[str, Any]]) -> int:
    """Questions asked: paired tests of both metrics."""
    asked = (entry[key][metric] for entry in entries for key in ("to_flat", "to_random") if key in entry
             for metric in METRICS)  # fmt: skip
    return sum(test["p"] is not None for test in asked)


def _entry(cells: Mapping[tuple[Any, ...], Sequence[Run]], key: tuple[Any, ...]) -> dict[str, Any]:
    data, form, towers, ratio, variant = key
    own = cells[key]
    entry: dict[str, Any] = {
        "data": data, "form": form, "towers": towers, "ratio": ratio, "variant": variant, "runs": len(own),
        "seeds": len({run["seed"] for run in own}), "real_ratio": own[0]["real_ratio"],
    }  # fmt: skip
    for metric in METRICS:
        values = [run[metric] for run in own]
        entry[metric] = float(np.mean(values))
        entry[f"{metric}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
    if variant == "random" and len(own) > entry["seeds"]:
        entry["auc_within_seed_std"] = _within_seed(own, "auc")
    flat = cells.get((data, None, None, None, "flat"), ())
    if flat and variant != "flat":
        entry["to_flat"] = _compared(own, flat)
    chance = cells.get((data, form, towers, ratio, "random"), ())
    if chance and variant in (*LEARNED, "strided"):
        entry["to_random"] = _compared(own, chance)
    return entry


def _within_seed(runs: Sequence[Run], metric: str) -> float:
    """Deviation between partitions of one seed: an upper bound of what the choice of a partition is worth."""
    means = _by_seed(runs, metric)
    squares = sum((run[metric] - means[run["seed"]]) ** 2 for run in runs)
    return float(np.sqrt(squares / (len(runs) - len(means))))


def _compared(own: Sequence[Run], other: Sequence[Run]) -> dict[str, Any]:
    found = {}
    for metric in METRICS:
        mine, theirs = _by_seed(own, metric), _by_seed(other, metric)
        found[metric] = _differences(mine, theirs)
        noise = np.std(list(theirs.values()), ddof=1) if len(theirs) > 1 else 0.0
        found[metric]["within_seed_noise"] = bool(abs(found[metric]["mean"]) <= noise)
    return found


def _differences(mine: BySeed, theirs: BySeed) -> dict[str, Any]:
    shared = sorted(set(mine) & set(theirs))
    return paired([mine[seed] - theirs[seed] for seed in shared])


def _means_over_towers(cells: Mapping[tuple[Any, ...], Sequence[Run]]) -> list[dict[str, Any]]:
    """Per data set, form, ratio and strategy: every seed's mean over the numbers of towers it was run with."""
    settings: dict[tuple[Any, ...], set[int]] = defaultdict(set)
    for data, form, towers, ratio, variant in cells:
        if ratio is not None:
            settings[data, form, ratio, variant].add(towers)
    found: dict[tuple[Any, ...], list[Run]] = {}
    for (data, form, ratio, variant), counts in settings.items():
        if len(counts) < 2:
            continue
        each = [cells[data, form, towers, ratio, variant] for towers in sorted(counts)]
        seeds = set.intersection(*({run["seed"] for run in some} for some in each))
        means = {m: [_by_seed(some, m) for some in each] for m in METRICS}
        found[data, form, ALL, ratio, variant] = [
            {
                "seed": seed, "real_ratio": float(np.mean([some[0]["real_ratio"] for some in each])),
                **{m: float(np.mean([one[seed] for one in means[m]])) for m in METRICS},
            }
            for seed in sorted(seeds)
        ]  # fmt: skip
    with_flat = {**found, **{key: own for key, own in cells.items() if key[-1] == "flat"}}
    return [_entry(with_flat, key) for key, own in found.items() if own]


def _correct(tests: Iterable[dict[str, Any]]) -> None:
    asked = [test for test in tests if test["p"] is not None]
    for test, p in zip(asked, holm([test["p"] for test in asked]), strict=True):
        test["p_holm"] = p


def _by_seed(runs: Sequence[Run], metric: str) -> dict[int, float]:
    values: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        values[run["seed"]].append(run[metric])
    return {seed: float(np.mean(some)) for seed, some in values.items()}
