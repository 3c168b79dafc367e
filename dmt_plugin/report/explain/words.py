"""Sentences that the text and the page of ``dmt explain`` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MOST_RANKS = 32
"""How many ranks are listed one by one."""
_EVEN = 1.02
"""Largest to mean that still counts as even."""


def headline(data: Mapping[str, Any]) -> str:
    """What becomes of the model, in one line."""
    hosts, lanes = data["topology"].split("x")
    where = f"{hosts} host(s) x {lanes} rank(s), route {data['route']}"
    if data["refused"]:
        return f"{where}: refused, {data['refused']}"
    ratio = data["compression"]
    strategy = data["plan"]["provenance"].get("strategy", "file")
    modules = f"compression ratio {ratio:.2f}" if ratio else "no tower modules: the same numbers by another route"
    return f"{where}, {len(data['towers'])} tower(s), strategy {strategy}, {modules}"


def tower_note(data: Mapping[str, Any]) -> str:
    """What kind of tower module a group goes through."""
    if not data["plan"]:
        return ""
    module = data["plan"]["module"]
    letters = f", c={module['c']}, p={module['p']}" if module["kind"] == "dlrm" else ""
    return f"module {module['kind']}" + (f"{letters}, D={module['dim']}" if module["kind"] != "none" else "")


def lanes_of(data: Mapping[str, Any], table: str) -> str:
    """Where a table is on its host: its lane, or ``rows 0+1``, ``columns 0+1`` for the lanes of its ranges."""
    plan = data["plan"]
    split = plan.get("table_splits", {}).get(table)
    if split is None:
        return str(plan["table_lanes"][table])
    kind = split["kind"].removesuffix("_wise") + "s"
    return f"{kind} " + "+".join(str(r["lane"]) for r in split["ranges"])


def feature_with_lanes(data: Mapping[str, Any], feature: str) -> str:
    """A feature's name with the lanes of its tables, in brackets, where the plan is known."""
    features = data["plan"]["features"] if data["plan"] else []
    own: list[str] = next((f["tables"] for f in features if f["name"] == feature), [])
    return f"{feature} ({', '.join(lanes_of(data, t) for t in own)})" if own else feature


def loads_shown(data: Mapping[str, Any]) -> tuple[str, list[Mapping[str, Any]]]:
    """A heading and the predicted loads to show: of every rank, or of those that exchange most where there are many."""
    loads: list[Mapping[str, Any]] = data["lanes"]
    if len(loads) <= _MOST_RANKS:
        return "predicted load of every rank", loads
    dearest = sorted(loads, key=lambda x: (-x["exchange"], -x["lookups"], x["host"], x["lane"]))[:_MOST_RANKS]
    return f"predicted load of the {_MOST_RANKS} of {len(loads)} ranks that exchange most", dearest


def notes_on_exchanges(data: Mapping[str, Any]) -> list[str]:
    """What there is to know beside the list of exchanges."""
    uneven = uneven_hosts(data)
    return [data["gradient_sums"]["note"], *([uneven] if uneven else [])]


def uneven_hosts(data: Mapping[str, Any]) -> str | None:
    """How much longer than an even share the exchange between hosts takes, where that is something."""
    sent: list[int] = data["sent_by_host"]
    if len(sent) < 2 or max(sent) <= _EVEN * sum(sent) / len(sent):
        return None
    return (
        f"hosts send unequal parts of a sample to the others, {min(sent):,} to {max(sent):,} entries: the exchange "
        f"between them takes {max(sent) * len(sent) / sum(sent):.2f} times as long as an even one, both ways (features "
        'of one width are even where hosts divide their number; for mixed widths see dmt.partition.balance = "cost")'
    )


def sum_of_bytes(data: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes of a step to other hosts and inside the host."""
    away = sum(c["other_hosts"] for c in data["collectives"])
    near = sum(c["same_host"] for c in data["collectives"])
    return away, near
