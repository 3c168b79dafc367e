"""What the runs of the quality benchmark say: means, paired differences, and how sure they are.

1. Runs of one seed have the same batches and the same initial tables: differences are taken seed by seed.
2. Random partitions stand for chance: of each seed, the mean of its random partitions is what a strategy is paired
   with.
3. A difference is *shown* if the 95 % interval of the paired t-test excludes zero. Intervals are not corrected for the
   number of comparisons, which is given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmt_plugin.report.tables import Column, Table

Run = Mapping[str, Any]
LEARNED = ("coherent", "diverse", "mutual_information")


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


def summarise(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One entry for every data set, number of towers, ratio and strategy.

    Args:
        runs: entries with `data`, `variant` ("flat", "sptt" or a strategy), `towers`, `ratio`, `seed`, `auc`,
            `logloss`, `real_ratio`.
    """
    cells: dict[tuple[Any, ...], dict[int, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        cells[run["data"], run["towers"], run["ratio"], run["variant"]][run["seed"]].append(run)
    found = []
    for (data, towers, ratio, variant), by_seed in cells.items():
        mean = _means(by_seed)
        every = [run["auc"] for some in by_seed.values() for run in some]
        losses = [run["logloss"] for some in by_seed.values() for run in some]
        entry: dict[str, Any] = {
            "data": data, "towers": towers, "ratio": ratio, "variant": variant, "runs": len(every),
            "auc": float(np.mean(every)), "auc_std": float(np.std(every, ddof=1)) if len(every) > 1 else None,
            "logloss": float(np.mean(losses)),
            "real_ratio": next(iter(by_seed.values()))[0]["real_ratio"],
        }  # fmt: skip
        flat, chance = (_means(cells.get(key, {})) for key in (
            (data, None, None, "flat"), (data, towers, ratio, "random"),
        ))  # fmt: skip
        shared = [s for s in mean if s in flat]
        if shared and variant != "flat":
            entry["to_flat"] = paired([mean[s] - flat[s] for s in shared])
        shared = [s for s in mean if s in chance]
        if shared and variant in (*LEARNED, "strided"):
            entry["to_random"] = paired([mean[s] - chance[s] for s in shared])
        found.append(entry)
    return found


def _means(by_seed: Mapping[int, Sequence[Run]]) -> dict[int, float]:
    return {seed: float(np.mean([run["auc"] for run in some])) for seed, some in by_seed.items()}


def table_of(entries: Sequence[Mapping[str, Any]], data: str) -> Table:
    """The entries of one data set as a table."""
    rows = []
    for entry in entries:
        if entry["data"] != data:
            continue
        label = entry["variant"]
        if entry["towers"] is not None:
            label = f"T={entry['towers']} " + (f"CR {entry['ratio']:g} " if entry["ratio"] else "") + label
        row = {"label": label, **{k: entry[k] for k in ("runs", "auc", "auc_std", "logloss", "real_ratio")}}
        for key in ("to_flat", "to_random"):
            row[key] = _said(entry[key]) if key in entry else None
        rows.append(row)
    return Table(
        [
            Column("label", data), Column("runs", "runs", "d"), Column("auc", "test AUC", ".4f"),
            Column("auc_std", "std", ".4f"), Column("logloss", "log loss", ".4f"),
            Column("real_ratio", "CR had", ".2f"), Column("to_flat", "to flat"), Column("to_random", "to random"),
        ],
        rows,
        ["`to flat`, `to random`: paired difference of AUC in units of .0001 with its 95 % interval; `*` excludes 0."],
    )  # fmt: skip


def _said(difference: Mapping[str, Any]) -> str:
    text = f"{1e4 * difference['mean']:+.0f}"
    if difference["low"] is not None:
        text += f" [{1e4 * difference['low']:+.0f}, {1e4 * difference['high']:+.0f}]"
    return text + ("*" if difference["shown"] else "")


def plot(entries: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """AUC less the flat model's, by data set and ratio: one group of points per number of towers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = sorted({(e["data"], e["ratio"]) for e in entries if e["ratio"] is not None})
    colours = {
        "strided": "#7b828e", "random": "#1b1d21", "coherent": "#2f6db5", "diverse": "#d2640f",
        "mutual_information": "#178a78",
    }  # fmt: skip
    figure = Figure(figsize=(5.2 * max(1, len(panels)), 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, max(1, len(panels)), squeeze=False)[0]
    for axis, (data, ratio) in zip(axes, panels, strict=False):
        own = [e for e in entries if (e["data"], e["ratio"]) == (data, ratio) and "to_flat" in e]
        counts = sorted({e["towers"] for e in own})
        for place, (variant, colour) in enumerate(colours.items()):
            for e in (e for e in own if e["variant"] == variant):
                x = counts.index(e["towers"]) + 0.15 * (place - 2)
                gap = e["to_flat"]
                half = 0.0 if gap["low"] is None else gap["high"] - gap["mean"]
                first = e["towers"] == counts[0]
                axis.errorbar(
                    x, gap["mean"], yerr=half, fmt="o", color=colour, capsize=3, markersize=5,
                    label=variant.replace("_", " ") if first else None,
                )  # fmt: skip
        axis.axhline(0, color="#7b828e", linewidth=1, linestyle="--")
        axis.set_xticks(range(len(counts)), [f"T = {t}" for t in counts])
        axis.set_title(f"{data}, CR {ratio:g}", loc="left")
        axis.set_ylabel("test AUC less the flat model's (95 % interval)")
        axis.grid(axis="y", color="#e2e3e1")
        axis.spines[["top", "right"]].set_visible(False)
    if panels:
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    return path
