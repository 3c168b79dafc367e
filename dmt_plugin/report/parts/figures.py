"""Charts as inline SVG whose colours follow the page: bars and areas in parts, and curves.

1. matplotlib draws with placeholder colours, one per name of the palette.
2. The saved SVG loses what a page does not want: XML head, metadata, namespaces, fixed size.
3. Placeholders become `var(--name)`, text takes the page's font, ids get a prefix of their own.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dmt_plugin.report.parts.style import PALETTE

COLOURS = {name: f"#0a{place:02x}c3" for place, name in enumerate(PALETTE, start=16)}


def stacked_bars(
    bars: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    *,
    unit: str,
    colours: Sequence[str] = ("part-1", "part-2", "part-3", "part-4", "part-5"),
    modelled: frozenset[str] = frozenset(),
    label: Callable[[float], str] = "{:,.0f}".format,
    name: str = "bars",
) -> str:
    """Horizontal bars made of parts, one bar below the other, with the sum at the end of each.

    Args:
        bars: names of the bars, from the top.
        parts: for each part its value in every bar.
        unit: label of the axis.
        colours: palette names, one per part.
        modelled: parts that were not measured; they are hatched.
        label: text of a sum.
        name: prefix of the ids in the SVG; has to differ between the pictures of a page.
    """

    def draw(axes: Any) -> None:
        left = [0.0] * len(bars)
        for (part, values), colour in zip(parts.items(), colours, strict=False):
            axes.barh(
                range(len(bars)),
                values,
                left=left,
                height=0.62,
                label=part,
                color=COLOURS[colour],
                edgecolor=COLOURS["card"],
                linewidth=0.8,
                hatch="////" if part in modelled else None,
            )
            left = [start + value for start, value in zip(left, values, strict=True)]
        for row, end in enumerate(left):
            axes.annotate(label(end), (end, row), (6, 0), textcoords="offset points", va="center", color=COLOURS["ink"])
        axes.set_yticks(range(len(bars)), bars)
        axes.invert_yaxis()
        axes.set_xlim(0, max(left, default=1.0) * 1.1 or 1.0)
        axes.set_xlabel(unit)
        axes.grid(axis="x", color=COLOURS["line"], linewidth=0.8)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
        axes.legend(
            loc="lower center",
            bbox_to_anchor=(0.47, 1.0),
            ncols=len(parts),
            frameon=False,
            columnspacing=1.4,
            handlelength=1.6,
        )

    return svg_of(draw, width=9.6, height=0.5 * len(bars) + 1.0, name=name)


def stacked_areas(
    x: Sequence[float],
    parts: Mapping[str, Sequence[float]],
    *,
    x_label: str,
    y_label: str,
    colours: Sequence[str] = ("part-1", "part-2", "part-3", "part-4", "part-5"),
    name: str = "areas",
) -> str:
    """Areas on top of each other over one axis.

    Args:
        x: where the values are.
        parts: for each part, from below, its value at every place.
        x_label: label of the axis.
        y_label: what the areas show; set above the picture.
        colours: palette names, one per part.
        name: prefix of the ids in the SVG; has to differ between the pictures of a page.
    """

    def draw(axes: Any) -> None:
        shown = [COLOURS[colour] for colour in colours[: len(parts)]]
        axes.stackplot(x, *parts.values(), labels=list(parts), colors=shown, edgecolor=COLOURS["card"], linewidth=0.5)
        axes.set_xlim(x[0], x[-1])
        axes.set_ylim(0)
        axes.set_xlabel(x_label)
        axes.set_title(y_label, loc="left", fontsize=10, color=COLOURS["muted"], pad=26)
        axes.grid(axis="y", color=COLOURS["line"], linewidth=0.8)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=len(parts), frameon=False, handlelength=1.6)

    return svg_of(draw, width=9.6, height=3.6, name=name)


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    colours: Sequence[str] = ("series-1", "series-2", "series-3", "series-4"),
    name: str = "curves",
) -> str:
    """Curves over one axis, each with its own dash and width so that curves on top of each other stay visible.

    Args:
        series: for each curve its x and y values.
        x_label: label of the axis.
        y_label: what the curves show; set above the picture.
        colours: palette names, one per curve.
        name: prefix of the ids in the SVG; has to differ between the pictures of a page.
    """

    def draw(axes: Any) -> None:
        from matplotlib.ticker import MaxNLocator

        dashes: list[Any] = ["-", (0, (6, 3)), (0, (1.5, 2.5)), "-"]
        widths = [5.0, 2.2, 2.6, 2.0]
        for place, (curve, (x, y)) in enumerate(series.items()):
            axes.plot(
                x,
                y,
                label=curve,
                color=COLOURS[colours[place % len(colours)]],
                linestyle=dashes[place % len(dashes)],
                linewidth=widths[place % len(widths)],
                alpha=0.45 if place == 0 and len(series) > 1 else 1.0,
                solid_capstyle="round",
            )
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel(x_label)
        axes.set_title(y_label, loc="left", fontsize=10, color=COLOURS["muted"])
        axes.grid(axis="y", color=COLOURS["line"], linewidth=0.8)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.legend(frameon=False, handlelength=3.2)

    return svg_of(draw, width=5.2, height=3.3, name=name)


def drawing(what: str) -> Any:
    """The module matplotlib, which the ``report`` extra brings.

    Args:
        what: pictures of what, for the error.

    Raises:
        RuntimeError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise RuntimeError(
            f"pictures of {what} need matplotlib, which is not installed; run `pip install 'dmt-plugin[report]'`"
        ) from error
    return matplotlib


def saved(
    draw: Callable[[Any, Mapping[str, str]], None], path: str | Path, size: tuple[float, float], salt: str
) -> Path:
    """Writes a picture to a file of its own, in the light colours; the ending says the format (svg, png, pdf).

    Args:
        draw: gets the axes and the colours by name of the palette.
        path: of the file; folders are made.
        size: width and height in inches.
        salt: what ids in an SVG are made from, so that they are the same each time.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    matplotlib = drawing("plans")
    from matplotlib.figure import Figure

    colours = {name: light for name, (light, _) in PALETTE.items()}
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    look = {"svg.hashsalt": salt, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(look):
        figure = Figure(figsize=size, layout="constrained", dpi=140, facecolor=colours["card"])
        draw(figure.add_subplot(), colours)
        figure.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
    return target


def svg_of(draw: Callable[[Any], None], *, width: float, height: float, name: str) -> str:
    """Runs `draw` on fresh axes and returns the SVG for the page; sizes in inches of 72 px.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    matplotlib = drawing("measurements")
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    look = {
        "svg.fonttype": "none",
        "svg.hashsalt": name,
        "hatch.linewidth": 1.0,
        "font.size": 10,
        "text.parse_math": False,
        "axes.labelcolor": COLOURS["muted"],
        "xtick.color": COLOURS["muted"],
        "ytick.color": COLOURS["muted"],
        "text.color": COLOURS["ink"],
        "axes.edgecolor": COLOURS["line"],
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        axes = figure.add_subplot()
        axes.patch.set_visible(False)
        draw(axes)
        raw = io.StringIO()
        figure.savefig(raw, format="svg", metadata={"Date": None, "Creator": None})
    return for_page(raw.getvalue(), name)


def for_page(svg: str, name: str) -> str:
    """The SVG matplotlib saved, made fit for a page: see steps 2 and 3 of the module."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?)\swidth="([\d.]+)pt"', r'\1 width="\2"', svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)\sheight="[\d.]+pt"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{name}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    for colour, placeholder in COLOURS.items():
        svg = svg.replace(placeholder, f"var(--{colour})")
    return svg.replace("<svg", '<svg class="chart" role="img"', 1)
