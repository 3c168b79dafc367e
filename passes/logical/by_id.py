"""Rows by id among the groups of features: what moves so, and what that costs, for people."""

from __future__ import annotations

from dmt_plugin.passes.base import PassContext
from dmt_plugin.passes.facts import Lookup

BY_ID = "its rows are asked for by id, and a tower sees samples"
"""Why a group only moves."""


def say_by_id(ctx: PassContext, lookup: Lookup) -> None:
    """What moves by id, and what that costs."""
    if lookup.bags is not None:
        reason = "the weights of its ids are trained, so its rows are weighed and added up where these are"
    elif lookup.by_id:
        reason = "its ids lie one behind the other, any number of them per sample"
    else:
        reason = "its table is read elsewhere by ids of which samples have any number"
    ctx.find(
        "DMT311", "info", lookup.table,
        f"{lookup.feature} moves as it is, without a tower module: {reason}. Every batch asks for the rows that it "
        f"needs, of {lookup.dim} entries each: a row once per host, or once per id where dmt.comm.dedup is off",
        at=lookup.node,
    )  # fmt: skip
