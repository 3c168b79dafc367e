"""One rank's step over time: what the main thread does, which exchanges are under way, what the host's link carries.

1. Of every variant the step whose time is the median of its repeats.
2. Lanes from the top: the main thread (solid: work, hatched: blocked), then one lane per kind of exchange, from posted
   to arrived (hatched once somebody waits; a bar that is never hatched was hidden by work), then the link.
3. Exchanges of one kind that overlap lie below each other in their lane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cluster.shape import parse_rate
from benchmarks.step.breakdown_link import Sample
from benchmarks.step.breakdown_measure import Flight, Traced, TracedStep
from benchmarks.step.breakdown_parts import ALL_REDUCE, IDLE, WAITED_FOR, Where
from benchmarks.step.breakdown_style import FONT, INK, LINE, MUTED, PAPER, colour, face, legend_of

_BIN_S = 4e-3
_NAMED_BYTES = 100_000
_LETTER = 0.0052
"""Width of a letter, as a share of the picture's."""
_LANE = 0.34
"""Height of a lane, inches."""


def median_step(traced: Traced) -> TracedStep:
    """The step of middle duration."""
    return sorted(traced.steps, key=lambda step: step.seconds)[len(traced.steps) // 2]


def draw_timeline(file: Path, variants: Mapping[str, Traced], link: Sequence[Sample], rate: str, title: str) -> None:
    """Write the picture.

    Args:
        file: ``.svg``, ``.png`` or ``.pdf``.
        variants: one rank's traces by name.
        link: what its host's link carried; may be empty.
        rate: of the link.
        title: whose step it is.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    steps = {name: median_step(traced) for name, traced in variants.items()}
    longest = 1e3 * max(step.seconds for step in steps.values())
    rows = {name: _lanes(step) for name, step in steps.items()}
    fixed = 1.4 + (1.8 if link else 0)
    heights = [_LANE * (fixed + sum(len(own) for own in lanes.values())) for lanes in rows.values()]
    with matplotlib.rc_context(FONT):
        figure, panels = pyplot.subplots(
            len(steps), 1, figsize=(13, sum(heights) + 0.55 * len(steps) + 1.0), squeeze=False,
            gridspec_kw={"height_ratios": heights}, layout="constrained",
        )  # fmt: skip
        used: set[Where] = set()
        for axes, (name, step) in zip(panels[:, 0], steps.items(), strict=True):
            axes.set_xlim(0, longest * 1.005)
            used |= _panel(axes, step, rows[name], link, parse_rate(rate))
            text = f"{name}: {1e3 * step.seconds:.1f} ms"
            axes.set_title(text, loc="left", fontsize=10, fontweight="bold", color=INK)
        panels[-1, 0].set_xlabel("ms since the step began", color=MUTED)
        entries = [Patch(label=text, **face(where)) for where, text in legend_of(used)]
        figure.legend(handles=entries, loc="outside lower center", ncols=8, frameon=False, handlelength=1.6)
        figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, color=MUTED)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=130)
        pyplot.close(figure)


def _lanes(step: TracedStep) -> dict[str, list[list[Flight]]]:
    """Rows of every kind of exchange, so that none overlaps another in its row."""
    lanes: dict[str, list[list[Flight]]] = {}
    for kind in WAITED_FOR:
        rows: list[list[Flight]] = []
        for flight in sorted((f for f in step.flights if f.part == kind), key=lambda f: f.started):
            free = (row for row in rows if _end(row[-1], step) <= flight.started)
            row = next(free, None)
            if row is None:
                rows.append(row := [])
            row.append(flight)
        if rows:
            lanes[kind] = rows
    return lanes


def _end(flight: Flight, step: TracedStep) -> float:
    end = step.begun + step.seconds
    return end if flight.arrived is None else min(flight.arrived, end)


def _panel(
    axes: Any, step: TracedStep, lanes: Mapping[str, Sequence[Sequence[Flight]]], link: Sequence[Sample], rate: int
) -> set[Where]:
    used: set[Where] = set()
    ticks: list[tuple[float, str]] = [(-0.2, "main thread")]
    for span in step.spans:
        where = span.where if span.where.part == IDLE else Where(span.where.part, "")
        axes.broken_barh([(1e3 * span.begin, 1e3 * (span.end - span.begin))], (-0.65, 0.9), **face(where))
        used.add(where)
    _phases(axes, step)
    top = 1.0
    for kind, rows in lanes.items():
        ticks.append((top + (len(rows) - 1) / 2, kind))
        for row in rows:
            begins = [1e3 * (flight.started - step.begun) for flight in row]
            for flight, free in zip(row, [*begins[1:], axes.get_xlim()[1]], strict=True):
                _flight(axes, flight, step, top, free)
            top += 1
    if link:
        ticks.append((top + 0.7, "link"))
        _link(axes, step, link, rate, top - 0.25)
        top += 1.8
    axes.set_ylim(top - 0.4, -1.0)
    axes.set_yticks([y for y, _ in ticks], [text for _, text in ticks])
    axes.tick_params(length=0, labelcolor=MUTED)
    axes.spines[:].set_visible(False)
    axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    return used


def _phases(axes: Any, step: TracedStep) -> None:
    """A line where the backward pass begins."""
    turn = next((span.begin for span in step.spans if span.phase == "backward"), None)
    if turn is not None:
        axes.axvline(1e3 * turn, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate("backward", (1e3 * turn, -0.98), (3, 0), textcoords="offset points", fontsize=7.5, va="top",
                      color=INK)  # fmt: skip


def _flight(axes: Any, flight: Flight, step: TracedStep, y: float, free: float) -> None:
    """A bar; nothing lies behind it until ``free``."""
    begin, end = max(0.0, 1e3 * (flight.started - step.begun)), 1e3 * (_end(flight, step) - step.begun)
    waited = end if flight.waited is None or flight.beside else min(end, max(begin, 1e3 * (flight.waited - step.begun)))
    shade = {"facecolor": colour(flight.part), "edgecolor": "none", "linewidth": 0.0}
    axes.broken_barh([(begin, max(waited - begin, 0.0))], (y - 0.32, 0.64), **shade)
    axes.broken_barh([(waited, max(end - waited, 0.0))], (y - 0.32, 0.64), **face(Where(IDLE, flight.part)))
    size = f"{flight.sent / 1e6:.2f} MB"
    texts = [f"{flight.name} {flight.phase}, {size}", f"{flight.phase}, {size}", size]
    low, high = axes.get_xlim()
    room = {text: _LETTER * len(text) * (high - low) for text in texts}
    paper = {"boxstyle": "square,pad=0.15", "facecolor": PAPER, "edgecolor": "none"}
    style: dict[str, Any] = {"fontsize": 7.5, "va": "center", "color": INK}
    if flight.part == ALL_REDUCE:
        texts = [flight.name]  # nobody has counted its bytes
        room = {flight.name: _LETTER * len(flight.name) * (high - low)}
    elif flight.sent < _NAMED_BYTES:
        return
    if inside := [text for text in texts if room[text] < end - begin]:
        axes.annotate(inside[0], ((begin + end) / 2, y), ha="center", bbox=paper, **style)
    elif behind := [text for text in texts if room[text] < free - end]:
        axes.annotate(behind[0], (end, y), (3, 0), textcoords="offset points", **style)


def _link(axes: Any, step: TracedStep, link: Sequence[Sample], rate: int, top: float) -> None:
    """Sent upwards, received downwards, each against the link's rate."""
    import numpy as np

    clocks = np.array([sample.clock for sample in link]) - step.begun
    edges = np.arange(0, step.seconds + _BIN_S, _BIN_S)
    middle = top + 0.85
    for counts, sign, text in (
        ([sample.sent for sample in link], -1, "sent"), ([sample.received for sample in link], 1, "received"),
    ):  # fmt: skip
        share = np.diff(np.interp(edges, clocks, counts)) * 8 / _BIN_S / rate
        axes.stairs(middle + sign * 0.7 * share, 1e3 * edges, baseline=middle, fill=True, color=MUTED,
                    alpha=0.75 if sign < 0 else 0.45)  # fmt: skip
        axes.axhline(middle + sign * 0.7, color=LINE, linewidth=0.8)
        axes.annotate(text, (0, middle + sign * 0.42), (2, 0), textcoords="offset points", fontsize=6.5, va="center",
                      color=INK)  # fmt: skip
