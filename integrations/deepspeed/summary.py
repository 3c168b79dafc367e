"""The first lines of a run: what was made of the model, printed whatever the log level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dmt_plugin.model.placed import PlacedModel


def summary(
    placed: PlacedModel, source: str, uncounted: str = "", on_torch: Sequence[Mapping[str, str]] = ()
) -> list[str]:
    """What a user should see of the run: topology and its source, towers, lookups, repaired layers, findings.

    Args:
        placed: This rank's model.
        source: Where the topology was read.
        uncounted: Why nobody counted distinct rows, if nobody did, or what else there is to say of the counts.
        on_torch: Of each rank why FBGEMM does not have a table that PyTorch looks up, by shard.
    """
    plan, topology, logical = placed.plan, placed.topology, placed.logical
    module = plan.module
    towers = "no tower modules" if logical.semantic_preserving else f"tower module {module.kind}, width {module.dim}"
    because = f" ({uncounted})" if uncounted else ""
    sizes = "+".join(str(len(names)) for names in plan.towers)
    return [
        f"dmt: {topology.in_words}, from {source}",
        f"dmt: {len(plan.towers)} tower(s) of {sizes} features, {towers}, route {placed.placement.route}, "
        f"plan {plan.fingerprint}",
        *([f"dmt: {placed.placement.once}{because}"] if placed.placement.once else []),
        *_lookups(placed, on_torch),
        *(f"dmt: {repair.target}: {repair.what}" for repair in logical.repairs),
        *(f"dmt: {finding}" for finding in logical.findings),
    ]


def _lookups(placed: PlacedModel, on_torch: Sequence[Mapping[str, str]]) -> list[str]:
    """A line for each reason for which FBGEMM does not have some tables."""
    tables: dict[str, set[str]] = {}
    for own in on_torch:
        for shard, why in own.items():
            tables.setdefault(why, set()).add(placed.plan.shard(shard).table.name)
    return [
        f"dmt: {len(names)} table(s) such as '{min(names)}' on PyTorch instead of FBGEMM: {why}"
        for why, names in tables.items()
    ]
