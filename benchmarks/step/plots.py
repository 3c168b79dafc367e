"""Pictures of a summary and of a curve, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cluster.shape import parse_rate
from benchmarks.step.summary import by_setting
from benchmarks.step.variants import VARIANTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _MUTED, _GRID = "#1f2430", "#5d6472", "#e3e6ec"
_OURS, _PEER, _TOWER, _DISTINCT = "#2f6fdb", "#a3a9b7", "#d08b3c", "#4f9d69"
_KIND = {"ours": _OURS, "torchrec": _PEER, "torchrec_vbe": _DISTINCT, "torchrec_tower": _TOWER}
_LEGEND = {
    "torchrec": "TorchRec, flat",
    "torchrec_vbe": "TorchRec, distinct ids found beforehand",
    "torchrec_tower": "TorchRec, towers by hand",
    "ours": "this project",
}
_LINES = {
    "sptt_fp32": ("SPTT", "#7c8aa5"),
    "dmt_cr4_fp32": ("DMT, CR 4", "#2f6fdb"),
    "dmt_cr8_fp32": ("DMT, CR 8", "#123f8c"),
}

_NUMBER: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": 8.5}

_STYLE = {
    "font.size": 10,
    "text.color": _INK,
    "axes.labelcolor": _MUTED,
    "axes.edgecolor": _GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _MUTED,
    "ytick.color": _INK,
}


def draw_rows(summary: Mapping[str, Any], path: Path) -> None:
    """Step times of the first setting as bars, by wire precision: the link's own share of each, the ratio to the base.

    Args:
        summary: of a run.
        path: where the PNG goes.
    """
    setting, rows = by_setting(summary)[0]
    groups = {p: [n for n in rows if rows[n]["precision"] == p] for p in ("fp32", "fp16", "int8")}
    groups = {precision: names for precision, names in groups.items() if names}
    matplotlib, pyplot = _pyplot()
    longest = _scale(rows)
    with matplotlib.rc_context(_STYLE):
        figure, panels = pyplot.subplots(
            len(groups), 1, sharex=True, squeeze=False, layout="constrained",
            figsize=(10, 1.6 + 0.3 * sum(len(names) + 2 for names in groups.values())),
            gridspec_kw={"height_ratios": [len(names) + 1 for names in groups.values()]},
        )  # fmt: skip
        figure.suptitle(
            f"One training step, {setting['hosts']} hosts x {setting['lanes']} ranks, {setting['rate']} per host, "
            f"{setting['batch']} samples per rank, {setting['ids']} ids, width {setting['width']}",
            x=0.01, ha="left", fontsize=12,
        )  # fmt: skip
        for axes, (precision, names) in zip(panels[:, 0], groups.items(), strict=True):
            _bars(axes, rows, names, longest)
            axes.set_title(f"{precision} on the wire", loc="left", fontsize=10, color=_MUTED)
        panels[-1, 0].set_xlabel("ms per step: median, with the range of all repeats; hatched: the link's own time")
        _rows_legend(figure, {VARIANTS[row["variant"]].kind for row in rows.values()})
        _save(figure, path)
        pyplot.close(figure)


def _scale(rows: Mapping[str, Mapping[str, Any]]) -> float:
    """The longest step shown in full: what is far behind all others is cut off, and not the rest made small."""
    medians = sorted(row["median_ms"] for row in rows.values())
    limit = max(2.5 * medians[len(medians) // 2], medians[0])
    return max(row["max_ms"] for row in rows.values() if row["median_ms"] <= limit)


def _bars(axes: Axes, rows: Mapping[str, Mapping[str, Any]], names: Sequence[str], longest: float) -> None:
    for place, name in enumerate(names):
        row, colour = rows[name], _KIND[VARIANTS[rows[name]["variant"]].kind]
        shown = min(row["median_ms"], longest)
        axes.barh(place, shown, color=colour, height=0.72)
        own = min(row["nic_limit_ms"], shown)
        axes.barh(place, own, color="none", edgecolor="white", hatch="////", height=0.72, lw=0)
        cut = shown < row["median_ms"]
        if not cut:
            axes.hlines(place, row["min_ms"], row["max_ms"], color=_INK, lw=1)
        ratio = f"{row['ratio']:.2f}x" if row["ratio"] else "no ratio"
        text = f"{ratio}   {row['median_ms']:.0f} ms{' (cut off)' if cut else ''}"
        axes.text((shown if cut else row["max_ms"]) + 0.012 * longest, place, text, va="center", fontsize=9)
    axes.set_yticks(range(len(names)), [rows[name]["text"] for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.32 * longest)
    axes.grid(axis="x", color=_GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def _rows_legend(figure: Figure, kinds: set[str]) -> None:
    from matplotlib.patches import Patch

    entries = [Patch(color=_KIND[kind], label=text) for kind, text in _LEGEND.items() if kind in kinds]
    figure.legend(handles=entries, loc="outside lower left", ncols=len(entries), frameon=False, fontsize=9)


def draw_curve(curve: Mapping[str, Any], path: Path) -> None:
    """Ratios over the rate of the links, and in other shapes and widths.

    Args:
        curve: as :func:`benchmarks.step.curve.measure_curve` gives it.
        path: where the PNG goes.
    """
    points = curve["points"]
    by_rate = sorted(
        (p for p in points if p["family"] == "by rate"), key=lambda p: parse_rate(p["setting"]["rate"]) / 1e6
    )
    others = [p for p in points if p["family"] != "by rate"]
    matplotlib, pyplot = _pyplot()
    with matplotlib.rc_context({**_STYLE, "ytick.color": _MUTED}):
        figure, (left, right) = pyplot.subplots(1, 2, layout="constrained", figsize=(11, 4.4), sharey=True)
        for name, (text, colour) in _LINES.items():
            rates = [parse_rate(p["setting"]["rate"]) / 1e6 for p in by_rate]
            left.plot(rates, [p["rows"][name]["ratio"] for p in by_rate], "o-", color=colour, lw=2)
            for rate, point in zip(rates, by_rate, strict=True):
                ratio = point["rows"][name]["ratio"]
                left.annotate(f"{ratio:.2f}", (rate, ratio), (0, 7), **_NUMBER)
            left.lines[-1].set_label(text)
        left.set_xscale("log")
        left.set_xticks(rates, [_rate(rate) for rate in rates])
        left.minorticks_off()
        left.set_title(f"by rate of a host's link ({_shape(by_rate)})" if by_rate else "", loc="left", fontsize=10.5)
        _grouped(right, others)
        for axes in (left, right):
            axes.axhline(1, color=_INK, lw=1, ls=":")
            axes.set_ylim(0, 1.1 * max(p["rows"][name]["ratio"] for p in points for name in _LINES))
            axes.grid(axis="y", color=_GRID)
            axes.set_axisbelow(True)
        left.set_ylabel("times as fast as TorchRec table-wise, fp32")
        figure.legend(loc="outside lower center", ncols=len(_LINES), frameon=False, fontsize=9.5)
        _save(figure, path)
        pyplot.close(figure)


def _grouped(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    step = 0.8 / len(_LINES)
    for place, (name, (_, colour)) in enumerate(_LINES.items()):
        at = [index - 0.4 + (place + 0.5) * step for index in range(len(points))]
        ratios = [point["rows"][name]["ratio"] for point in points]
        axes.bar(at, ratios, width=0.9 * step, color=colour)
        for x, ratio in zip(at, ratios, strict=True):
            axes.annotate(f"{ratio:.2f}", (x, ratio), (0, 3), **_NUMBER)
    labels = [f"{_shape([p])}\n{_differs(p)}" for p in points]
    axes.set_xticks(range(len(points)), labels)
    axes.tick_params(length=0)
    axes.set_title("other shapes, wider tables, a larger dense part (100 Mbit/s)", loc="left", fontsize=10.5)


def _shape(points: Sequence[Mapping[str, Any]]) -> str:
    return f"{points[0]['setting']['hosts']} x {points[0]['setting']['lanes']}"


def _differs(point: Mapping[str, Any]) -> str:
    own = point["setting"]
    return {"by width": f"width {own['width']}", "by dense part": f"MLP {own['top']}"}.get(point["family"], "")


def _rate(megabits: float) -> str:
    return f"{megabits:g} Mbit/s" if megabits < 1000 else f"{megabits / 1000:g} Gbit/s"


def _pyplot() -> tuple[Any, Any]:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise RuntimeError("pictures need matplotlib; run `pip install 'dmt-plugin[report]'`") from error
    return matplotlib, pyplot


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})
