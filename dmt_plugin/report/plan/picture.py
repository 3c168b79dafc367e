"""Fig. 10 of the paper beside the model: speed-up of DMT over the baseline, by model, device and number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmt_plugin.report.parts.figures import COLOURS, saved, svg_of

_SHOWN = {"five": ("series-2", "fitted on five numbers", "--"), "all": ("series-4", "fitted on all cells", "-")}
WIDTH, HEIGHT = 10.4, 4.0


def picture(data: Mapping[str, Any], name: str = "figure10") -> str:
    """The picture for a page, as SVG in the colours of the page.

    Args:
        data: of :func:`dmt_plugin.planner.paper.evaluation.evaluate`.
        name: prefix of the ids in the SVG.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    return svg_of(lambda axes: draw(axes, data, COLOURS), width=WIDTH, height=HEIGHT, name=name)


def save(data: Mapping[str, Any], path: str | Path) -> Path:
    """Writes the picture to a file of its own, in the light colours; the ending says the format (svg, png, pdf).

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    return saved(lambda axes, colours: draw(axes, data, colours), path, (WIDTH, HEIGHT), "plan")


def draw(axes: Any, data: Mapping[str, Any], colours: Mapping[str, str]) -> None:
    """Bars for the paper, lines for the model; groups by model and device.

    Args:
        axes: of matplotlib.
        data: of :func:`dmt_plugin.planner.paper.evaluation.evaluate`.
        colours: by name of the palette.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for cell in data["cells"]:
        if cell["figure"] == 10:
            groups.setdefault(" ".join(cell["cell"].split()[2:4]), []).append(cell)
    place = 0.0
    ticks: list[float] = []
    labels: list[str] = []
    for group, own in groups.items():
        at = [place + i for i in range(len(own))]
        first = not ticks
        axes.bar(
            at,
            [cell["paper"] for cell in own],
            0.72,
            color=colours["part-4"],
            label="paper" if first else None,
        )
        for name, (colour, label, dash) in _SHOWN.items():
            axes.plot(
                at,
                [cell["sets"][name]["model"] for cell in own],
                dash,
                color=colours[colour],
                marker="o",
                markersize=4,
                label=label if first else None,
            )
        axes.text(sum(at) / len(at), 2.3, group, ha="center", color=colours["ink"])
        ticks += at
        labels += [cell["cell"].split()[-1] for cell in own]
        place += len(own) + 0.8
    axes.axhline(1.0, color=colours["muted"], linewidth=0.9)
    axes.set_xticks(ticks, labels, fontsize=8, color=colours["muted"])
    axes.set_ylim(0, 2.45)
    axes.set_yticks([0, 0.5, 1, 1.5, 2])
    axes.set_xlabel("ranks", color=colours["muted"])
    axes.set_ylabel("speed-up of DMT over the baseline", color=colours["muted"])
    axes.tick_params(length=0, labelcolor=colours["muted"])
    axes.grid(axis="y", color=colours["line"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False, labelcolor=colours["ink"])
