"""Tables of ``dmt plan --paper``: how far the model is off, and every cell of the paper's figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmt_plugin.report.parts.tables import Column, Table

TITLES = {"five": "fitted on five", "64 ranks": "fitted at 64 ranks", "all": "fitted on all"}
"""Sets of fitted cells, as headings."""


def headline(data: Mapping[str, Any]) -> str:
    """The outcome in one line.

    Args:
        data: of :func:`dmt_plugin.planner.paper.evaluation.evaluate`.
    """
    own = data["sets"]["five"]
    held, winners = own["errors"]["held_out"], own["winners"]
    return (
        f"4 constants from 5 of the paper's numbers: the {held['cells']} others with a mean error of "
        f"{held['mean']:.1%}, {held['within_15']:.0%} of them within 15 %; {winners['right']} of {winners['cells']} "
        "winners of Fig. 10"
    )


def errors_table(data: Mapping[str, Any]) -> Table:
    """Errors of the model and of the null model, by set of fitted cells."""
    rows = []
    for name, own in data["sets"].items():
        for who, errors in (("model", own["errors"]), ("null model", own["null_model"]["errors"])):
            for part in ("fitted", "held_out"):
                if errors[part] is not None:
                    rows.append({"set": f"{TITLES[name]}, {who}", "part": part.replace("_", " "), **errors[part]})
    columns = [
        Column("set", "constants"),
        Column("part", "cells", text=True),
        Column("cells", "number"),
        Column("mean", "mean error", ".1%"),
        *(Column(f"within_{limit}", f"within {limit} %", ".0%") for limit in (10, 15, 20)),
        Column("worst", "worst", ".1%"),
    ]
    notes = [
        "The null model knows no hardware: a cell is the mean of the fitted cells of its figure with as many ranks, or "
        "the same compression ratio. It has nothing to say of milliseconds (Fig. 13).",
        "The form of the model was chosen with all cells in view, so that errors on held-out cells are still too kind.",
    ]
    return Table(columns, rows, notes)


def constants_table(data: Mapping[str, Any]) -> Table:
    """The fitted constants, by set of fitted cells."""
    rows = []
    for name, own in data["sets"].items():
        winners, plain = own["winners"], own["without_few"]
        rows.append(
            {
                "set": TITLES[name],
                **own["constants"],
                "winners": f"{winners['right']} of {winners['cells']}",
                "correlation": winners["log_correlation"],
                "plain": plain["errors"]["all"]["within_15"],
                "plain_winners": f"{plain['winners']['right']} of {plain['winners']['cells']}",
            }
        )
    columns = [
        Column("set", "constants"),
        Column("intensity", "intensity", ".1f", "FLOPs per byte"),
        Column("fixed_ms", "fixed", ".1f", "ms"),
        Column("flat", "flat", ".2f", "from 64 ranks"),
        Column("few", "few", ".2f", "up to 4 hosts"),
        Column("winners", "winners", note="Fig. 10"),
        Column("correlation", "log correlation", ".2f", "Fig. 10"),
        Column("plain", "few = 1: within 15 %", ".0%", "all cells"),
        Column("plain_winners", "few = 1: winners", note="Fig. 10"),
    ]
    notes = ["`few` is unexplained: no byte and no FLOP accounts for it."]
    return Table(columns, rows, notes)


def mflops_table(data: Mapping[str, Any]) -> Table:
    """MFlops of a sample, forward and backward."""
    columns = [
        Column("name", "model"),
        Column("paper", "paper", ".2f", "MFlops"),
        Column("model", "here", ".2f", "MFlops"),
        Column("error", "error", "+.2%"),
    ]
    return Table(columns, [{"name": name, **own} for name, own in data["mflops"].items()])


def cells_table(data: Mapping[str, Any]) -> Table:
    """Every cell with what the model says of it, by set of fitted cells."""
    rows = []
    for cell in data["cells"]:
        row: dict[str, object] = {"cell": cell["cell"], "paper": cell["paper"]}
        for name, own in cell["sets"].items():
            row[name] = f"{own['model']:.2f}{' *' if own['fitted'] else ''}"
            row[f"{name} error"] = own["error"]
        rows.append(row)
    columns = [Column("cell", "cell"), Column("paper", "paper", ".1f")]
    for name in data["sets"]:
        columns += [Column(name, TITLES[name]), Column(f"{name} error", "error", "+.0%")]
    return Table(columns, rows, ["* fitted. The others were held out."])
