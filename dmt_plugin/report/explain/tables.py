"""The tables of ``dmt explain``: the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from dmt_plugin.core.sizes import say_bytes
from dmt_plugin.report.explain.content import Explanation, NodeLine
from dmt_plugin.report.explain.words import (
    feature_with_lanes,
    hosts_shown,
    loads_shown,
    memory_shown,
    notes_on_distinct_rows,
    notes_on_exchanges,
    notes_on_memory,
    notes_on_owners,
    owners_shown,
    tower_note,
)
from dmt_plugin.report.parts.tables import Column, Table


def findings_table(data: Explanation) -> Table:
    """What stops the reader, or what to look at, and the way out."""
    columns = [
        Column("code", "code"),
        Column("severity", "severity", text=True, styles={"error": "red", "warning": "yellow"}),
        Column("place", "where", text=True),
        Column("reason", "what", text=True),
        Column("hint", "way out", text=True),
    ]
    rows = [
        {
            **asdict(f),
            "place": f.module or "(model)",
            "reason": f"{f.reason} (at {f.source})" if f.source else f.reason,
            "hint": f.hint or "none needed",
        }
        for f in data.findings
    ]
    return Table(columns, rows, ["`docs/findings.md` lists each code with cause and remedy."])


def towers_table(data: Explanation) -> Table:
    """Towers with their hosts, modules, and features."""
    modules: dict[int, list[str]] = {}
    for m in data.tower_modules:
        said = f"{m.group}: {m.input} to {m.output}, {m.parameters:,} parameters"
        modules.setdefault(m.tower, []).append(said + (", on every rank" if m.host is None else ""))
    rows = [
        {
            "tower": str(t.tower),
            "host": t.host,
            "rows": t.rows,
            "width": t.width,
            "module": "; ".join(modules.get(t.tower, [])) or "none",
            "features": ", ".join(feature_with_lanes(data.plan, n) for n in t.features),
        }
        for t in data.towers
    ]
    columns = [
        Column("tower", "tower"),
        Column("host", "host", note="of its tables"),
        Column("rows", "rows", ",d"),
        Column("width", "width"),
        Column("module", "modules", text=True),
        Column("features", "features", note="and the lanes of their tables", text=True),
    ]
    return Table(columns, rows)


def groups_table(data: Explanation) -> Table:
    """Groups of features, and why they are what they are."""
    columns = [
        Column("name", "group"),
        Column("kind", "kind", text=True),
        Column("features", "features"),
        Column("width", "width"),
        Column("meets_at", "branches meet at", text=True),
        Column("why", "why", text=True),
    ]
    return Table(columns, [{**asdict(g), "why": g.reason or tower_note(data.plan)} for g in data.groups])


def parameters_table(data: Explanation) -> Table:
    """Parameters that do not continue the flat model's."""
    columns = [
        Column("name", "parameter", text=True),
        Column("size", "shape", text=True),
        Column("why", "why", text=True),
        Column("init", "starts from", text=True),
    ]
    return Table(columns, [{**asdict(p), "size": str(tuple(p.shape))} for p in data.new_parameters])


def loads_table(data: Explanation) -> Table:
    """Predicted loads of the ranks that :func:`loads_shown` names."""
    columns = [
        Column("rank", "host, lane"),
        Column("tables", "tables", note="whole or in part"),
        Column("memory", "bytes of tables", note="with optimizer state", text=True),
        Column("lookups", "lookups", ".4g", "rows read per sample"),
        Column("exchange", "exchanged", ",.0f", "bytes per sample"),
    ]
    _, loads = loads_shown(data)
    return Table(columns, [{**asdict(x), "rank": f"{x.host}, {x.lane}", "memory": say_bytes(x.bytes)} for x in loads])


def owners_table(data: Explanation) -> Table:
    """What the owners on each host send of rows that travel once, by the rows that were counted."""
    columns = [
        Column("host", "host"),
        Column("whole", "tables", note="whole"),
        Column("parts", "tables", note="in part"),
        Column("rows", "rows", ",.0f", "that a host needs in a step"),
        Column("bytes", "exchanged", ",.0f", "bytes per step, with all other hosts"),
        Column("to_mean", "to the mean", ".3f"),
    ]
    return Table(columns, [asdict(host) for host in owners_shown(data)], notes_on_owners(data))


def memory_table(data: Explanation) -> Table:
    """The memory that ranks need, and the sum of each host; the rank that needs most is set off."""
    parts = ("tables", "table_states", "towers", "dense", "buffers", "snapshot")
    snapshots = data.memory is not None and any(rank.snapshot for rank in data.memory.ranks)
    columns = [
        Column("place", "rank"),
        Column("tables", "tables"),
        Column("table_states", "their optimizer state"),
        Column("towers", "towers", note="with gradients, optimizer"),
        Column("dense", "dense part", note="with gradients, optimizer"),
        Column("buffers", "buffers of a step"),
        *([Column("snapshot", "snapshot", note="of an asynchronous save")] if snapshots else []),
        Column("total", "sum"),
    ]
    need = data.memory
    if need is None:
        return Table(columns, [])
    rows: list[dict[str, object]] = []
    for r in memory_shown(need):
        sizes = {part: getattr(r, part) for part in parts} | {"buffers": r.buffers.total, "total": r.total}
        rows.append({"place": str(r.rank), **{key: say_bytes(size) for key, size in sizes.items()}})
    rows += [{"place": f"host {host}", "total": say_bytes(size)} for host, size in hosts_shown(need)]
    return Table(columns, rows, notes_on_memory(need), emphasis=str(need.largest))


def exchanges_table(data: Explanation) -> Table:
    """Bytes of every exchange of one step, and their sum."""
    columns = [
        Column("name", "exchange"),
        Column("group", "between", text=True),
        Column("phase", "pass", text=True),
        Column("shape", "sends", text=True),
        Column("other_hosts", "to other hosts", ",d", "bytes"),
        Column("same_host", "inside the host", ",d", "bytes"),
    ]
    away, near = data.bytes_of_a_step
    total = {"name": "sum", "group": "", "phase": "", "shape": "", "other_hosts": away, "same_host": near}
    rows = [*map(asdict, data.collectives), total]
    return Table(columns, rows, notes_on_exchanges(data), emphasis="sum")


def distinct_rows_table(data: Explanation) -> Table:
    """How many of each feature's ids are distinct rows, on the data that was counted."""
    columns = [
        Column("feature", "feature"),
        Column("ids", "ids per sample", ".1f"),
        Column("rank", "distinct in a rank's batch", ".3f", "rows per id"),
        Column("host", "distinct in a host's batches", ".3f", "rows per id"),
        Column("way", "rows travel"),
    ]
    found = data.distinct_rows
    if found is None:
        return Table(columns, [])
    return Table(columns, [asdict(f) for f in found.features], notes_on_distinct_rows(found))


def passes_table(data: Explanation) -> Table:
    """What every pass did."""
    columns = [
        Column("name", "pass"),
        Column("matched", "places matched"),
        Column("changed", "nodes changed"),
        Column("note", "note", text=True),
    ]
    return Table(columns, [asdict(p) for p in data.passes])


def nodes_table(lines: Sequence[NodeLine]) -> Table:
    """Nodes of a graph, those that do the same folded."""
    columns = [Column(name, name, text=True) for name in ("node", "operation", "shape")]
    return Table(columns, [dict(zip(("node", "operation", "shape"), line, strict=True)) for line in folded(lines)])


def folded(lines: Sequence[NodeLine]) -> list[NodeLine]:
    """Runs of nodes of one shape and one kind of operation become one line."""
    result: list[NodeLine] = []
    run: list[NodeLine] = []

    def kind(line: NodeLine) -> tuple[str, str]:
        return "".join(c for c in line[1] if not c.isdigit()).rsplit(".", 1)[0], line[2]

    def close() -> None:
        if len(run) > 3:
            result.append((f"{run[0][0]} ... {run[-1][0]}", f"{run[0][1]} ... ({len(run)} nodes)", run[0][2]))
        else:
            result.extend(run)
        run.clear()

    for line in lines:
        if run and kind(run[-1]) != kind(line):
            close()
        run.append(line)
    close()
    return result
