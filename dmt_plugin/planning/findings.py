"""What an estimate has to say beside its numbers: whether towers pay, what was left out, what it cannot know."""

from __future__ import annotations

from collections.abc import Sequence

from dmt_plugin.core.sizes import say_bytes
from dmt_plugin.planner.cluster.cluster import UNVERIFIED, Cluster
from dmt_plugin.planner.paper.model import FEW_HOSTS
from dmt_plugin.planning.candidates import REPLICATED
from dmt_plugin.planning.outcome import Estimate
from dmt_plugin.planning.rows import FEW, INT8_QUALITY, Row
from dmt_plugin.topology.shape import Topology

LITTLE = 1.05
"""A speed-up below this is none: the model is off by more."""


COUNTED_OTHERWISE = (
    "The counts of distinct rows are for another number of samples or of ranks per host, so that sending each row once "
    "(comm.dedup) is not among the choices: count for these with --data."
)


def more_hosts_than_features(features: int, cluster: Cluster, topology: Topology) -> str:
    """What is planned where not every machine can have a tower.

    Args:
        features: of the model.
        cluster: machines.
        topology: hosts that are several of them.
    """
    begin = f"{features} features on {cluster.hosts} hosts: at most {features} towers"
    if topology.hosts == 1:
        return (
            f"{begin}, and {cluster.hosts} hosts cannot be put together evenly to so few: only the flat route is left."
        )
    return (
        f"{begin}. Planned as {topology}: {cluster.hosts // topology.hosts} machines per tower; what goes between them "
        "crosses their links, and is timed so."
    )


def no_columns(why: str) -> str:
    """Why tables stay whole.

    Args:
        why: what of a rule of the tables speaks against it.
    """
    return (
        f"Tables are not divided by columns, which would spread few tables evenly over many ranks: {why}. Under "
        '"adam", "adagrad" or "sgd" (dmt.lookup.optimizer, or the optimizer of the configuration) they could be.'
    )


def uncounted(nodes: Sequence[str]) -> list[str]:
    """Which operations were not counted."""
    if not nodes:
        return []
    shown = ", ".join(nodes[:4]) + (", ..." if len(nodes) > 4 else "")
    return [f"{len(nodes)} operation(s) need values to run, and their FLOPs are not counted: {shown}"]


def of(found: Estimate, limit: int, *, counted: bool) -> list[str]:
    """All findings about the outcome.

    Args:
        found: the outcome.
        limit: bytes of a rank that a model may take.
        counted: whether it is known how many rows are distinct.
    """
    cluster = found.cluster
    said = [verdict(found)] if found.fits else [_nothing_fits(found, limit)]
    if found.fits and found.misfits:
        said.append(
            f"{len(found.misfits)} of {len(found.misfits) + found.priced} choices need more than {say_bytes(limit)} of "
            "a rank and are left out."
        )
    if 1 < cluster.hosts <= FEW_HOSTS:
        said.append(
            f"{cluster.hosts} hosts: the paper measured steps with towers to take {FEW - 1:.0%} longer here than this "
            "model says, and nobody knows why; the ranges have it."
        )
    if not counted and cluster.ranks > 1:
        said.append(
            "Distinct rows were not counted, so that sending each once (comm.dedup) is not among the choices, which "
            "is often the largest gain without loss. Give --data, or state --distinct-share."
        )
    if found.best is not None and found.best.name.endswith("dedup"):
        said.append(
            "Tables are dealt out by counts of distinct rows: write them with dmt explain --data ... --save-shares, "
            "and name the file in dmt.comm.dedup_shares. What an accelerator takes to sort ids and to sum gradients "
            "for it is not measured, and is counted as copies."
        )
    if any(group != "exact" for group in found.groups):
        said.append(
            "For fewer bytes take distinct rows first, which lose nothing; then int8 between hosts (change of AUC on "
            f"four data sets: {INT8_QUALITY}); then CR 2. A higher ratio only where it was measured on your data."
        )
    unsure = sorted({f.source for f in cluster.figures().values() if f.source.startswith(UNVERIFIED)})
    said += [
        f"{source}. The range begins at half of it; probe it: dmt doctor --json there, then --links."
        for source in unsure
    ]
    fixed = cluster.fixed
    if fixed.low < fixed.high:
        said.append(
            f"What a step costs beside FLOPs and bytes is not known: {1e3 * fixed.low:g} to {1e3 * fixed.high:g} ms, "
            f"{fixed.source}. It decides small steps: measure one on one accelerator (fixed_ms in cluster.yaml)."
        )
    return said


def verdict(found: Estimate) -> str:
    """Whether towers pay here."""
    best, reference = found.best, found.reference
    if best is None:
        return "Nothing that leaves the model as it is fits; tower modules do."
    if best.name == REPLICATED:
        return (
            "Do not use towers here: replicate the tables. Under stock DeepSpeed every rank has room for all of them."
        )
    towers = [row for rows in found.groups.values() for row in rows if not _plain(row)]
    fastest = min(towers, key=lambda row: row.ms, default=None)
    flat = [row for row in found.groups.get("exact", ()) if _plain(row)]
    base = min(flat, key=lambda row: row.ms, default=None)
    if base is not None and (fastest is None or base.ms < LITTLE * fastest.ms):
        why = "nothing crosses hosts" if found.cluster.hosts == 1 else _why_not(base, fastest)
        extra = ""
        if base.name != "flat" and reference is not None:
            extra = f" {base.name} it is: {reference.ms / base.ms:.2f} times as fast as flat."
        return f"Do not use towers here: {why}.{extra}"
    assert fastest is not None
    if _plain(best):
        paying = [row for row in towers if base is None or base.ms >= LITTLE * row.ms]
        least = min((row for row in paying if row.group == paying[0].group), key=lambda row: row.ms)
        return (
            f"Towers pay only with tower modules ({least.name}, the lowest compression that does; they change the "
            f"model); of what leaves it as it is, {best.name} is the fastest."
        )
    pays = "" if best.speed_up is None else f", {best.speed_up:.2f} times as fast as flat"
    return f"Towers pay here without a change of the model: {best.name}, {best.wire} on the wire{pays}."


def _plain(row: Row) -> bool:
    return row.name == REPLICATED or row.name.startswith("flat")


def _why_not(base: Row, fastest: Row | None) -> str:
    if fastest is None:
        return "no way with towers fits"
    return (
        f"the best of them ({fastest.name}) is {base.ms / fastest.ms:.2f} times as fast as {base.name}; the step is "
        f"bound by {base.binds} ({base.binds_share:.0%})"
    )


def _nothing_fits(found: Estimate, limit: int) -> str:
    least = min(found.misfits, key=lambda misfit: misfit.memory)
    return (
        f"Nothing fits: the least is {say_bytes(least.memory)} of a rank ({least.choice.name}, ZeRO stage "
        f"{least.choice.stage}), and an accelerator of {found.cluster.name} has {say_bytes(limit)} for it. Tables are "
        f"{say_bytes(found.tables_bytes)} in fp32: use more hosts, a smaller batch, tables of 16 bits "
        "(dmt.lookup.dtype), or an optimizer with less state."
    )
