"""What ``dmt explain`` prints: one table per question, findings last, where the reader's eye ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmt_plugin.core.sizes import say_bytes
from dmt_plugin.report.explain.words import (
    feature_with_lanes,
    headline,
    loads_shown,
    notes_on_exchanges,
    sum_of_bytes,
    tower_note,
)

Line = tuple[str, str, str]


def show(data: dict[str, Any], console: Console) -> None:
    """Prints what :func:`dmt_plugin.report.explain.explanation.explain` found."""
    console.print(escape(headline(data)), style="bold", highlight=False)
    if data["plan"]:
        console.print(f"plan {data['plan_fingerprint']} for model {data['plan']['model']}", highlight=False)
    if data["towers"]:
        _towers(data, console)
    if data["groups"]:
        _groups(data, console)
    if data["nodes_before"]:
        _graph("graph around the towers, before", data["nodes_before"], console)
    if not data["refused"]:
        _graph(f"graph around the towers, after (rank {data['rank']})", data["nodes_after"], console)
        _lanes(data, console)
        _collectives(data, console)
        _parameters(data, console)
    if data["passes"]:
        _passes(data, console)
    _findings(data, console)


def _table(title: str, *columns: str, right: Sequence[str] = ()) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, title_style="bold")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _towers(data: dict[str, Any], console: Console) -> None:
    heading = "features (and the lanes of their tables)"
    table = _table("towers", "tower", "host", "count", "rows", "width", heading, right=("count", "rows", "width"))
    for tower in data["towers"]:
        names = ", ".join(feature_with_lanes(data, n) for n in tower["features"])
        count, rows = str(len(tower["features"])), f"{tower['rows']:,}"
        table.add_row(str(tower["tower"]), str(tower["host"]), count, rows, str(tower["width"]), escape(names))
    console.print(table)


def _groups(data: dict[str, Any], console: Console) -> None:
    table = _table("groups of features", "group", "kind", "features", "width", "branches meet at", "why")
    for group in data["groups"]:
        note = group["reason"] or tower_note(data)
        cells = (group["name"], group["kind"], group["features"], group["width"], group["meets_at"], note)
        table.add_row(*(escape(str(c)) for c in cells))
    console.print(table)


def _graph(title: str, lines: Sequence[Line], console: Console) -> None:
    table = _table(title, "node", "operation", "shape")
    for line in folded(lines):
        table.add_row(*map(escape, line))
    console.print(table)


def folded(lines: Sequence[Line]) -> list[Line]:
    """Runs of nodes of one shape and one kind of operation become one line."""
    result: list[Line] = []
    run: list[Line] = []

    def kind(line: Line) -> tuple[str, str]:
        return "".join(c for c in line[1] if not c.isdigit()).rsplit(".", 1)[0], line[2]

    def close() -> None:
        if len(run) > 3:
            result.append((f"{run[0][0]} ... {run[-1][0]}", f"{run[0][1]} ... ({len(run)} nodes)", run[0][2]))
        else:
            result.extend(run)
        run.clear()

    for name, operation, shape in lines:
        line = (name, operation, shape)
        if run and kind(run[-1]) != kind(line):
            close()
        run.append(line)
    close()
    return result


def _lanes(data: dict[str, Any], console: Console) -> None:
    numbers = ("tables", "bytes of tables", "lookups per sample", "exchanged bytes per sample")
    title, loads = loads_shown(data)
    table = _table(title, "host", "lane", *numbers, right=numbers)
    for load in loads:
        shown = (say_bytes(load["bytes"]), f"{load['lookups']:,.4g}", f"{load['exchange']:,.0f}")
        table.add_row(str(load["host"]), str(load["lane"]), str(load["tables"]), *shown)
    console.print(table)


def _collectives(data: dict[str, Any], console: Console) -> None:
    title = f"exchanges of one step on rank {data['rank']}, {data['batch_size']} samples per rank (bytes)"
    numbers = ("to other hosts", "inside host")
    table = _table(title, "exchange", "between", "pass", "sends", *numbers, right=numbers)
    for cost in data["collectives"]:
        sizes = (f"{cost[key]:,}" for key in ("other_hosts", "same_host"))
        table.add_row(cost["name"], cost["group"], cost["phase"], escape(cost["shape"]), *sizes)
    away, near = sum_of_bytes(data)
    table.add_section()
    per_sample = f"{away / data['batch_size']:,.0f} bytes per sample to other hosts, sums of gradients included"
    table.add_row("sum", "", "", per_sample, f"{away:,}", f"{near:,}")
    console.print(table)
    for note in notes_on_exchanges(data):
        console.print(escape(note), highlight=False)


def _parameters(data: dict[str, Any], console: Console) -> None:
    counts = data["parameters"]
    console.print(
        f"parameters: {counts['tables']:,} in tables, {counts['towers']:,} in tower modules, {counts['dense']:,} dense",
        highlight=False,
    )
    if not data["new_parameters"]:
        console.print("no parameter starts anew: all keep the flat model's values")
        return
    table = _table("parameters that start anew", "parameter", "shape", "why", "starts from")
    for row in data["new_parameters"]:
        table.add_row(escape(row["name"]), str(tuple(row["shape"])), escape(row["why"]), escape(row["init"]))
    console.print(table)


def _passes(data: dict[str, Any], console: Console) -> None:
    table = _table("passes", "pass", "matched", "changed", "note", right=("matched", "changed"))
    for row in data["passes"]:
        table.add_row(row["name"], str(row["matched"]), str(row["changed"]), escape(row["note"]))
    console.print(table)


def _findings(data: dict[str, Any], console: Console) -> None:
    if not data["findings"]:
        console.print("findings: none")
        return
    table = _table("findings (docs/findings.md has the causes and remedies)", "code", "severity", "where", "what")
    colour = {"error": "red", "warning": "yellow"}
    for f in data["findings"]:
        severity = f"[{colour[f['severity']]}]{f['severity']}" if f["severity"] in colour else f["severity"]
        said = escape(f["reason"]) + (f"\n[dim]way out:[/dim] {escape(f['hint'])}" if f["hint"] else "")
        table.add_row(f["code"], severity, escape(f["module"]) or "(model)", said)
    console.print(table)
