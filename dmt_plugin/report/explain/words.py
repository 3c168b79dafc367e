"""Sentences that the text and the page of ``dmt explain`` share."""

from __future__ import annotations

from collections.abc import Sequence

from dmt_plugin.core.sizes import say_bytes
from dmt_plugin.plan.places import lanes_in_tower
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.planner.load import HostRows, LaneLoad
from dmt_plugin.planner.memory import MemoryNeed, RankMemory
from dmt_plugin.report.explain.content import DistinctRows, Explanation, Frozen, ParameterCounts

_MOST_RANKS = 32
"""How many ranks are listed one by one."""
_EVEN = 1.02
"""Largest to mean that still counts as even."""


def headline(data: Explanation) -> str:
    """What becomes of the model, in one line."""
    route = f"{data.topology.in_words}, route {data.route}"
    if data.plan is None:
        return f"{route}: refused, {data.refused}"
    ratio = data.compression
    strategy = data.plan.provenance.get("strategy", "file")
    modules = "no tower modules: the same numbers by another route"
    if any(module.host is None for module in data.tower_modules):
        modules = "tower modules on every rank, for its own samples"
    if ratio:
        modules = f"compression ratio {ratio:.2f}"
    return f"{route}, {len(data.towers)} tower(s), strategy {strategy}, {modules}"


def tower_note(plan: TowerPlan | None) -> str:
    """What kind of tower module a group goes through."""
    if plan is None:
        return ""
    module = plan.module
    letters = f", c={module.c}, p={module.p}" if module.kind == "dlrm" else ""
    if module.kind == "dcn":
        letters += f", rank {module.rank}" if module.rank else ""
        letters += f", outputs={module.outputs}" if module.outputs else ""
    return f"module {module.kind}" + (f"{letters}, D={module.dim}" if module.kind != "none" else "")


def feature_with_lanes(plan: TowerPlan | None, feature: str) -> str:
    """A feature's name with the lanes of its tables, in brackets, where the plan is known."""
    own = next((f.tables for f in plan.features if f.name == feature), ()) if plan else ()
    return f"{feature} ({', '.join(_lanes_of(plan, t) for t in own)})" if plan and own else feature


def _lanes_of(plan: TowerPlan, table: str) -> str:
    """Where a table is; and if it is frozen."""
    return lanes_in_tower(plan, table) + (" frozen" if plan.table(table).frozen else "")


def parameters_in_words(counts: ParameterCounts) -> str:
    """How many numbers there are in tables, in tower modules and in the dense part."""
    return f"{counts.tables:,} in tables, {counts.towers:,} in tower modules, {counts.dense:,} dense"


def loads_shown(data: Explanation) -> tuple[str, list[LaneLoad]]:
    """A heading and the predicted loads to show: of every rank, or of those that exchange most where there are many."""
    loads = data.lanes
    if len(loads) <= _MOST_RANKS:
        return "predicted load of every rank", loads
    busiest = sorted(loads, key=lambda x: (-x.exchange, -x.lookups, x.host, x.lane))[:_MOST_RANKS]
    return f"predicted load of the {_MOST_RANKS} of {len(loads)} ranks that exchange most", busiest


def owners_shown(data: Explanation) -> list[HostRows]:
    """The hosts whose owners to show, in order: all, or those that send most where there are many."""
    most = sorted(data.owners, key=lambda x: (-x.bytes, x.host))[:_MOST_RANKS]
    return sorted(most, key=lambda x: x.host)


def notes_on_owners(data: Explanation) -> list[str]:
    """How even hosts are, and which tables lie in rows by modulo."""
    if not data.owners or data.plan is None:
        return []
    shares, largest = data.plan.row_shares, max(host.to_mean for host in data.owners)
    dealt = {name: split for name, split in data.plan.table_splits.items() if split.ranges[0].step > 1}
    over_all = [n for n, split in dealt.items() if len({r.host for r in split.ranges}) > 1]
    counted = f" on {shares.steps} step(s) of {shares.source}" if shares is not None else ""
    text = f"As counted{counted}: the largest host exchanges {largest:.3f} times the mean"
    if dealt:
        counts = ((len(over_all), "over all ranks"), (len(dealt) - len(over_all), "over the lanes of a host"))
        said = " and ".join(f"{count} {where}" for count, where in counts if count)
        text += f"; {len(dealt)} of {len(data.plan.tables)} table(s) are in rows by modulo, {said}"
    return [f"{text}."]


def memory_shown(need: MemoryNeed) -> list[RankMemory]:
    """The ranks whose memory to show, in order: all, or those that need most where there are many."""
    if len(need.ranks) <= _MOST_RANKS:
        return need.ranks
    return sorted(sorted(need.ranks, key=lambda r: (-r.total, r.rank))[:_MOST_RANKS], key=lambda r: r.rank)


def hosts_shown(need: MemoryNeed) -> list[tuple[int, int]]:
    """Hosts with the bytes that they need, in order: all, or those that need most where there are many."""
    hosts = sorted(enumerate(need.hosts), key=lambda x: (-x[1], x[0]))[:_MOST_RANKS]
    return sorted(hosts)


def notes_on_memory(need: MemoryNeed) -> list[str]:
    """What the need is made of, and whether this machine lacks it."""
    b = need.ranks[need.largest].buffers
    buffers = {
        "ids": b.ids,
        "rows sent": b.rows_sent,
        "rows received": b.rows_received,
        "gradients": b.gradients,
        "wire buffers": b.wire,
        "held gradients": b.held,
    }
    some = ", ".join(f"{what} {say_bytes(size)}" for what, size in buffers.items())
    counts = (
        ("ranks", len(memory_shown(need)), len(need.ranks)),
        ("hosts", len(hosts_shown(need)), len(need.hosts)),
    )
    left_out = [f"Shown are the {few} of {whole} {what} that need most." for what, few, whole in counts if few < whole]
    return [
        *left_out,
        f"Rank {need.largest} needs most. Largest buffers of its step with {need.batch_size} samples per rank: {some}.",
        f"Towers and dense part: {need.basis}. Activations of the user's layers and the process itself come on top.",
        *([f"warning: this machine could not hold it: {need.shortage}"] if need.shortage else []),
    ]


def notes_on_exchanges(data: Explanation) -> list[str]:
    """What there is to know beside the list of exchanges."""
    sums = [data.gradient_sums.note] if data.gradient_sums else []
    uneven = uneven_hosts(data.sent_by_host)
    dedup = [f"{data.dedup}."] if data.dedup else []
    machines = []
    if (number := data.topology.machines_per_host) > 1:
        machines = [
            f"A host consists of {number} machines: bytes to other hosts are those to other machines, of the same host "
            "too; inside the host are those that stay on one machine."
        ]
    frozen = [frozen_in_words(data.frozen)] if data.frozen else []
    return [*machines, *sums, *dedup, *([uneven] if uneven else []), *frozen]


def notes_on_distinct_rows(found: DistinctRows) -> list[str]:
    """What was counted, and what it makes of the bytes of a step."""
    (away, near), (once_away, once_near) = found.by_sample, found.once
    how = 'is off here: "dmt": {"comm": {"dedup": "on"}} switches it on'
    if found.on:
        how = f"is on for {sum(f.way != 'by sample' for f in found.features)} of {len(found.features)} feature(s)"
    less = f", {away / once_away:.1f} times fewer" if 0 < once_away < away else ""
    return [
        f"Counted on {found.steps} step(s) with {found.samples} samples per rank; 1.000: every id is another row.",
        f"Every row once: {once_away:,} bytes to other hosts and {once_near:,} inside the host in a step, where a row "
        f"per sample takes {away:,} and {near:,}{less}. comm.dedup {how}.",
    ]


def frozen_in_words(frozen: Frozen) -> str:
    """Which tables are frozen, and what is saved by that."""
    names = ", ".join(frozen.tables[:8]) + (", ..." if len(frozen.tables) > 8 else "")
    state = "" if frozen.state is None else f"; {say_bytes(frozen.state)} of optimizer state are not kept"
    return (
        f"{len(frozen.tables)} table(s) are frozen ({names}): {frozen.other_hosts:,} bytes of gradients to other hosts "
        f"and {frozen.same_host:,} inside the host are not sent in a step{state}."
    )


def uneven_hosts(sent: Sequence[int]) -> str | None:
    """How much longer than an even share the exchange between hosts takes, where that is something.

    Args:
        sent: entries of a sample that each host sends to the others.
    """
    if len(sent) < 2 or max(sent) <= _EVEN * sum(sent) / len(sent):
        return None
    return (
        f"hosts send unequal parts of a sample to the others, {min(sent):,} to {max(sent):,} entries: the exchange "
        f"between them takes {max(sent) * len(sent) / sum(sent):.2f} times as long as an even one, both ways (features "
        'of one width are even where hosts divide their number; for mixed widths see dmt.partition.balance = "cost")'
    )
