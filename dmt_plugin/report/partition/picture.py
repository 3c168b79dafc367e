"""A partition as pictures: affinities ordered by tower, the plane with towers in colour, a bar of load per tower.

1. Each of the three is a function that draws on given axes, in colours that are handed in.
2. As PNG they stand together on one sheet; on a page (:mod:`dmt_plugin.report.partition.page`) each is an SVG of its
   own, whose text follows the page's colours.
3. Names in the plane avoid each other: each tries places around its point, near ones first, and takes the first that
   covers neither a point nor a name. Beyond 70 features only towers are named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmt_plugin.report.partition.view import PartitionView
from dmt_plugin.report.parts.figures import drawing
from dmt_plugin.report.parts.style import PALETTE

Colours = Mapping[str, str]

MOST_NAMES = 70
_TOWERS = (
    "#2f6db5", "#d2640f", "#178a78", "#a3468f", "#8a7a12", "#c23b3b", "#5b57b8", "#4f8f2f", "#7b828e", "#b06a4f",
)  # fmt: skip
_MARKERS = "osD^vPX*<>"
_NAME_PX = 8.0


def tower_style(tower: int) -> tuple[str, str]:
    """Colour and marker of a tower: 100 of them differ."""
    return _TOWERS[tower % len(_TOWERS)], _MARKERS[tower // len(_TOWERS) % len(_MARKERS)]


def draw_affinity(axes: Any, view: PartitionView, colours: Colours) -> None:
    """The heat map, its rows and columns tower by tower, a frame around each tower."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    assert view.affinity is not None
    count = len(view.names)
    pairs = ~np.eye(count, dtype=bool)
    shown = np.where(pairs, view.affinity, np.nan)  # the diagonal is 1 by definition and would set the scale
    low, high = (float(x) for x in (np.nanmin(shown), np.nanmax(shown))) if count > 1 else (0.0, 1.0)
    shades = ["#f3f4f2", "#9dbfe2", "#2f6db5", "#12294a"]
    blues = LinearSegmentedColormap.from_list("affinity", shades).with_extremes(bad="#d9dbd8")
    image = axes.imshow(shown, cmap=blues, vmin=low, vmax=high if high > low else low + 1e-9, interpolation="nearest")
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8, aspect=30, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelcolor=colours["muted"])
    start = 0
    for t, size in enumerate(view.sizes):
        axes.add_patch(
            Rectangle((start - 0.5, start - 0.5), size, size, fill=False, edgecolor=tower_style(t)[0], linewidth=2.2)
        )
        start += size
    if count <= MOST_NAMES:
        size_pt = max(5.0, min(9.0, 330 / count))
        axes.set_xticks(range(count), view.names, rotation=90, fontsize=size_pt)
        axes.set_yticks(range(count), view.names, fontsize=size_pt)
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            for label, tower in zip(labels, view.tower, strict=True):
                label.set_color(tower_style(int(tower))[0])
    else:
        middles = np.cumsum(view.sizes) - np.array(view.sizes) / 2 - 0.5
        every = math.ceil(len(middles) / 24)
        ticks = [(m, f"tower {t}") for t, m in enumerate(middles)][::every]
        axes.set_yticks([m for m, _ in ticks], [text for _, text in ticks], fontsize=7)
        axes.set_xticks([])
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.set_title(f"affinity: {view.kind}", loc="left", fontsize=10, color=colours["muted"])


def draw_plane(axes: Any, view: PartitionView, colours: Colours) -> None:
    """The plane of the layout: one point per feature, colour and marker by tower."""
    assert view.points is not None
    for t in range(len(view.sizes)):
        own = view.points[view.tower == t]
        colour, marker = tower_style(t)
        axes.scatter(own[:, 0], own[:, 1], s=46, c=colour, marker=marker, label=f"tower {t}", linewidths=0, zorder=3)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.14)
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(True)
        side.set_color(colours["line"])
    stress = view.provenance.get("layout", {}).get("stress_1")
    told = "" if stress is None else f" (stress-1 {stress:.3f})"
    axes.set_title(f"the plane{told}: near features belong together", loc="left", fontsize=10, color=colours["muted"])
    if len(view.names) <= MOST_NAMES:
        texts, places = view.names, view.points
        towers = [int(t) for t in view.tower]
    else:
        texts = tuple(str(t) for t in range(len(view.sizes)))
        places = np.stack([_middle(view.points[view.tower == t]) for t in range(len(view.sizes))])
        towers = list(range(len(view.sizes)))
    axes.figure.draw_without_rendering()  # places on paper are known from here on
    _write_names(axes, texts, places, towers, view.points, bold=len(view.names) > MOST_NAMES)


def _middle(points: np.ndarray) -> np.ndarray:
    """The point with the least distance to all others: a tower in several places is named at one of them."""
    apart = np.linalg.norm(points[:, None] - points[None], axis=2)
    return points[apart.sum(1).argmin()]


def _write_names(
    axes: Any, texts: Sequence[str], places: np.ndarray, towers: Sequence[int], points: np.ndarray, *, bold: bool
) -> None:
    """Writes each text near its place, where it covers neither points nor other texts."""
    scale = axes.figure.dpi / 72
    dots = axes.transData.transform(points) / scale
    centres = axes.transData.transform(places) / scale
    frame = axes.get_window_extent()
    x0, y0, x1, y1 = (v / scale for v in (frame.x0, frame.y0, frame.x1, frame.y1))
    size = _NAME_PX * (1.25 if bold else 1.0)
    taken = np.concatenate([dots - 4, dots + 4], axis=1)
    # From the edge inwards: a name at the edge has the fewest places to go.
    order = np.argsort(-np.linalg.norm(centres - centres.mean(0), axis=1), kind="stable")
    for i in order:
        width, height = 0.6 * size * len(texts[i]) + 2, size + 2
        x, y = centres[i]
        best: tuple[float, float, float] | None = None
        for reach in (6.0, 14.0, 24.0, 36.0, 52.0):
            for turn in range(16):
                angle = math.pi / 8 * turn
                dx = reach * math.cos(angle) + (width / 2) * math.cos(angle)
                dy = reach * math.sin(angle) + (height / 2) * math.sin(angle)
                box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
                inside = box[0] > x0 and box[1] > y0 and box[2] < x1 and box[3] < y1
                covered = _covered(box, taken) + (0 if inside else 1e6)
                if best is None or covered < best[2] - 1e-9:
                    best = dx, dy, covered
            if best is not None and best[2] == 0:
                break
        assert best is not None
        dx, dy, _ = best
        box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
        taken = np.concatenate([taken, [box]])
        colour = tower_style(towers[i])[0]
        gap = math.hypot(max(0.0, abs(dx) - width / 2), max(0.0, abs(dy) - height / 2))
        far = gap > 1.5 * _NAME_PX
        note = axes.annotate(
            texts[i],
            places[i],
            (dx, dy),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            fontweight="bold" if bold else "normal",
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkB": 3} if far else None,
            zorder=4,
        )
        note.set_in_layout(False)


def _covered(box: tuple[float, float, float, float], taken: np.ndarray) -> float:
    """How much of a box ``(x0, y0, x1, y1)`` the boxes ``(n, 4)`` cover, counted as often as they do."""
    wide = np.minimum(box[2], taken[:, 2]) - np.maximum(box[0], taken[:, 0])
    high = np.minimum(box[3], taken[:, 3]) - np.maximum(box[1], taken[:, 1])
    return float((wide.clip(min=0) * high.clip(min=0)).sum())


def draw_loads(axes: Any, view: PartitionView, colours: Colours) -> None:
    """A bar per tower, with the mean, and the limit where there is one."""
    towers = range(len(view.loads))
    axes.bar(towers, view.loads, width=0.7, color=[tower_style(t)[0] for t in towers])
    axes.axhline(view.fair, color=colours["muted"], linewidth=1, linestyle=(0, (4, 3)), label="mean of the towers")
    if view.limit is not None:
        axes.axhline(view.limit, color=colours["accent"], linewidth=1, label="limit")
    if len(view.loads) <= 32:
        text = "{:.0f}" if view.unit == "features" else "{:.3f}"
        for t, load in enumerate(view.loads):
            # In the middle of the bar: the lines of mean and limit run along its end.
            axes.text(t, load / 2, text.format(load), ha="center", va="center", fontsize=8, color="#ffffff")
    step = math.ceil(len(view.loads) / 32)
    axes.set_xticks(list(towers)[::step], [str(t) for t in towers][::step])
    axes.set_xlabel("tower")
    axes.set_ylim(0, max([*view.loads, view.limit or 0.0]) * 1.18)
    axes.set_title(f"load of each tower: {view.unit}", loc="left", fontsize=10, color=colours["muted"])
    axes.grid(axis="y", color=colours["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="both", length=0)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="lower right", bbox_to_anchor=(1.0, 1.0))


def save_png(view: PartitionView, path: str | Path, dpi: int = 130) -> Path:
    """All that there is to see of a partition on one sheet.

    Args:
        view: the partition.
        path: where the PNG goes.
        dpi: dots per inch.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    matplotlib = drawing("partitions")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = {name: light for name, (light, _) in PALETTE.items()}
    upper = [d for d, there in ((draw_affinity, view.affinity), (draw_plane, view.points)) if there is not None]
    with matplotlib.rc_context(look_of(colours)):
        figure = Figure(figsize=(8.2 * max(1, len(upper)), 10.6 if upper else 3.4), layout="constrained", dpi=dpi)
        FigureCanvasAgg(figure)
        figure.suptitle(view.headline, x=0.01, ha="left", fontsize=13, color=colours["ink"])
        rows = figure.add_gridspec(2 if upper else 1, max(1, len(upper)), height_ratios=(3, 1) if upper else (1,))
        draw_loads(figure.add_subplot(rows[-1, :]), view, colours)
        axes = [figure.add_subplot(rows[0, column]) for column in range(len(upper))]
        for one, draw in zip(axes, upper, strict=True):
            draw(one, view, colours)
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=dpi, facecolor=colours["card"], metadata={"Software": None})
    return target


def look_of(colours: Colours) -> dict[str, Any]:
    """matplotlib's settings for these pictures."""
    return {
        "font.size": 10,
        "text.parse_math": False,  # a name with two $ is no formula
        "axes.labelcolor": colours["muted"],
        "xtick.color": colours["muted"],
        "ytick.color": colours["muted"],
        "text.color": colours["ink"],
        "axes.edgecolor": colours["line"],
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
