"""A partition as one self-contained HTML page: what was decided, why, the pictures, the towers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from dmt_plugin.report.partition.picture import draw_affinity, draw_loads, draw_plane
from dmt_plugin.report.partition.view import PartitionView, table_of
from dmt_plugin.report.parts.figures import COLOURS, svg_of
from dmt_plugin.report.parts.html import Page, Tile, code, facts, figure, paragraph, tiles


def page_of(view: PartitionView, title: str = "Tower partition") -> Page:
    """The page of a partition.

    Args:
        view: the partition.
        title: its heading.
    """
    page = Page(title, lead=view.headline + ".", kicker="dmt partition")
    page.section("", tiles(_tiles(view)))
    pictures = []
    if view.affinity is not None:
        pictures.append(
            figure(
                _svg(draw_affinity, view, 8.2, 7.6, "affinity"),
                "Affinity of every pair of features, tower by tower; the frames are the towers. The scale ends at the "
                "largest affinity between two different features.",
            )
        )
    if view.points is not None:
        pictures.append(
            figure(
                _svg(draw_plane, view, 8.2, 6.4, "plane"),
                "Features laid out so that distances follow the affinities as well as a plane allows. Colour and "
                "marker tell the tower.",
            )
        )
    pictures.append(figure(_svg(draw_loads, view, 9.6, 2.8, "loads"), f"Load of each tower: {view.unit}."))
    page.section("Pictures", *pictures)
    page.section("Towers", table_of(view).to_html())
    page.section("Why", *_reasons(view), code(json.dumps(view.provenance, indent=2), "provenance, as in the plan"))
    return page


def _svg(draw: Callable[[Any, PartitionView, Any], None], view: PartitionView, w: float, h: float, name: str) -> str:
    return svg_of(lambda axes: draw(axes, view, COLOURS), width=w, height=h, name=name)


def _tiles(view: PartitionView) -> list[Tile]:
    heaviest = max(view.loads)
    weighed = "features" if view.unit == "features" else "cost"
    found = [
        Tile(str(len(view.sizes)), "towers", f"of {min(view.sizes)} to {max(view.sizes)} features"),
        Tile(f"{heaviest / view.fair:.2f}", "heaviest tower to the mean", f"balance by {weighed}"),
    ]
    if "layout" in view.provenance:
        layout = view.provenance["layout"]
        starts = f"best of {layout['restarts']} starts"
        found.append(Tile(f"{layout['stress_1']:.3f}", "stress-1 of the layout", starts))
    return found


def _reasons(view: PartitionView) -> list[str]:
    source = view.provenance
    found = {"strategy": str(source["strategy"])}
    if "objective" in source:
        asked = f" (asked for: {source['asked']})" if source["asked"] != source["objective"] else ""
        found["objective"] = f"{source['objective']}{asked}"
        several = source["stress_1"] if len(source["stress_1"]) > 1 else {}
        found["stress-1"] = ", ".join(f"{name} {value:.4f}" for name, value in several.items()) or (
            f"{source['layout']['stress_1']:.4f}"
        )
    if "held_out_loss" in source:
        found["held-out loss"] = ", ".join(f"{name} {value:.5f}" for name, value in source["held_out_loss"].items())
    if "affinity" in source:
        found["affinity"] = f"{view.kind}, {source['affinity']['samples']:,} samples"
    text = (
        "The objective was chosen by the mean loss on held-out batches after a short training with tower modules."
        if "held_out_loss" in source
        else "Of two objectives, the one whose layout has less stress was taken."
        if source.get("asked") == "auto"
        else "The objective was given."
    )
    return [facts(found), *([paragraph(text)] if "objective" in source else [])]
