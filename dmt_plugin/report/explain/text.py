"""What ``dmt explain`` prints: one table per question, findings last, where the reader's eye ends."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console
from rich.markup import escape

from dmt_plugin.report.explain import tables
from dmt_plugin.report.explain.content import Explanation
from dmt_plugin.report.explain.words import headline, loads_shown, parameters_in_words
from dmt_plugin.report.parts.tables import Table


def show(data: Explanation, console: Console) -> None:
    """Prints what :func:`dmt_plugin.report.explain.explanation.explain` found."""

    def put(title: str, table: Table) -> None:
        if table.rows:
            console.print(replace(table, notes=()).to_rich(title))
            for note in table.notes:
                console.print(note.replace("`", ""), highlight=False, markup=False)

    console.print(escape(headline(data)), style="bold", highlight=False)
    if data.plan:
        console.print(f"plan {data.plan.fingerprint} for model {data.plan.model}", highlight=False)
    put("towers", tables.towers_table(data))
    put("groups of features", tables.groups_table(data))
    put("graph around the towers, before", tables.nodes_table(data.nodes_before))
    if data.parameters:
        put(f"graph around the towers, after (rank {data.rank})", tables.nodes_table(data.nodes_after))
        put(loads_shown(data)[0], tables.loads_table(data))
        put("owners of the rows that travel once", tables.owners_table(data))
        put("memory that ranks need, and hosts", tables.memory_table(data))
        if data.distinct_rows:
            put("distinct rows of the data", tables.distinct_rows_table(data))
        samples = data.batch_size
        title = f"exchanges of one step on rank {data.rank}, {samples} samples per rank (bytes)"
        put(title, tables.exchanges_table(data))
        away, _ = data.bytes_of_a_step
        say = f"{away / samples:,.0f} bytes per sample to other hosts, sums of gradients included"
        console.print(say, highlight=False)
        console.print(f"parameters: {parameters_in_words(data.parameters)}", highlight=False)
        if not data.new_parameters:
            console.print("no parameter starts anew: all keep the flat model's values")
        put("parameters that start anew", tables.parameters_table(data))
    put("passes", tables.passes_table(data))
    if not data.findings:
        console.print("findings: none")
    put("findings", tables.findings_table(data))
