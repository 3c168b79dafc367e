"""Bars of a step, part on part, one per variant: solid what the rank does, hatched what it waits for.

Beside them the work alone, on a scale of its own: where waiting is most of a step, its parts would not be seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.step.breakdown_parts import IDLE, Where
from benchmarks.step.breakdown_style import FONT, INK, LINE, MUTED, PAPER, face, ink_on, legend_of, stack_order

_NAMED = 0.06
"""From this share of the longest bar on a stretch carries its figure."""


def draw_bars(file: Path, rows: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Write the picture.

    Args:
        file: ``.png``, ``.svg`` or ``.pdf``.
        rows: see ``breakdown_summary.rows_of``.
        title: what was measured.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.patches import Patch

    with matplotlib.rc_context({**FONT, "font.size": 10}):
        figure, (whole, work) = pyplot.subplots(
            1, 2, figsize=(13, 1.7 + 0.78 * len(rows)), layout="constrained", sharey=True,
            gridspec_kw={"width_ratios": (2.1, 1)},
        )  # fmt: skip
        used = _bars(whole, rows, stack_order())
        _bars(work, rows, [where for where in stack_order() if where.part != IDLE])
        whole.set_yticks(range(len(rows)), [f"{row['text']}\n{name}" for name, row in rows.items()])
        whole.set_ylim(len(rows) - 0.45, -0.55)
        whole.set_title(f"A step, {title}", loc="left", color=INK, fontsize=10.5)
        work.set_title("Of that, work", loc="left", color=INK, fontsize=10.5)
        entries = [Patch(label=text, **face(where)) for where, text in legend_of(used)]
        figure.legend(handles=entries, loc="outside lower center", ncols=7, frameon=False, handlelength=1.6)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=140)
        pyplot.close(figure)


def _bars(axes: Any, rows: Mapping[str, Mapping[str, Any]], order: Sequence[Where]) -> set[Where]:
    """One bar per variant; returns what is in them."""
    stacks = [{where: _ms(row, where) for where in order if _ms(row, where) > 0} for row in rows.values()]
    longest = max(sum(stack.values()) for stack in stacks)
    for at, stack in enumerate(stacks):
        left = 0.0
        for where, ms in stack.items():
            idle = where.part == IDLE
            axes.broken_barh([(left, ms)], (at - 0.3, 0.6), **face(where))
            if ms >= _NAMED * longest:
                paper = {"boxstyle": "square,pad=0.2", "facecolor": PAPER, "edgecolor": "none"}
                axes.annotate(f"{ms:.0f}", (left + ms / 2, at), ha="center", va="center", fontsize=9,
                              color=ink_on(where), bbox=paper if idle else None)  # fmt: skip
            left += ms
        axes.annotate(f"{left:.0f} ms", (left, at), (6, 0), textcoords="offset points", va="center",
                      fontweight="bold", color=INK)  # fmt: skip
    axes.set_xlim(0, longest * 1.15)
    axes.set_xlabel("ms, mean over the ranks", color=MUTED)
    axes.tick_params(length=0, labelcolor=INK)
    axes.spines[:].set_visible(False)
    axes.grid(axis="x", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    return {where for stack in stacks for where in stack}


def _ms(row: Mapping[str, Any], where: Where) -> float:
    own = row["idle"].get(where.detail, {"ms": 0.0}) if where.part == IDLE else row["parts"][where.part]
    return float(own["ms"])
