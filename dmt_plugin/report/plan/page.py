"""The page of ``dmt plan --paper``: one HTML file with the picture and the tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmt_plugin.report.parts import html
from dmt_plugin.report.plan import tables
from dmt_plugin.report.plan.picture import picture


def page_of(data: Mapping[str, Any]) -> html.Page:
    """The page.

    Args:
        data: of :func:`dmt_plugin.planner.paper.evaluation.evaluate`.

    Raises:
        RuntimeError: matplotlib is not installed.
    """
    page = html.Page(
        title="The time model and the paper",
        kicker="dmt plan --paper",
        lead=tables.headline(data) + ".",
        footer=f"Numbers of the paper: {data['sources']['figures']}",
    )
    caption = "Fig. 10 of the paper, read to 0.1, and what the model says of it. Below 1 the baseline is faster."
    page.section("", html.figure(picture(data), caption))
    page.section("Errors", tables.errors_table(data).to_html())
    page.section("Constants", tables.constants_table(data).to_html())
    page.section("FLOPs of a sample, forward and backward", tables.mflops_table(data).to_html())
    page.section("Every cell", tables.cells_table(data).to_html())
    page.section("Where the other numbers are from", html.facts(_sources(data["sources"])))
    return page


def _sources(sources: Mapping[str, Any]) -> dict[str, str]:
    found = {device["name"]: device["source"] for device in sources["devices"]}
    found.update({name: curve["source"] for name, curve in sources["curves"].items()})
    found.update({name: f"{value} (assumed)" for name, value in sources["assumed"].items()})
    return found
