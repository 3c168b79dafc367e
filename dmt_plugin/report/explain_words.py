"""Sentences that the text and the page of ``dmt explain`` share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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


def sum_of_bytes(data: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes of a step to other hosts and inside the host."""
    away = sum(c["other_hosts"] for c in data["collectives"])
    near = sum(c["same_host"] for c in data["collectives"])
    return away, near
