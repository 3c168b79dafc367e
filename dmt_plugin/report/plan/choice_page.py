"""The page of ``dmt plan --model``: choices, configuration, findings and sources; or a sweep with its picture."""

from __future__ import annotations

from collections.abc import Mapping

from dmt_plugin.planning.outcome import Estimate
from dmt_plugin.planning.simulation import Simulation
from dmt_plugin.planning.sweep import Axis
from dmt_plugin.report.parts import html
from dmt_plugin.report.plan import choice, simulation
from dmt_plugin.report.plan.sweep_picture import picture


def page_of(
    found: Estimate | None,
    axis: Axis | None,
    swept: Mapping[float, Estimate],
    model: str,
    ran: Simulation | None = None,
) -> html.Page:
    """The page.

    Args:
        found: the estimate; None for a sweep.
        axis: of the sweep.
        swept: by value the estimate.
        model: what was asked for.
        ran: a simulation of one of the choices; None for none.

    Raises:
        RuntimeError: a sweep, and matplotlib is not installed.
    """
    shown = found if found is not None else next(iter(swept.values()))
    page = html.Page(
        title="What towers would bring",
        kicker=f"dmt plan --model {model}",
        lead=choice.headline(shown) + ".",
        footer="An estimate by the model of docs/planner.md. Nothing was measured.",
    )
    if found is None:
        assert axis is not None
        caption = "Milliseconds of a step, the fastest of each way. Lines end where nothing fits."
        page.section("", html.figure(picture(axis, swept), caption))
        page.section(f"By {axis.key}", choice.sweep_table(axis, swept).to_html())
        verdicts = {f"{axis.key} {value:g}": own.findings[0] for value, own in swept.items()}
        page.section("What to choose", html.facts(verdicts))
    else:
        page.section("Findings", *(html.paragraph(finding) for finding in found.findings))
        for group, rows in found.groups.items():
            page.section(choice.title_of(group), choice.choices_table(group, rows, found.best).to_html())
        if found.best is not None:
            page.section("Configuration", html.code(choice.block(found.best), f"{found.best.name}, {found.best.wire}"))
    if ran is not None:
        tables = (simulation.exchanges_table(ran).to_html(), simulation.schedule_table(ran).to_html())
        page.section("Simulation", html.paragraph(simulation.headline(ran)), *tables)
    page.section("The cluster's numbers", choice.cluster_table(shown.cluster).to_html())
    return page
