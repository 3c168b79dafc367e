"""The picture of a sweep: milliseconds of a step over what was varied, a line for each way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmt_plugin.planning.outcome import Estimate
from dmt_plugin.planning.sweep import Axis, lines, names
from dmt_plugin.report.parts.figures import COLOURS, saved, svg_of

WIDTH, HEIGHT = 9.0, 4.2
_LABELS = {"hosts": "hosts", "batch": "samples per rank", "nic": "GB/s to other hosts, per rank"}
_SERIES = ("muted", "series-1", "series-2", "series-3", "series-4")
_DASHES = ("-", "--", ":")


def picture(axis: Axis, swept: Mapping[float, Estimate], name: str = "sweep") -> str:
    """The picture for a page, as SVG in the colours of the page.

    Args:
        axis: what was varied.
        swept: by value the estimate.
        name: prefix of the ids in the SVG.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    return svg_of(lambda axes: draw(axes, axis, swept, COLOURS), width=WIDTH, height=HEIGHT, name=name)


def save(axis: Axis, swept: Mapping[float, Estimate], path: str | Path) -> Path:
    """Writes the picture to a file of its own, in the light colours; the ending says the format (svg, png, pdf).

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    return saved(lambda axes, colours: draw(axes, axis, swept, colours), path, (WIDTH, HEIGHT), "sweep")


def draw(axes: Any, axis: Axis, swept: Mapping[float, Estimate], colours: Mapping[str, str]) -> None:
    """A line for each way.

    Args:
        axes: of matplotlib.
        axis: what was varied.
        swept: by value the estimate.
        colours: by name of the palette.
    """
    told = lines(swept)
    for number, name in enumerate(names(told)):
        points = [(line["value"], line["rows"][name].ms) for line in told if name in line["rows"]]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            _DASHES[number // len(_SERIES) % len(_DASHES)],
            color=colours[_SERIES[number % len(_SERIES)]],
            marker="o",
            markersize=4,
            label=name,
        )
    values = [line["value"] for line in told]
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [f"{value:g}" for value in values], color=colours["muted"])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel(_LABELS[axis.key], color=colours["muted"])
    axes.set_ylabel("ms of a step", color=colours["muted"])
    axes.tick_params(length=0, labelcolor=colours["muted"])
    axes.grid(axis="y", color=colours["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=4, frameon=False, labelcolor=colours["ink"])
