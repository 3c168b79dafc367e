"""The page of ``dmt report``: one HTML file with the figures and pictures of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmt_plugin.core.sizes import say_bytes
from dmt_plugin.report.parts import html
from dmt_plugin.report.parts.figures import curves, stacked_areas, stacked_bars
from dmt_plugin.report.run import tables
from dmt_plugin.report.run.summary import PARTS

_BARS = 16
_COLOURS = ("part-5", "part-2", "part-3", "series-4", "part-1", "part-4")


def page_of(data: Mapping[str, Any], folder: str) -> html.Page:
    """The page for what :func:`dmt_plugin.report.run.summary.summary_of` found.

    Args:
        data: its result.
        folder: where the records are, as the user named it.
    """
    page = html.Page(
        title="A run, step by step",
        kicker="dmt report",
        lead=tables.headline(data) + ".",
        footer=f"`dmt report {folder} --html ...`: means of one step, without the first record of each start.",
    )
    page.section("", html.tiles(_tiles(data)), html.facts(_facts(data, folder)))
    if data["notes"]:
        page.section("What is missing", *(html.paragraph(note) for note in data["notes"]))
    page.section("Time by part of a step", *_time(data), tables.parts_table(data).to_html())
    if data["exchanges"]:
        page.section("Exchanges", *_exchanges(data), tables.exchanges_table(data).to_html())
    page.section("Ranks", *_ranks(data), tables.ranks_table(data).to_html())
    page.section("Towers", *_towers(data), tables.towers_table(data).to_html())
    if data["distinct"]:
        page.section("Distinct rows", tables.distinct_table(data).to_html())
    page.section("Tables", html.details(f"{len(data['tables'])} tables", tables.tables_table(data).to_html()))
    return page


def _tiles(data: Mapping[str, Any]) -> list[html.Tile]:
    ranks, one = data["ranks"], tables.slowest(data)
    mean = sum(r["busy_s"] for r in ranks) / len(ranks)
    waited = sum(r["waited_s"] for r in ranks) / len(ranks)
    away = sum(r["other_hosts"] for r in ranks)
    found = [
        html.Tile(
            f"{data['step_s'] * 1e3:,.1f} ms",
            "a step",
            f"steps {data['steps']['first']:,} to {data['steps']['last']:,}",
        ),
        html.Tile(f"{waited / data['step_s']:.0%}", "of it waited for other ranks", "mean over ranks"),
        html.Tile(say_bytes(round(away)), "to other hosts", "per step, all ranks"),
        html.Tile(
            f"{one['busy_s'] / mean if mean else 1:.2f}",
            "slowest rank to the mean",
            f"rank {one['rank']}, time not waited",
        ),
    ]
    heaviest = max((t["to_mean"] or 1.0 for t in data["towers"]), default=None)
    if heaviest is not None:
        found.append(html.Tile(f"{heaviest:.2f}", "heaviest tower to the mean", "ids looked up"))
    if data["samples_per_s"]:
        found.insert(1, html.Tile(f"{data['samples_per_s']:,.0f}", "samples per second", "all ranks together"))
    return found


def _facts(data: Mapping[str, Any], folder: str) -> dict[str, str]:
    return {
        "records": f"`{folder}`, one every {data['every']} steps",
        "topology": f"{data['topology']}, from {data['source']}",
        "plan": f"`{data['plan']}`, route {data['route']}",
        "device": str(data["device"]),
        "versions": ", ".join(f"{name} {version}" for name, version in data["versions"].items()),
    }


def _time(data: Mapping[str, Any]) -> list[str]:
    times = data["over_time"]
    if len(times) < 2:
        return [html.paragraph("Two records at the same steps of all ranks are needed for a picture over the run.")]
    steps = [entry["step"] for entry in times]
    parts = {words: [entry["parts_s"][name] * 1e3 for entry in times] for name, words in PARTS.items()}
    svg = stacked_areas(
        steps, parts, x_label="step", y_label="ms of a step, mean over ranks", colours=_COLOURS, name="parts"
    )
    return [html.figure(svg, "Waits for exchanges are inside the parts.")]


def _exchanges(data: Mapping[str, Any]) -> list[str]:
    found = []
    sent = [e for e in data["exchanges"] if e["other_hosts"]["mean"] + e["same_host"]["mean"] > 0]
    sent = sorted(sent, key=lambda e: -(e["other_hosts"]["mean"] + e["same_host"]["mean"]))[:_BARS]
    if sent:
        sizes = {
            words: [e[key]["mean"] / 1024 for e in sent]
            for key, words in (("other_hosts", "to other hosts"), ("same_host", "inside the host"))
        }
        svg = stacked_bars(
            [e["name"] for e in sent], sizes, unit="KiB per rank and step", label="{:,.1f}".format,
            colours=("series-4", "part-3"), name="bytes",
        )  # fmt: skip
        found.append(html.figure(svg, "Bytes a rank hands to others, mean over ranks.", "Bytes by exchange"))
    timed = [e for e in data["exchanges"] if e["in_flight_s"] is not None]
    timed = sorted(timed, key=lambda e: -e["in_flight_s"]["mean"])[:_BARS]
    if timed:
        waits = [e["waited_s"]["mean"] * 1e3 for e in timed]
        hidden = [max(e["in_flight_s"]["mean"] * 1e3 - w, 0.0) for e, w in zip(timed, waits, strict=True)]
        svg = stacked_bars(
            [e["name"] for e in timed], {"waited": waits, "hidden behind work": hidden}, unit="ms per step",
            label="{:,.2f}".format, colours=("series-4", "part-3"), name="waits",
        )  # fmt: skip
        found.append(html.figure(svg, "From start to end of each exchange, mean over ranks.", "Time by exchange"))
    return found


def _ranks(data: Mapping[str, Any]) -> list[str]:
    found = []
    shown = sorted(sorted(data["ranks"], key=lambda r: -r["busy_s"])[:_BARS], key=lambda r: r["rank"])
    times = {"busy": [r["busy_s"] * 1e3 for r in shown], "waited for other ranks": [r["waited_s"] * 1e3 for r in shown]}
    names = [f"rank {r['rank']} (host {r['host']})" for r in shown]
    svg = stacked_bars(
        names, times, unit="ms of a step", label="{:,.1f}".format, colours=("part-2", "part-5"), name="ranks"
    )
    left = len(data["ranks"]) - len(shown)
    more = f" The {len(shown)} busiest ranks of {len(data['ranks'])}." if left else ""
    found.append(html.figure(svg, tables.say_slowest(data) + more, "Busy and waiting"))
    over = [entry for entry in data["over_time"] if entry["slowest_to_mean"]]
    if len(over) > 1 and len(data["ranks"]) > 1:
        steps = [float(entry["step"]) for entry in over]
        lines = {"busiest rank": (steps, [entry["slowest_to_mean"] for entry in over])}
        if all(entry["heaviest_tower_to_mean"] for entry in over):
            lines["heaviest tower"] = (steps, [entry["heaviest_tower_to_mean"] for entry in over])
        svg = curves(lines, x_label="step", y_label="to the mean", colours=("series-2", "series-4"), name="imbalance")
        found.append(
            html.figure(svg, "1 is even. Busy: the time of a step that was not waited.", "Imbalance over the run")
        )
    return [html.columns(*found)]


def _towers(data: Mapping[str, Any]) -> list[str]:
    towers = sorted(sorted(data["towers"], key=lambda t: -t["ids"])[:_BARS], key=lambda t: t["tower"])
    if not any(t["ids"] for t in towers):
        return [html.paragraph("No ids were counted.")]
    svg = stacked_bars(
        [f"tower {t['tower']} (host {t['host']})" for t in towers], {"ids": [t["ids"] for t in towers]},
        unit="ids looked up per step", colours=("part-1",), name="towers",
    )  # fmt: skip
    return [html.figure(svg, "Ids looked up per step and tower, all ranks together.")]
