"""Tables of ``dmt plan --model``: choices by group, the cluster's numbers with their sources, and a sweep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dmt_plugin.core.sizes import say_bytes
from dmt_plugin.planner.cluster.cluster import Cluster
from dmt_plugin.planner.time.devices import GIGA, TERA
from dmt_plugin.planning.outcome import Estimate
from dmt_plugin.planning.rows import QUALITY, Row
from dmt_plugin.planning.sweep import Axis, lines, names
from dmt_plugin.report.parts.tables import Column, Table


def headline(found: Estimate) -> str:
    """What was estimated, in one line."""
    cluster = found.cluster
    return (
        f"Estimate, not a measurement: {cluster.name}, {cluster.hosts} x {cluster.ranks_per_host}, links "
        f"{'as probed' if cluster.nic.measured else 'at line rate'}, batch "
        f"{found.samples:,} per rank; {found.features} features, tables of {say_bytes(found.tables_bytes)} in fp32, "
        f"{found.mflops:.2f} MFlops a sample (forward and backward)"
    )


def choices_table(group: str, rows: Sequence[Row], best: Row | None) -> Table:
    """The choices of one group."""
    shown = [
        {
            "name": row.name,
            "wire": row.wire,
            "ms": row.ms,
            "range": f"{row.range_ms[0]:.1f}-{row.range_ms[1]:.1f}",
            "speed_up": row.speed_up,
            "speed_range": "-" if row.range_speed_up is None else "{:.2f}-{:.2f}".format(*row.range_speed_up),
            "samples": row.samples_per_s,
            "exposed": row.exposed_ms,
            "by": _by_exchange(row.exposed_by),
            "memory": row.memory / 2**30,
            "nic": row.nic_bytes / GIGA,
            "lanes": row.lanes_bytes / GIGA,
            "blocks": row.blocks,
            "stage": row.stage,
            "binds": f"{row.binds} {row.binds_share:.0%}",
        }
        for row in rows
    ]
    columns = [
        Column("name", "choice"),
        Column("wire", "wire", text=True),
        Column("ms", "step", ".2f", "ms"),
        Column("range", "range", note="ms"),
        Column("speed_up", "speed-up", ".2f"),
        Column("speed_range", "range"),
        Column("samples", "samples/s", ",.0f"),
        Column("exposed", "exposed", ".2f", "ms"),
        Column("by", "by exchange", note="out+back, ms", text=True),
        Column("memory", "memory", ".1f", "GiB"),
        Column("nic", "NIC", ".3f", "GB"),
        Column("lanes", "inside", ".3f", "GB"),
        Column("blocks", "blocks"),
        Column("stage", "ZeRO"),
        Column("binds", "bound by", text=True),
    ]
    notes = []
    if group == "exact":
        notes.append("The model as it is. fp32 changes nothing; other wire formats round what travels.")
    else:
        ratio = int(group.rpartition(" ")[2])
        cost = QUALITY.get(ratio, "not measured")
        notes.append(f"Another model. What {group} cost elsewhere, as change of AUC: {cost}.")
    emphasis = best.name if best is not None and best in rows else None
    return Table(columns, shown, notes, emphasis)


def title_of(group: str) -> str:
    """Heading of a group."""
    return "exact: the same model" if group == "exact" else f"{group}: tower modules, another model"


def cluster_table(cluster: Cluster) -> Table:
    """Every number of the cluster, with its source."""
    units = {"memory": (GIGA, "GB"), "memory_rate": (TERA, "TB/s"), "fixed": (1e-3, "ms")}
    units |= {name: (TERA, "TFLOP/s") for name in cluster.figures() if name.startswith("flops.")}
    titles = {"nic": "to other hosts, per rank", "lanes": "inside a host, per rank", "memory_rate": "memory's rate"}
    titles |= {"fixed": "fixed cost of a step"}
    for name, what, own in (("everyone", "exchange", cluster.everyone), ("sums", "sums", cluster.sums)):
        titles |= {name: f"{what} of all {own.ranks} ranks, per rank"} if own is not None else {}
    rows = []
    for name, figure in cluster.figures().items():
        size, unit = units.get(name, (GIGA, "GB/s"))
        value = f"{figure.value / size:g} {unit}"
        if figure.low < figure.high:
            value += f" ({figure.low / size:g}-{figure.high / size:g})"
        rows.append(
            {"name": titles.get(name, name.replace("flops.", "products, ")), "value": value, "by": figure.source}
        )
    columns = [Column("name", "number"), Column("value", "value"), Column("by", "source", text=True)]
    notes = ["Line rates are upper bounds; the model takes shares of them (docs/planner.md)."]
    if cluster.shared_nic:
        notes.append(f"The {cluster.ranks_per_host} ranks of a host share its link to other hosts.")
    return Table(columns, rows, notes)


def block(row: Row) -> str:
    """The configuration of a row, to paste."""
    return json.dumps(row.section, indent=2)


def sweep_table(axis: Axis, found: Mapping[float, Estimate]) -> Table:
    """One line per value: the fastest of each way in ms, and its speed-up over the fastest flat one."""
    told = lines(found)
    every = names(told)
    rows: list[dict[str, Any]] = []
    for line in told:
        row: dict[str, Any] = {"value": f"{line['value']:g}"}
        for name in every:
            own = line["rows"].get(name)
            row[name] = None if own is None else _time(own)
        rows.append(row)
    columns = [Column("value", axis.key), *(Column(name, name, note="ms (speed-up)") for name in every)]
    notes = ["The fastest of each way, whatever its wire format; a dash: it does not fit, or is not possible."]
    return Table(columns, rows, notes)


def _by_exchange(exposed: Mapping[str, float]) -> str:
    """``"rows 0.7+0.8, lanes 1.3+1.4"``: out and back."""
    kinds = dict.fromkeys(name.partition(" ")[0] for name in exposed)
    ends = {kind: [exposed.get(f"{kind} {way}", 0.0) for way in ("out", "back")] for kind in kinds}
    return ", ".join(f"{kind} {out:.1f}+{back:.1f}" for kind, (out, back) in ends.items())


def _time(row: Row) -> str:
    return f"{row.ms:.2f}" + ("" if row.speed_up is None else f" ({row.speed_up:.2f})")
