"""Table, picture and page of the quality benchmark; nothing here is computed, :mod:`quality_statistics` has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality_runs import FORMS
from benchmarks.quality_statistics import ALL, LEARNED
from dmt_plugin.report.parts.tables import Column, Table

Entry = Mapping[str, Any]

COLOURS = {
    "strided": "#7b828e", "random": "#1b1d21", "coherent": "#2f6db5", "diverse": "#d2640f",
    "mutual_information": "#178a78",
}  # fmt: skip
_MARKERS = "osv^"
NOTE = (
    "Differences are paired by seed, in units of .0001, with their 95 % interval; `*`: it excludes 0, `**`: it still "
    "does after Holm's correction. More AUC and less log loss is better."
)


def table_of(entries: Sequence[Entry], data: str) -> Table:
    """The entries of one data set as a table."""
    rows = []
    for entry in entries:
        if entry["data"] != data:
            continue
        keys = ("runs", "auc", "auc_std", "logloss", "logloss_std", "real_ratio")
        row = {"label": label_of(entry), **{key: entry[key] for key in keys}}
        for key in ("to_flat", "to_random"):
            for metric in ("auc", "logloss"):
                row[f"{key}_{metric}"] = said(entry[key][metric]) if key in entry else None
        rows.append(row)
    columns = [
        Column("label", data), Column("runs", "runs", "d"), Column("auc", "AUC", ".4f"),
        Column("auc_std", "std", ".4f"), Column("logloss", "log loss", ".4f"), Column("logloss_std", "std", ".4f"),
        Column("real_ratio", "CR", ".2f"), Column("to_flat_auc", "AUC", note="to flat"),
        Column("to_flat_logloss", "log loss", note="to flat"), Column("to_random_auc", "AUC", note="to random"),
        Column("to_random_logloss", "log loss", note="to random"),
    ]  # fmt: skip
    return Table(columns, rows, [NOTE])


def label_of(entry: Entry) -> str:
    """What a row is."""
    if entry["variant"] in ("flat", "sptt"):
        return str(entry["variant"])
    towers = "all T" if entry["towers"] == ALL else f"T={entry['towers']}"
    return f"{towers} CR {entry['ratio']:g} {entry['form']} {entry['variant'].replace('_', ' ')}"


def said(test: Mapping[str, Any]) -> str:
    """A paired difference in one cell."""
    text = f"{1e4 * test['mean']:+.0f}"
    if test["low"] is not None:
        text += f" [{1e4 * test['low']:+.0f}, {1e4 * test['high']:+.0f}]"
    return text + ("**" if test.get("p_holm", 1.0) < 0.05 else "*" if test["shown"] else "")


def markdown(entries: Sequence[Entry], settings: Mapping[str, Any], origin: str) -> str:
    """The figures for a page.

    Args:
        entries: of all data sets.
        settings: what each data set was run with.
        origin: command, machine and date.
    """
    lines = [origin, ""]
    for data, about in settings.items():
        own = [entry for entry in entries if entry["data"] == data]
        if not own:
            continue
        tuning = about["setting"]
        passes = f"{tuning['epochs']} pass" + ("es" if tuning["epochs"] > 1 else "")
        ends = f", at the end of what was tried: {', '.join(about['at_end'])}" if about["at_end"] else ""
        trials = f"{len(about['tried'])} trials" + (f" of {about['tune_seeds']} seeds" * (about["tune_seeds"] > 1))
        head = (
            f"**{data}**: {about['rows']:,} training and {about['test_rows']:,} test rows, {passes}, batch "
            f"{tuning['batch']}, learning rates {tuning['lr_tables']:g} (tables) and {tuning['lr_dense']:g}, initial "
            f"deviation {tuning['init_std']:g} ({f'tuned on flat in {trials}' if about['tuned'] else 'given'}{ends})."
        )
        short = [entry for entry in own if entry["towers"] == ALL or entry["ratio"] is None]
        long = [entry for entry in own if entry not in short]
        lines += [head, "", *(f"- {text}" for text in statements(own)), "", *_rows(table_of(short, data)), ""]
        lines += [f"<details><summary>{data}, every number of towers</summary>", ""]
        lines += [*_rows(table_of(long, data)), "", "</details>", ""]
    return "\n".join([*lines, NOTE])


def statements(entries: Sequence[Entry]) -> list[str]:
    """What the AUCs of one data set say, in sentences that list every row concerned."""
    learned = [e for e in entries if e["variant"] in LEARNED and "to_random" in e]
    found = []
    for words, sign in (("better", 1), ("worse", -1)):
        rows = [e for e in learned if e["to_random"]["auc"]["shown"] and sign * e["to_random"]["auc"]["mean"] > 0]
        corrected = [e for e in rows if e["to_random"]["auc"].get("p_holm", 1.0) < 0.05]
        found.append(
            f"Learned {words} than the mean of random: {_named(rows, 'to_random')}, of {len(learned)} rows"
            + (f"; after correction: {_named(corrected, 'to_random')}." if rows else ".")
        )
    spread = [e["auc_within_seed_std"] for e in entries if "auc_within_seed_std" in e]
    flat = [e["auc_std"] for e in entries if e["variant"] == "flat" and e["auc_std"] is not None]
    if spread and flat:
        found.append(
            f"Random partitions of one seed deviate by {1e4 * sum(spread) / len(spread):.0f} in the mean over the rows "
            f"(at most {1e4 * max(spread):.0f}); seeds of the flat model by {1e4 * flat[0]:.0f}."
        )
    settings = dict.fromkeys((e["form"], e["ratio"]) for e in entries if e["ratio"] is not None)
    for form, ratio in settings:
        towers = [
            e for e in entries
            if (e["form"], e["ratio"]) == (form, ratio) and e["towers"] != ALL and "to_flat" in e
        ]  # fmt: skip
        outside = [e for e in towers if not e["to_flat"]["auc"]["within_seed_noise"]]
        worse = [e for e in towers if e["to_flat"]["auc"]["shown"] and e["to_flat"]["auc"]["mean"] < 0]
        better = [e for e in towers if e["to_flat"]["auc"]["shown"] and e["to_flat"]["auc"]["mean"] > 0]
        found.append(
            f"{form} at CR {ratio:g} against flat: {len(towers) - len(outside)} of {len(towers)} rows within its seed "
            f"noise; outside: {_named(outside, 'to_flat')}; shown to be worse: {_named(worse, 'to_flat')}; better: "
            f"{_named(better, 'to_flat')}."
        )
    return found


def _named(entries: Sequence[Entry], key: str) -> str:
    return ", ".join(f"{label_of(e)} ({1e4 * e[key]['auc']['mean']:+.0f})" for e in entries) or "none"


def _rows(table: Table) -> list[str]:
    """A Markdown table."""
    heads = [f"{c.title} {c.note}".strip() for c in table.columns]
    body = [[c.show(row) for c in table.columns] for row in table.rows]
    marks = ["---", *["---:"] * (len(heads) - 1)]
    return ["| " + " | ".join(cells).replace("*", "\\*") + " |" for cells in [heads, marks, *body]]


def plot(entries: Sequence[Entry], path: Path) -> Path:
    """AUC less the flat model's: a row per data set, a column per ratio, a group of points per number of towers."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [e for e in entries if e["ratio"] is not None and e["towers"] != ALL and "to_flat" in e]
    sets = list(dict.fromkeys(e["data"] for e in shown))
    ratios = sorted({e["ratio"] for e in shown})
    high, wide = max(1, len(sets)), max(1, len(ratios))
    figure = Figure(figsize=(6.4 * wide, 2.9 * high + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(high, wide, squeeze=False, sharey="row")
    names: dict[str, Any] = {}
    for axes, data in zip(grid, sets, strict=False):
        # Inside a group: form by form, the strategies in the order of their colours.
        own = [e for e in shown if e["data"] == data]
        series = sorted({(FORMS.index(e["form"]), list(COLOURS).index(e["variant"])) for e in own})
        for axis, ratio in zip(axes, ratios, strict=False):
            names |= _panel(axis, [e for e in own if e["ratio"] == ratio], series)
            axis.set_title(f"{data}, CR {ratio:g}", loc="left", fontsize=10)
        axes[0].set_ylabel("test AUC less flat's, .0001", fontsize=9)
    if names:
        figure.legend(
            list(names.values()), list(names), loc="outside lower center", ncols=min(8, len(names)), frameon=False,
            fontsize=8,
        )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    with rc_context({"svg.hashsalt": path.name}):  # the same figures give the same file
        figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix == ".svg" else None)
    return path


def _panel(axis: Any, entries: Sequence[Entry], series: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Points with 95 % intervals, colour by strategy and marker by form; returns the handles by name."""
    counts = sorted({e["towers"] for e in entries})
    handles = {}
    for entry in entries:
        form, strategy = FORMS.index(entry["form"]), list(COLOURS).index(entry["variant"])
        test, place = entry["to_flat"]["auc"], series.index((form, strategy))
        x = counts.index(entry["towers"]) + 0.8 * ((place + 0.5) / len(series) - 0.5)
        half = 0.0 if test["low"] is None else 1e4 * (test["high"] - test["mean"])
        name = f"{entry['form']} {entry['variant'].replace('_', ' ')}"
        handles[name] = axis.errorbar(
            x, 1e4 * test["mean"], yerr=half, fmt=_MARKERS[form], color=COLOURS[entry["variant"]], capsize=3,
            markersize=4.5, markerfacecolor=None if form == 0 else "white",
        )  # fmt: skip
    axis.axhline(0, color="#7b828e", linewidth=1, linestyle="--")
    axis.set_xticks(range(len(counts)), [f"T = {t}" for t in counts])
    axis.set_xlim(-0.5, len(counts) - 0.5)
    axis.grid(axis="y", color="#e2e3e1")
    axis.spines[["top", "right"]].set_visible(False)
    return handles
