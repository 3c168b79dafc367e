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

from benchmarks.step.summary import RATIOS, by_setting

PART = "bench"


def marks(part: str = PART) -> tuple[str, str]:
    """Where a part of the page begins and ends."""
    return f"<!-- {part}:begin -->", f"<!-- {part}:end -->"


BEGIN, END = marks()


def main(
    summary: Annotated[
        list[Path] | None, typer.Option(help="Of `make bench`; several where runs were measured one by one.")
    ] = None,
    curve: Annotated[Path, typer.Option(help="Of `--curve`; left out where it is not there.")] = Path(
        "build/bench/curve.json"
    ),
    page: Annotated[Path, typer.Option(help="The page to fill.")] = Path("docs/benchmarks.md"),
    part: Annotated[str, typer.Option(help="Of the page: what is between the markers PART:begin and PART:end.")] = PART,
) -> None:
    """Fill the page."""
    summary = summary or [Path("build/bench/summary.json")]
    if missing := [str(path) for path in summary if not path.exists()]:
        raise typer.BadParameter(f"{', '.join(missing)} is not there; `make bench` writes it")
    last = json.loads(curve.read_text()) if curve.exists() else None
    texts = [tables(json.loads(path.read_text()), None if path != summary[-1] else last) for path in summary]
    text = "\n\n".join(texts)
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
    parts = [part for own, rows in by_setting(summary) for part in (_headline(summary, own, rows), _rows(rows))]
    if summary.get("absent"):
        absent = "\n".join(f"- `{name}`: {why}." for name, why in summary["absent"].items())
        parts.append(f"Not in the tables:\n\n{absent}")
    if summary.get("bars"):
        parts.append(_bars(summary["bars"]))
    if summary.get("memory"):
        parts.append(_memory(summary["memory"]))
    if curve:
        parts.append(_curve(curve))
    return "\n\n".join(parts)


_KINDS = {
    "kaggle": "ids that repeat as real ones do",
    "flights": "ids of real flights",
    "uniform": "uniform ids: hardly any duplicates",
}
_TABLES = {"kaggle": "Kaggle's tables", "flights": "the flights' 21 tables"}


def _headline(summary: Mapping[str, Any], own: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    rare = f" ({own['few']} for row-wise)" if any(name.startswith("torchrec_rw_") for name in rows) else ""
    tables = _TABLES.get(own["ids"], f"{own['features']} tables of {own['rows']:,} rows")
    bags = f", {own['bag']} ids a bag" if own["bag"] > 1 else ""
    return (
        f"### {own['batch']} samples per rank, {_KINDS[own['ids']]}{bags}\n\n"
        f"{own['hosts']} hosts x {own['lanes']} ranks, {own['rate']} per host, on {summary['setting']['cores']} cores; "
        f"{tables}, width {own['width']}; medians of {own['repeats']} repeats{rare}.\n\n{_origin(summary['setting'])}"
    )


def _origin(own: Mapping[str, Any]) -> str:
    return f"`{own['command']}`, {own['date']}, on {own['machine']}; {own['versions']}."


def _rows(rows: Mapping[str, Any]) -> str:
    heads = (
        "on the wire", "variant", "ms (min-max)", "samples/s", "to table-wise", "to best flat", "to tower by hand",
        "to variable batches", "to every row",
        "NIC MB per host", "off the formula", "NIC ms", "NIC / step", "CPU floor ms",
    )  # fmt: skip
    lines = []
    for row in sorted(rows.values(), key=lambda row: ("fp32", "fp16", "int8").index(row["precision"])):
        off = row["nic_bytes_off"]
        lines.append(
            (
                row["precision"],
                row["text"],
                f"{row['median_ms']:.0f} ({row['min_ms']:.0f}-{row['max_ms']:.0f})",
                f"{row['samples_per_s']:.0f}",
                *(_ratio(row[key]) for key in RATIOS),
                f"{row['nic_bytes_per_host'] / 1e6:.2f}",
                "" if off is None else f"{100 * off:+.1f} %",
                f"{row['nic_limit_ms']:.0f}",
                f"{row['nic_share']:.2f}",
                f"{row['cpu_floor_ms']:.0f}",
            )
        )
    return _table(heads, lines, text=2)


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
