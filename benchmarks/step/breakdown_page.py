"""The measured parts as a table of ``docs/breakdown.md``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.step.breakdown_parts import IDLE, PARTS, WAITED_FOR


def markdown(about: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What stands between the page's markers.

    Args:
        about: the setting, with command, machine and date.
        rows: see ``breakdown_summary.rows_of``.
    """
    own = list(rows.values())
    lines = [
        "| ms of a step | " + " | ".join(f"{row['text']}, `{name}`" for name, row in rows.items()) + " |",
        "| --- |" + " ---: |" * len(own),
    ]

    def line(text: str, values: list[float]) -> None:
        cells = [
            f"{ms:.1f} ({ms / row['step_ms']:.0%})".replace("%", " %") for ms, row in zip(values, own, strict=True)
        ]
        lines.append(f"| {text} | " + " | ".join(cells) + " |")

    for part in PARTS:
        values = [row["parts"][part]["ms"] for row in own]
        if any(values):
            line(f"**{part}**" if part == IDLE else part, values)
        if part == IDLE:
            for kind in WAITED_FOR:
                if any(kind in row["idle"] for row in own):
                    line(f"for {kind}", [row["idle"].get(kind, {"ms": 0.0})["ms"] for row in own])
            line("until the slowest rank had posted", [sum(k["late_ms"] for k in row["idle"].values()) for row in own])
    line("**step**", [row["step_ms"] for row in own])
    lines.append("| the same without a trace | " + " | ".join(f"{row['untraced_step_ms']:.1f}" for row in own) + " |")
    shape = (
        f"{about['hosts']} hosts x {about['lanes']} ranks, {about['rate']} per host, {about['batch']} samples per rank"
    )
    origin = f"{shape}, width {about['width']}: `{about['command']}`, {about['date']}, on {about['machine']}."
    return "![Parts of a step as stacked bars](breakdown.svg)\n\n" + "\n".join(lines) + f"\n\n{origin}"
