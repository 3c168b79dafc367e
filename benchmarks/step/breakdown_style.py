"""How parts of a step look in pictures: work is solid, waiting for it is the same colour, hatched."""

from __future__ import annotations

from typing import Any

from benchmarks.step.breakdown_parts import IDLE, PARTS, WAITED_FOR, Where
from dmt_plugin.report.parts.style import PALETTE

_COLOURS = {
    "index": "part-1",
    "lookup": "part-3",
    "intra": "series-3",
    "tower": "series-4",
    "peer": "series-2",
    "global": "series-2",
    "distinct": "part-2",
    "dense": "series-1",
    "all-reduce": "part-6",
    "optimizer": "part-4",
    "rest": "part-5",
}
INK, MUTED, LINE, PAPER = (PALETTE[name][0] for name in ("ink", "muted", "line", "card"))
FONT = {"font.family": "sans-serif", "font.size": 9, "hatch.linewidth": 0.9, "text.color": INK}


def colour(part: str) -> str:
    """Of a part, or of what is waited for."""
    return PALETTE[_COLOURS.get(part, "part-5")][0]


def face(where: Where) -> dict[str, Any]:
    """Arguments of a matplotlib patch."""
    if where.part == IDLE:
        return {"facecolor": PAPER, "edgecolor": colour(where.detail), "hatch": "/////", "linewidth": 0.0}
    return {"facecolor": colour(where.part), "edgecolor": "none", "linewidth": 0.0}


def ink_on(where: Where) -> str:
    """Colour of text on a patch of that kind: dark on light."""
    if where.part == IDLE:
        return INK
    red, green, blue = (int(colour(where.part)[i : i + 2], 16) for i in (1, 3, 5))
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 145 else PAPER


def stack_order() -> list[Where]:
    """Parts as they lie on each other: work first, then waiting."""
    work = [Where(part, "") for part in PARTS if part != IDLE]
    return [*work, *(Where(IDLE, kind) for kind in WAITED_FOR)]


def legend_of(used: set[Where]) -> list[tuple[Where, str]]:
    """What a legend has to explain, in order; parts of one colour together."""
    result = []
    for where in (w for w in stack_order() if w in used):
        names = [_name(w) for w in stack_order() if w in used and face(w) == face(where)]
        if names[0] == _name(where):
            what = ", ".join(names)
            result.append((where, f"waiting: {what}" if where.part == IDLE else what))
    return result


def _name(where: Where) -> str:
    return where.detail if where.part == IDLE else where.part
