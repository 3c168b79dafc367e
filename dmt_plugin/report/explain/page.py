"""The page of ``dmt explain``: one HTML file with everything that is known of one transformation.

1. What stops the reader comes first: the verdict in figures, then the findings.
2. Then what was made: both graphs, towers, groups, parameters that start anew.
3. Then what it costs: the graph of one rank and of several hosts beside each other, bytes of every exchange.
4. The log of passes and the graphs as text close the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dmt_plugin.core.sizes import say_bytes
from dmt_plugin.report.explain.graph_picture import Graph, picture_of_graph
from dmt_plugin.report.explain.rank_graphs import beside_each_other
from dmt_plugin.report.explain.text import folded
from dmt_plugin.report.explain.words import (
    feature_with_lanes,
    headline,
    loads_shown,
    notes_on_exchanges,
    sum_of_bytes,
    tower_note,
)
from dmt_plugin.report.parts import html
from dmt_plugin.report.parts.tables import Column, Table


def page_of(data: Mapping[str, Any], model: str, config: str | None) -> html.Page:
    """The page for what :func:`dmt_plugin.report.explain.explanation.explain` found.

    Args:
        data: its result.
        model: how the user named the model.
        config: the configuration file; `None`: the default section.
    """
    refused = data["refused"]
    command = f"dmt explain --model {model}" + (f" --config {config}" if config else "")
    page = html.Page(
        title="What becomes of the model" if not refused else "The model is refused",
        kicker="dmt explain",
        lead=headline(data) + ".",
        footer=f"`{command} --html ...`: nothing on this page was measured; bytes follow from shapes, by formula.",
    )
    page.section("", html.tiles(_tiles(data)), html.facts(_facts(data, model, config or "the default section")))
    page.section("Findings", *_findings(data))
    if data["graph_before"]:
        page.section("The graph", *_graphs(data))
    if data["towers"]:
        page.section("Towers", _towers(data))
    if data["groups"]:
        page.section("Groups of features", _groups(data))
    if not refused:
        page.section("Parameters that start anew", *_parameters(data))
        page.section(f"What rank {data['rank']} runs", *_placed(data))
        page.section("Predicted load of ranks", *_lanes(data))
        page.section("Bytes of every exchange", *_exchanges(data))
    if data["passes"]:
        page.section("Log of passes", _passes(data))
    if data["nodes_before"]:
        page.section("Graphs as text", *_texts(data))
    return page


def _tiles(data: Mapping[str, Any]) -> list[html.Tile]:
    severities = [f["severity"] for f in data["findings"]]
    counts = ", ".join(f"{severities.count(s)} {s}" for s in ("error", "warning", "info") if s in severities)
    tiles = [html.Tile(str(len(severities)), "findings", counts or "nothing to say")]
    if data["refused"]:
        return tiles
    away, near = sum_of_bytes(data)
    samples = data["batch_size"]
    ratio = data["compression"]
    anew = data["new_parameters"]
    return [
        html.Tile(str(len(data["towers"])), "towers", f"of {len(data['plan']['features'])} features"),
        html.Tile(f"{ratio:.2f}" if ratio else "none", "compression ratio", "width looked up : width sent"),
        html.Tile(f"{away / samples:,.0f} B", "to other hosts", "per sample, sums of gradients included"),
        html.Tile(f"{near / samples:,.0f} B", "inside the host", "per sample, sums of gradients included"),
        html.Tile(f"{sum(r['count'] for r in anew):,}", "values start anew", f"in {len(anew)} parameters"),
        *tiles,
    ]


def _facts(data: Mapping[str, Any], model: str, config: str) -> dict[str, str]:
    facts = {"model": f"`{model}`", "configuration": f"`{config}`"}
    if data["plan"]:
        facts["plan"] = f"`{data['plan_fingerprint']}` for model `{data['plan']['model']}`"
        facts["tower module"] = tower_note(data)
    if data["parameters"]:
        counts = data["parameters"]
        facts["parameters"] = (
            f"{counts['tables']:,} in tables, {counts['towers']:,} in tower modules, {counts['dense']:,} dense"
        )
    return facts


def _findings(data: Mapping[str, Any]) -> list[str]:
    if not data["findings"]:
        return [html.paragraph("None: nothing stands in the way, and nothing was left out.")]
    columns = [
        Column("code", "code"),
        Column("severity", "severity", text=True),
        Column("place", "where", text=True),
        Column("reason", "what", text=True),
        Column("hint", "way out", text=True),
    ]
    rows = [{**f, "place": f["module"] or "(model)", "hint": f["hint"] or "none needed"} for f in data["findings"]]
    return [Table(columns, rows, ["`docs/findings.md` lists each code with cause and remedy."]).to_html()]


def _graphs(data: Mapping[str, Any]) -> list[str]:
    before = html.figure(_picture(data["graph_before"], "before"), "As the model was written.", "Before")
    if data["refused"]:
        return [before]
    after = html.figure(
        _picture(data["graph_after"], "after"),
        "With towers, in one process: the reference that every rank's graph is held against.",
        "After",
    )
    return [before, after]


def _picture(graph: Mapping[str, Any], title: str) -> str:
    return picture_of_graph(Graph.from_dict(graph), title=title, name=f"gp-{title.replace(' ', '-')}")


def _towers(data: Mapping[str, Any]) -> str:
    modules: dict[int, list[str]] = {}
    for m in data["tower_modules"]:
        said = f"{m['group']}: {m['input']} to {m['output']}, {m['parameters']:,} parameters"
        modules.setdefault(m["tower"], []).append(said)
    rows = [
        {
            "tower": str(t["tower"]),
            "host": t["host"],
            "rows": t["rows"],
            "width": t["width"],
            "module": "; ".join(modules.get(t["tower"], [])) or "none",
            "features": ", ".join(feature_with_lanes(data, n) for n in t["features"]),
        }
        for t in data["towers"]
    ]
    columns = [
        Column("tower", "tower"),
        Column("host", "host"),
        Column("rows", "rows", ",d"),
        Column("width", "width"),
        Column("module", "modules", text=True),
        Column("features", "features", note="and the lanes of their tables", text=True),
    ]
    return Table(columns, rows).to_html()


def _groups(data: Mapping[str, Any]) -> str:
    columns = [
        Column("name", "group"),
        Column("kind", "kind", text=True),
        Column("features", "features"),
        Column("width", "width"),
        Column("meets_at", "branches meet at", text=True),
        Column("why", "why", text=True),
    ]
    rows = [{**g, "why": g["reason"] or tower_note(data)} for g in data["groups"]]
    return Table(columns, rows).to_html()


def _parameters(data: Mapping[str, Any]) -> list[str]:
    if not data["new_parameters"]:
        return [html.paragraph("None: every parameter keeps the flat model's values.")]
    columns = [
        Column("name", "parameter", text=True),
        Column("size", "shape", text=True),
        Column("why", "why", text=True),
        Column("init", "starts from", text=True),
    ]
    rows = [{**r, "size": str(tuple(r["shape"]))} for r in data["new_parameters"]]
    text = "Everything else continues with the values of the flat model."
    return [html.paragraph(text), Table(columns, rows).to_html()]


def _placed(data: Mapping[str, Any]) -> list[str]:
    rank = html.figure(
        _picture(data["graph_placed"], f"rank {data['rank']}"),
        "H hosts, L ranks on each, B samples per rank. Orange: data moves between ranks.",
    )
    hosts = data["graphs_by_host"]
    if len(hosts) < 2:
        return [rank]
    joined = beside_each_other({name: Graph.from_dict(graph) for name, graph in hosts.items()})
    beside = html.figure(
        picture_of_graph(joined, title="hosts beside each other", name="gp-hosts"),
        "What lies between the first and the last exchange differs from host to host; the rest is the same everywhere."
        + ("" if len(hosts) == int(data["topology"].split("x")[0]) else f" The first {len(hosts)} hosts are shown."),
        "Hosts beside each other",
    )
    return [rank, beside]


def _lanes(data: Mapping[str, Any]) -> list[str]:
    columns = [
        Column("rank", "host, lane"),
        Column("tables", "tables", note="whole or in part"),
        Column("memory", "bytes of tables", note="with optimiser state", text=True),
        Column("lookups", "lookups", ".4g", "rows read per sample"),
        Column("exchange", "exchanged", ",.0f", "bytes per sample"),
    ]
    title, loads = loads_shown(data)
    rows = [{**x, "rank": f"{x['host']}, {x['lane']}", "memory": say_bytes(x["bytes"])} for x in loads]
    text = (
        f"The {title}. Lookups and bytes are per sample whose ids arrive, if the ids of tables in row ranges are "
        "spread evenly; bytes are rows sent to other ranks and gradients that come back, not what stays on the rank."
    )
    return [html.paragraph(text), Table(columns, rows).to_html()]


def _exchanges(data: Mapping[str, Any]) -> list[str]:
    columns = [
        Column("name", "exchange"),
        Column("group", "between", text=True),
        Column("phase", "pass", text=True),
        Column("shape", "sends", text=True),
        Column("other_hosts", "to other hosts", ",d", "bytes"),
        Column("same_host", "inside the host", ",d", "bytes"),
    ]
    away, near = sum_of_bytes(data)
    total = {"name": "sum", "group": "", "phase": "", "shape": "", "other_hosts": away, "same_host": near}
    text = f"One step of rank {data['rank']} with {data['batch_size']} samples, by formula."
    rows = [*data["collectives"], total]
    return [html.paragraph(text), Table(columns, rows, notes_on_exchanges(data), emphasis="sum").to_html()]


def _passes(data: Mapping[str, Any]) -> str:
    columns = [
        Column("name", "pass"),
        Column("matched", "places matched"),
        Column("changed", "nodes changed"),
        Column("note", "note", text=True),
    ]
    return Table(columns, data["passes"]).to_html()


def _texts(data: Mapping[str, Any]) -> list[str]:
    def block(title: str, lines: Sequence[tuple[str, str, str]]) -> str:
        columns = [Column("node", "node", text=True), Column("operation", "operation", text=True)]
        columns.append(Column("shape", "shape", text=True))
        rows = [dict(zip(("node", "operation", "shape"), line, strict=True)) for line in folded(lines)]
        return html.details(title, Table(columns, rows).to_html())

    blocks = [block("Around the towers, before", data["nodes_before"])]
    if data["nodes_after"]:
        blocks.append(block(f"Around the towers, on rank {data['rank']}", data["nodes_after"]))
    return blocks
