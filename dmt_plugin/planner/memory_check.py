"""Compares the memory that ranks need with what the machines and control groups that they are in have left.

1. Ranks that share a limit (the same machine, the same control group) are found by its key; their needs are added up.
2. What a limit has left is the least that any of them has read.
3. Of the limits that are too small, the one that lacks most is reported: what is needed by part, what is there, and
   what to change. A table that is larger than the whole limit is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import MemoryNeedError
from dmt_plugin.core.memory import MemoryLimit, lacking
from dmt_plugin.core.sizes import say_bytes
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.plan.tables import TableShard
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.planner.memory import MemoryNeed, RankMemory, shard_bytes
from dmt_plugin.topology.shape import Topology

_LARGE_BUFFERS = 0.25
"""Share of the need from which a smaller batch is worth a word."""


@dataclass(frozen=True)
class Share:
    """Which parts of a rank's need count against a limit.

    Attributes:
        tables: tables and their optimizer's state.
        rest: everything else, but for the snapshot.
        snapshot: the snapshot of an asynchronous save, which is in host memory.
    """

    tables: bool = True
    rest: bool = True
    snapshot: bool = True

    def of(self, rank: RankMemory) -> int:
        """Bytes."""
        tables = rank.tables + rank.table_states
        rest = rank.total - tables - rank.snapshot
        return tables * self.tables + rest * self.rest + rank.snapshot * self.snapshot


def check_memory(
    plan: TowerPlan,
    config: DMTConfig,
    need: MemoryNeed,
    limits: Sequence[Sequence[MemoryLimit]],
    share: Share = Share(),
    present: Sequence[int] = (),
) -> None:
    """Refuses a need that is larger than what there is.

    Args:
        plan: features to towers to hosts, tables to ranks.
        config: the ``"dmt"`` section.
        need: of all ranks.
        limits: for each rank the limits that its process has found.
        share: which parts of the need count against them.
        present: for each rank the bytes of its need that are in memory already; none where it is empty.

    Raises:
        MemoryNeedError: saying what is needed by part, what is there, and what to change.
    """
    found = shortage(plan, config, need, limits, share, present)
    if found is not None:
        raise MemoryNeedError(found)


def shortage(
    plan: TowerPlan,
    config: DMTConfig,
    need: MemoryNeed,
    limits: Sequence[Sequence[MemoryLimit]],
    share: Share = Share(),
    present: Sequence[int] = (),
) -> str | None:
    """The message of :func:`check_memory`; None where memory suffices, or nothing is known of it."""
    there = dict(enumerate(present))
    found = lacking([share.of(rank) - there.get(rank.rank, 0) for rank in need.ranks], limits)
    if found is None:
        return None
    limit, numbers = found
    return _message(plan, config, need, [need.ranks[number] for number in numbers], limit, share)


def _message(
    plan: TowerPlan, config: DMTConfig, need: MemoryNeed, ranks: Sequence[RankMemory], limit: MemoryLimit, share: Share
) -> str:
    total = sum(map(share.of, ranks))
    lines = [
        f"{_who(ranks)} {say_bytes(total)} of memory, and {limit.source} has {say_bytes(limit.available)} left.",
        f"  needed: {_parts(ranks, share)}.",
    ]
    for shard, size in _too_large(plan, config, ranks, limit) if share.tables else ():
        lines.append(
            f"  table {shard.name!r} ({shard.rows:,} x {shard.columns}, {say_bytes(size)} with its optimizer state, on "
            f"host {shard.host}, lane {shard.lane}) does not fit there even by itself"
        )
    return "\n".join([*lines, f"  what to change: {'; '.join(_ways_out(plan, config, ranks, share))}."])


def _who(ranks: Sequence[RankMemory]) -> str:
    numbers = [rank.rank for rank in ranks]
    if len(numbers) == 1:
        return f"rank {numbers[0]} needs"
    if numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"ranks {numbers[0]} to {numbers[-1]} together need"
    return f"ranks {', '.join(map(str, numbers))} together need"


def _parts(ranks: Sequence[RankMemory], share: Share) -> str:
    tables = {
        "tables": sum(r.tables for r in ranks),
        "their optimizer state": sum(r.table_states for r in ranks),
    }
    rest = {
        "towers with gradients and optimizer states": sum(r.towers for r in ranks),
        "dense part with gradients and optimizer states": sum(r.dense for r in ranks),
        "buffers of a step": sum(r.buffers.total for r in ranks),
    }
    snapshot = sum(r.snapshot for r in ranks)
    copies = {"snapshot of an asynchronous save": snapshot} if share.snapshot and snapshot else {}
    counted = (tables if share.tables else {}) | (rest if share.rest else {}) | copies
    return ", ".join(f"{what} {say_bytes(size)}" for what, size in counted.items())


def _shards_on(plan: TowerPlan, ranks: Sequence[RankMemory]) -> list[TableShard]:
    places = {(rank.host, rank.lane) for rank in ranks}
    return [s for table in plan.tables for s in plan.shards_of(table.name) if (s.host, s.lane) in places]


def _too_large(
    plan: TowerPlan, config: DMTConfig, ranks: Sequence[RankMemory], limit: MemoryLimit
) -> list[tuple[TableShard, int]]:
    """Shards that the limit cannot hold each by itself, with their bytes; the three largest."""
    sized = [(shard, sum(shard_bytes(shard, _rule(config, shard)))) for shard in _shards_on(plan, ranks)]
    return sorted((x for x in sized if x[1] > limit.available), key=lambda x: -x[1])[:3]


def _ways_out(plan: TowerPlan, config: DMTConfig, ranks: Sequence[RankMemory], share: Share) -> list[str]:
    found = ["more hosts, of which each holds fewer tables"]
    shards = _shards_on(plan, ranks)
    whole = max((s for s in shards if s.kind == "table_wise"), key=lambda s: s.rows * s.columns, default=None)
    if whole is not None:
        where = "" if Topology.parse(plan.topology).ranks_per_host > 1 else ", where it has several"
        found.append(
            f'"row_wise" placement of large tables, such as dmt.placement.overrides = {{"{whole.table.name}": '
            f'"row_wise"}}, which divides them over the ranks of their host{where}'
        )
    if any(_rule(config, s).state_entries(2) > 1 for s in shards):
        found.append('dmt.lookup.optimizer = "rowwise_adagrad", whose state is one number per row, not one per entry')
    if any(_rule(config, s).dtype == "fp32" for s in shards):
        found.append('dmt.lookup.dtype = "bf16" or "fp16", which halves the tables')
    found.append("tables of fewer rows or a smaller dim")
    total = sum(rank.total for rank in ranks)
    if sum(rank.buffers.total for rank in ranks) > _LARGE_BUFFERS * total:
        found.append("a smaller batch")
    if share.snapshot and any(rank.snapshot for rank in ranks):
        found.append("dmt.checkpoint.asynchronous = false, which needs no snapshot")
    return found


def _rule(config: DMTConfig, shard: TableShard) -> Rule:
    return config.lookup.rule_of(shard.table.name, shard.table.parameter, shard.table.dtype, shard.table.frozen)
