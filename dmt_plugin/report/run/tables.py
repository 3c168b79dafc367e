"""The tables of a run: the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmt_plugin.core.sizes import say_bytes
from dmt_plugin.report.parts.tables import Column, Table

MOST = 20
"""Tables, and ranks, that the terminal shows; the page shows all."""


def headline(data: Mapping[str, Any]) -> str:
    """The run in one line."""
    steps, speed = data["steps"], data["samples_per_s"]
    line = f"{data['topology']} ranks, steps {steps['first']:,} to {steps['last']:,}"
    return f"{line}: {data['step_s'] * 1e3:,.1f} ms a step" + (f", {speed:,.0f} samples/s" if speed else "")


def slowest(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """The rank that others wait for."""
    found: Mapping[str, Any] = max(data["ranks"], key=lambda rank: rank["busy_s"])
    return found


def say_slowest(data: Mapping[str, Any]) -> str:
    """Which rank the others wait for, and by how much; nothing for one rank."""
    ranks = data["ranks"]
    if len(ranks) < 2:
        return ""
    one, quickest = slowest(data), min(rank["busy_s"] for rank in ranks)
    return (
        f"The others wait for rank {one['rank']} (host {one['host']}, lane {one['lane']}): busy "
        f"{one['busy_s'] * 1e3:,.1f} ms of a step, the least busy rank {quickest * 1e3:,.1f} ms."
    )


def parts_table(data: Mapping[str, Any]) -> Table:
    """Time by part of a step."""
    columns = [
        Column("words", "part"),
        Column("mean", "mean", ",.2f", "ms"),
        Column("share", "share", ".0%"),
        Column("min", "least", ",.2f", "ms"),
        Column("min_rank", "on rank"),
        Column("max", "most", ",.2f", "ms"),
        Column("max_rank", "on rank"),
    ]
    rows = [{**p, **{key: p[key] * 1e3 for key in ("mean", "min", "max")}} for p in data["parts"]]
    total = {"words": "step", "mean": data["step_s"] * 1e3, "share": sum(p["share"] for p in data["parts"])}
    return Table(columns, [*rows, total], ["Waits for exchanges are inside the parts."], emphasis="step")


def exchanges_table(data: Mapping[str, Any]) -> Table:
    """Bytes and time of every exchange."""
    columns = [
        Column("name", "exchange"),
        Column("count", "per step", ".3g"),
        Column("away", "to other hosts", note="per rank"),
        Column("near", "inside the host", note="per rank"),
        Column("waited", "waited", ",.2f", "ms, mean"),
        Column("most", "waited", ",.2f", "ms, most"),
        Column("most_rank", "on rank"),
        Column("flight", "in flight", ",.2f", "ms, mean"),
        Column("hidden", "hidden", ".0%"),
    ]
    rows = []
    for entry in data["exchanges"]:
        row = {
            "name": entry["name"],
            "count": entry["count"],
            "away": say_bytes(round(entry["other_hosts"]["mean"])),
            "near": say_bytes(round(entry["same_host"]["mean"])),
            "hidden": entry["hidden"],
        }
        if entry["waited_s"] is not None:
            waited = entry["waited_s"]
            row |= {"waited": waited["mean"] * 1e3, "most": waited["max"] * 1e3, "most_rank": waited["max_rank"]}
            row["flight"] = entry["in_flight_s"]["mean"] * 1e3
        rows.append(row)
    notes = [
        "Waited: this rank had nothing else to do. In flight: from the start to the end of the wait. Hidden: the "
        "share of the flight that work covered. Where there is no time, only the bytes were counted."
    ]
    return Table(columns, rows, notes)


def ranks_table(data: Mapping[str, Any], most: int | None = None) -> Table:
    """The ranks beside each other."""
    columns = [
        Column("rank", "rank"),
        Column("host", "host"),
        Column("lane", "lane"),
        Column("step", "step", ",.2f", "ms"),
        Column("busy", "busy", ",.2f", "ms"),
        Column("waited", "waited", ",.2f", "ms"),
        Column("ids", "ids looked up", ",.0f"),
        Column("away", "to other hosts"),
        Column("near", "inside the host"),
        Column("last_step", "last step"),
    ]
    ranks = sorted(data["ranks"], key=lambda rank: -rank["busy_s"])
    rows = [
        {
            **rank,
            **{key: rank[f"{key}_s"] * 1e3 for key in ("step", "busy", "waited")},
            "away": say_bytes(round(rank["other_hosts"])),
            "near": say_bytes(round(rank["same_host"])),
        }
        for rank in ranks[:most]
    ]
    notes = [say_slowest(data)] if say_slowest(data) else []
    return Table(columns, rows, [*notes, *_left_out(ranks, most)], emphasis=str(slowest(data)["rank"]))


def towers_table(data: Mapping[str, Any]) -> Table:
    """Load of each tower."""
    columns = [
        Column("tower", "tower"),
        Column("host", "host"),
        Column("features", "features"),
        Column("ids", "ids looked up", ",.0f", "per step"),
        Column("to_mean", "to the mean", ".2f"),
    ]
    return Table(columns, data["towers"])


def distinct_table(data: Mapping[str, Any]) -> Table:
    """Distinct rows of what travels once."""
    columns = [
        Column("group", "rows"),
        Column("ids", "ids", ",.0f", "per step, all ranks"),
        Column("rank", "distinct in a rank's batch", ".3f", "rows per id"),
        Column("host", "distinct in a host's batches", ".3f", "rows per id"),
    ]
    return Table(columns, data["distinct"], ["Rows that travel by sample are not counted."])


def tables_table(data: Mapping[str, Any], most: int | None = None) -> Table:
    """Ids by table."""
    columns = [
        Column("table", "table"),
        Column("ids", "ids looked up", ",.0f", "per step"),
        Column("share", "share", ".1%"),
        Column("on", "on ranks", text=True),
    ]
    rows = [{**entry, "on": ", ".join(map(str, entry["ranks"]))} for entry in data["tables"][:most]]
    notes = ["An id of a table that is cut by columns counts on every rank that has a part of its row."]
    return Table(columns, rows, [*notes, *_left_out(data["tables"], most)])


def _left_out(entries: list[Any], most: int | None) -> list[str]:
    more = len(entries) - (most or len(entries))
    return [f"{more} more; --html shows all."] if more > 0 else []
