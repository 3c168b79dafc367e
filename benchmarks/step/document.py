"""``python -m benchmarks.step.document``: put measured figures into ``docs/benchmarks.md``.

1. Read the summary, and the curve where there is one.
2. Write their tables, with command, machine and date, between the markers of the page; the rest stays as it is.

A page may have figures of several machines: a part of the page for each, with markers of that name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

PART = "bench"


def marks(part: str = PART) -> tuple[str, str]:
    """Where a part of the page begins and ends."""
    return f"<!-- {part}:begin -->", f"<!-- {part}:end -->"


BEGIN, END = marks()


def main(
    summary: Annotated[Path, typer.Option(help="Of `make bench`.")] = Path("build/bench/summary.json"),
    curve: Annotated[Path, typer.Option(help="Of `--curve`; left out where it is not there.")] = Path(
        "build/bench/curve.json"
    ),
    page: Annotated[Path, typer.Option(help="The page to fill.")] = Path("docs/benchmarks.md"),
    part: Annotated[str, typer.Option(help="Of the page: what is between the markers PART:begin and PART:end.")] = PART,
) -> None:
    """Fill the page."""
    if not summary.exists():
        raise typer.BadParameter(f"{summary} is not there; `make bench` writes it")
    text = tables(
        json.loads(summary.read_text()), json.loads(curve.read_text()) if curve.exists() else None
    )
    try:
        page.write_text(filled(page.read_text(), text, part))
    except ValueError as error:
        raise typer.BadParameter(f"{page}: {error}") from None
    typer.echo(f"{page}")


def filled(page: str, text: str, part: str = PART) -> str:
    """The page with another text between the markers of a part.

    Raises:
        ValueError: it has no such markers.
    """
    first, last = marks(part)
    before, begin, rest = page.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise ValueError(f"the page has no {first} followed by {last}")
    return f"{before}{begin}\n{text.strip()}\n{end}{after}"


def tables(summary: Mapping[str, Any], curve: Mapping[str, Any] | None) -> str:
    """Everything between the markers."""
    parts = [_headline(summary), _rows(summary)]
    if summary.get("bars"):
        parts.append(_bars(summary["bars"]))
    if summary.get("memory"):
        parts.append(_memory(summary["memory"]))
    if curve:
        parts.append(_curve(curve))
    return "\n\n".join(parts)


def _headline(summary: Mapping[str, Any]) -> str:
    own = summary["setting"]
    rare = f" ({own['few']} for row-wise)" if any(name.startswith("torchrec_rw_") for name in summary["rows"]) else ""
    return (
        f"### {own['hosts']} hosts x {own['lanes']} ranks, {own['rate']} per host, on {own['cores']} cores\n\n"
        f"{own['features']} tables of {own['rows']:,} rows, width {own['width']}, {own['batch']} samples per rank; "
        f"medians of {own['repeats']} repeats{rare}.\n\n{_origin(own)}"
    )


def _origin(own: Mapping[str, Any]) -> str:
    return f"`{own['command']}`, {own['date']}, on {own['machine']}; {own['versions']}."


def _rows(summary: Mapping[str, Any]) -> str:
    heads = (
        "on the wire", "variant", "ms (min-max)", "samples/s", "to table-wise", "to best flat", "to tower by hand",
        "NIC MB per host", "off the formula", "NIC ms", "NIC / step", "CPU floor ms",
    )  # fmt: skip
    lines = []
    for row in sorted(summary["rows"].values(), key=lambda row: ("fp32", "fp16", "int8").index(row["precision"])):
        off = row["nic_bytes_off"]
        lines.append(
            (
                row["precision"],
                row["text"],
                f"{row['median_ms']:.0f} ({row['min_ms']:.0f}-{row['max_ms']:.0f})",
                f"{row['samples_per_s']:.0f}",
                *(_ratio(row[key]) for key in ("ratio", "ratio_to_best", "ratio_to_tower")),
                f"{row['nic_bytes_per_host'] / 1e6:.2f}",
                "" if off is None else f"{100 * off:+.1f} %",
                f"{row['nic_limit_ms']:.0f}",
                f"{row['nic_share']:.2f}",
                f"{row['cpu_floor_ms']:.0f}",
            )
        )
    absent = "\n".join(f"- `{name}`: {why}." for name, why in summary.get("absent", {}).items())
    return _table(heads, lines, text=2) + (f"\n\nNot in the table:\n\n{absent}" if absent else "")


def _bars(bars: Sequence[Mapping[str, Any]]) -> str:
    return _table(("what it has to show", "met"), [(bar["text"], "yes" if bar["holds"] else "NO") for bar in bars], 2)


def _memory(rows: Mapping[str, Mapping[str, float]]) -> str:
    heads = ("peak memory of a rank", "MB", "to flat", "MB since imports", "to flat", "tables MB")
    lines = [
        (
            f"`{name}`",
            f"{row['peak_mb']:.0f}",
            f"{row['over_flat']:.2f}",
            f"{row['own_mb']:.0f}",
            f"{row['own_over_flat']:.2f}",
            f"{row['tables_mb']:.1f}",
        )
        for name, row in rows.items()
    ]
    return _table(heads, lines, text=1)


def _curve(curve: Mapping[str, Any]) -> str:
    points = curve["points"]
    names = list(points[0]["rows"])
    lines = []
    for point in points:
        own, rows = point["setting"], point["rows"]
        cells = [f"{rows[name]['median_ms']:.0f} ({_ratio(rows[name]['ratio'])})" for name in names]
        lines.append((f"{own['hosts']} x {own['lanes']}", own["rate"], str(own["width"]), str(own["top"]), *cells))
    heads = ("hosts x ranks", "rate", "width", "MLP", *(points[0]["rows"][name]["text"] for name in names))
    origin = f"Medians of {points[0]['setting']['repeats']} repeats, fp32: ms, and the ratio to TorchRec table-wise."
    return f"### Other settings\n\n{origin}\n\n{_origin(curve['setting'])}\n\n" + _table(heads, lines, text=0)


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}x"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], text: int) -> str:
    """A table whose first ``text`` columns are words, the others numbers."""
    rule = ["---" if column < text else "---:" for column in range(len(heads))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rule, *lines))


if __name__ == "__main__":
    typer.run(main)
