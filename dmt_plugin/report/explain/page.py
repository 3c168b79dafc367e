"""The page of ``dmt explain``: one HTML file with everything that is known of one transformation.

1. What stops the reader comes first: the verdict in figures, then the findings.
2. Then what was made: both graphs, towers, groups, parameters that start anew.
3. Then what it costs: the graph of one rank and of several hosts beside each other, bytes of every exchange.
4. The log of passes and the graphs as text close the page.
"""

from __future__ import annotations

from dmt_plugin.report.explain import tables
from dmt_plugin.report.explain.content import Explanation, GraphData
from dmt_plugin.report.explain.graph_picture import Graph, picture_of_graph
from dmt_plugin.report.explain.rank_graphs import beside_each_other
from dmt_plugin.report.explain.words import headline, loads_shown, parameters_in_words, tower_note
from dmt_plugin.report.parts import html


def page_of(data: Explanation, model: str, config: str | None) -> html.Page:
    """The page for what :func:`dmt_plugin.report.explain.explanation.explain` found.

    Args:
        data: its result.
        model: how the user named the model.
        config: the configuration file; `None`: the default section.
    """
    refused = data.refused
    command = f"dmt explain --model {model}" + (f" --config {config}" if config else "")
    page = html.Page(
        title="What becomes of the model" if not refused else "The model is refused",
        kicker="dmt explain",
        lead=headline(data) + ".",
        footer=f"`{command} --html ...`: nothing on this page was measured; bytes follow from shapes, by formula.",
    )
    page.section("", html.tiles(_tiles(data)), html.facts(_facts(data, model, config or "the default section")))
    page.section("Findings", *_findings(data))
    if data.graph_before:
        page.section("The graph", *_graphs(data))
    if data.towers:
        page.section("Towers", tables.towers_table(data).to_html())
    if data.groups:
        page.section("Groups of features", tables.groups_table(data).to_html())
    if not refused:
        page.section("Parameters that start anew", *_parameters(data))
        page.section(f"What rank {data.rank} runs", *_placed(data))
        page.section("Predicted load of ranks", *_lanes(data))
        if data.owners:
            page.section("Owners of the rows that travel once", tables.owners_table(data).to_html())
        if data.memory:
            page.section("Memory that ranks need", tables.memory_table(data).to_html())
        if data.distinct_rows:
            page.section("Distinct rows of the data", tables.distinct_rows_table(data).to_html())
        page.section("Bytes of every exchange", *_exchanges(data))
    if data.passes:
        page.section("Log of passes", tables.passes_table(data).to_html())
    if data.nodes_before:
        page.section("Graphs as text", *_texts(data))
    return page


def _tiles(data: Explanation) -> list[html.Tile]:
    severities = [f.severity for f in data.findings]
    counts = ", ".join(f"{severities.count(s)} {s}" for s in ("error", "warning", "info") if s in severities)
    tiles = [html.Tile(str(len(severities)), "findings", counts or "nothing to say")]
    if data.plan is None:
        return tiles
    away, near = data.bytes_of_a_step
    samples = data.batch_size
    ratio = data.compression
    new = data.new_parameters
    return [
        html.Tile(str(len(data.towers)), "towers", f"of {len(data.plan.features)} features"),
        html.Tile(f"{ratio:.2f}" if ratio else "none", "compression ratio", "width looked up : width sent"),
        html.Tile(f"{away / samples:,.0f} B", "to other hosts", "per sample, sums of gradients included"),
        html.Tile(f"{near / samples:,.0f} B", "inside the host", "per sample, sums of gradients included"),
        html.Tile(f"{sum(p.count for p in new):,}", "values start anew", f"in {len(new)} parameters"),
        *tiles,
    ]


def _facts(data: Explanation, model: str, config: str) -> dict[str, str]:
    facts = {"model": f"`{model}`", "configuration": f"`{config}`"}
    if data.plan:
        facts["plan"] = f"`{data.plan.fingerprint}` for model `{data.plan.model}`"
        facts["tower module"] = tower_note(data.plan)
    if data.parameters:
        facts["parameters"] = parameters_in_words(data.parameters)
    return facts


def _findings(data: Explanation) -> list[str]:
    if not data.findings:
        return [html.paragraph("None: nothing stands in the way, and nothing was left out.")]
    return [tables.findings_table(data).to_html()]


def _graphs(data: Explanation) -> list[str]:
    assert data.graph_before is not None
    shown = [html.figure(_picture(data.graph_before, "before"), "As the model was written.", "Before")]
    if data.graph_after:
        caption = "With towers, in one process: the reference that every rank's graph is held against."
        shown.append(html.figure(_picture(data.graph_after, "after"), caption, "After"))
    return shown


def _picture(graph: GraphData, title: str) -> str:
    return picture_of_graph(Graph.from_dict(graph), title=title, name=f"gp-{title.replace(' ', '-')}")


def _parameters(data: Explanation) -> list[str]:
    if not data.new_parameters:
        return [html.paragraph("None: every parameter keeps the flat model's values.")]
    text = "Everything else continues with the values of the flat model."
    return [html.paragraph(text), tables.parameters_table(data).to_html()]


def _placed(data: Explanation) -> list[str]:
    assert data.graph_placed is not None
    rank = html.figure(
        _picture(data.graph_placed, f"rank {data.rank}"),
        "H hosts, L ranks on each, B samples per rank. Orange: data moves between ranks.",
    )
    hosts = data.graphs_by_host
    if len(hosts) < 2:
        return [rank]
    joined = beside_each_other({name: Graph.from_dict(graph) for name, graph in hosts.items()})
    beside = html.figure(
        picture_of_graph(joined, title="hosts beside each other", name="gp-hosts"),
        "What lies between the first and the last exchange differs from host to host; the rest is the same everywhere."
        + ("" if len(hosts) == data.topology.hosts else f" The first {len(hosts)} hosts are shown."),
        "Hosts beside each other",
    )
    return [rank, beside]


def _lanes(data: Explanation) -> list[str]:
    title, _ = loads_shown(data)
    text = (
        f"The {title}. Lookups and bytes are per sample whose ids arrive, if the ids of tables in row ranges are "
        "spread evenly; bytes are rows sent to other ranks and gradients that come back, not what stays on the rank."
    )
    return [html.paragraph(text), tables.loads_table(data).to_html()]


def _exchanges(data: Explanation) -> list[str]:
    text = f"One step of rank {data.rank} with {data.batch_size} samples, by formula."
    return [html.paragraph(text), tables.exchanges_table(data).to_html()]


def _texts(data: Explanation) -> list[str]:
    blocks = [html.details("Around the towers, before", tables.nodes_table(data.nodes_before).to_html())]
    if data.nodes_after:
        title = f"Around the towers, on rank {data.rank}"
        blocks.append(html.details(title, tables.nodes_table(data.nodes_after).to_html()))
    return blocks
