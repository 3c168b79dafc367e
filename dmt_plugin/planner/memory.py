"""The memory that each rank needs for training, from plan, configuration and sizes alone: nothing is allocated.

1. Tables: the values of a rank's shards (FBGEMM pads rows to a multiple of 4 columns) in the type that they are kept
   in, and their optimizer's state, fp32.
2. Towers and dense part: parameters, gradients, and what DeepSpeed keeps for its optimizer. At ZeRO stages 1 and 2 that
   is an fp32 copy, gradients and states of a rank's share, and a bucket of gradients on the way; a tower is shared by
   the lanes of its host, the dense part by all ranks.
3. The largest buffers of a step with ``B`` samples per rank: a rank looks up rows for ``H*L*B`` samples, gets those of
   its host's lanes for ``H*B``, and the outputs of all hosts for ``B``; gradients take the way back.
4. With ``checkpoint.asynchronous`` the snapshot of a save: a copy of what the rank writes. Of the dense part and the
   towers, which several ranks hold, each entry is written by one of them, and by which is found out at the save.

Not counted: activations of the user's layers, and the process itself (libraries, allocators, communication).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.update_rule import BYTES_OF, Rule
from dmt_plugin.plan.tables import TableShard, TableSpec
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.planner.buffers import Buffers, Entries, ModelSizes, StepBuffers
from dmt_plugin.topology.shape import Topology

_FP32, _BF16 = 4, 2
_UNIT = 4
"""FBGEMM's rows have a multiple of so many columns."""

_STATES = {
    "adagrad": 1, "adam": 2, "adamw": 2, "fusedadam": 2, "fusedlamb": 2, "fusedlion": 1, "lamb": 2, "lion": 1,
    "rmsprop": 1, "sgd": 0,
}  # fmt: skip
"""States per parameter, by the optimizer's name in lower case."""

_UNKNOWN_STATES = 2
_UPDATED_COPIES = 6
"""On PyTorch: gradients by id and by row, the rows before and after, and up to two states."""

_SHORT_COPIES = 3
"""On PyTorch, where rows are kept in 16 bits: the rows of all ids in fp32, and the bits by which they are rounded."""

_LONGEST_BLOCK = 1 << 26
"""Bytes of the largest part of a tensor that one rank writes."""


@dataclass(frozen=True)
class RankMemory:
    """What one rank needs, in bytes.

    Attributes:
        rank: the rank.
        host: its host.
        lane: its lane.
        tables: values of its shards.
        table_states: their optimizer's state.
        towers: tower modules with gradients and optimizer states.
        dense: the dense part with gradients and optimizer states.
        buffers: the largest buffers of a step.
        snapshot: the copy in host memory that an asynchronous save is written from, at most; 0 without one.
        total: all of it.
    """

    rank: int
    host: int
    lane: int
    tables: int
    table_states: int
    towers: int
    dense: int
    buffers: StepBuffers
    snapshot: int = 0
    total: int = field(init=False)

    def __post_init__(self) -> None:
        parts = self.tables + self.table_states + self.towers + self.dense + self.buffers.total + self.snapshot
        object.__setattr__(self, "total", parts)


@dataclass(frozen=True)
class MemoryNeed:
    """What all ranks need.

    Attributes:
        batch_size: samples per rank that the buffers are for.
        basis: how towers and dense part are counted, in words.
        ranks: every rank, in order.
        hosts: bytes of each host: the sum over its lanes.
        largest: the rank that needs most.
        shortage: why this machine could not hold it; None where it could, or where it need not.
    """

    batch_size: int
    basis: str
    ranks: list[RankMemory]
    hosts: list[int]
    largest: int
    shortage: str | None = None


def memory_need(
    plan: TowerPlan, topology: Topology, config: DMTConfig, settings: DeepSpeedSettings, sizes: ModelSizes
) -> MemoryNeed:
    """The need of every rank.

    Args:
        plan: features to towers to hosts, tables to ranks.
        topology: hosts and lanes.
        config: the ``"dmt"`` section.
        settings: the DeepSpeed configuration around it.
        sizes: of the model and its batches.
    """
    own: list[list[TableShard]] = [[] for _ in range(topology.world_size)]
    for table in plan.tables:
        for shard in plan.shards_of(table.name):
            own[topology.rank_of(shard.host, shard.lane)].append(shard)

    @cache
    def rule_of(table: TableSpec) -> Rule:
        return config.lookup.rule_of(table.name, table.parameter, table.dtype, table.frozen)

    buffers_of = Buffers(topology, config, settings, sizes, settings.row_dtype(plan.row_dtype))
    dense = trained_bytes(sizes.dense, settings, topology.world_size)
    of_towers = {
        host: trained_bytes(entries, settings, topology.ranks_per_host) for host, entries in sizes.towers.items()
    }
    ranks = []
    for rank, shards in enumerate(own):
        tables, states, copies = 0, 0, 0
        for shard in shards:
            table = shard.table
            rule = rule_of(table)
            torch = table.name in sizes.on_torch or _on_torch(shard, config, rule, sizes.fbgemm)
            values, state = shard_bytes(shard, rule, padded=not torch)
            tables, states = tables + values, states + state
            copies = max(copies, torch * (_UPDATED_COPIES + (rule.dtype != "fp32") * _SHORT_COPIES))
        host = topology.host_of(rank)
        buffers = buffers_of(rank, copies)
        towers = of_towers.get(host, 0)
        snapshot = 0
        if config.checkpoint.asynchronous:
            snapshot = tables + states + written_bytes(sizes.dense, settings, topology.world_size)
            snapshot += written_bytes(sizes.towers.get(host, Entries()), settings, topology.ranks_per_host)
        ranks.append(RankMemory(rank, host, topology.lane_of(rank), tables, states, towers, dense, buffers, snapshot))
    hosts = [sum(r.total for r in ranks if r.host == host) for host in range(topology.hosts)]
    largest = max(ranks, key=lambda r: (r.total, -r.rank)).rank
    return MemoryNeed(sizes.batch, _basis(settings), ranks, hosts, largest)


def shard_bytes(shard: TableShard, rule: Rule, *, padded: bool = True) -> tuple[int, int]:
    """Bytes of a shard's values and of its optimizer's state.

    Args:
        shard: the shard.
        rule: how the table is updated.
        padded: whether rows have a multiple of 4 columns, as FBGEMM's do.
    """
    columns = -(-shard.columns // _UNIT) * _UNIT if padded else shard.columns
    values = BYTES_OF[rule.dtype] * shard.rows * columns
    return values, _FP32 * shard.rows * rule.state_entries(columns)


def trained_bytes(entries: Entries, settings: DeepSpeedSettings, ranks: int) -> int:
    """Bytes of parameters on one rank, with their gradients and what DeepSpeed keeps for its optimizer.

    Args:
        entries: of the parameters.
        settings: the DeepSpeed configuration.
        ranks: how many ranks hold these parameters, and share the optimizer's states at ZeRO stages 1 and 2.
    """
    size = _BF16 if settings.bf16 else _FP32
    states = _states(settings)
    total = size * (entries.held + entries.trained)
    if settings.zero_stage:
        buckets = 2 if settings.overlap_comm else 1
        total += buckets * size * min(_bucket(settings), entries.trained)
        total += _FP32 * (2 + states) * -(-entries.trained // ranks)
    else:  # in bf16 fp32 copies and gradients; in fp32 the buffers of the sum over ranks, to send and to receive
        total += _FP32 * (2 + states) * entries.trained
    return total


def written_bytes(entries: Entries, settings: DeepSpeedSettings, ranks: int) -> int:
    """Bytes of parameters and their optimizer's states that one rank writes into a checkpoint, at most.

    Each block goes to the rank that has been given least; what rank 0 holds too may go to the others.

    Args:
        entries: of the parameters.
        settings: the DeepSpeed configuration.
        ranks: how many ranks hold these parameters.
    """
    whole = _FP32 * (entries.held + _states(settings) * entries.trained)
    return min(whole, -(-whole // max(1, ranks - 1)) + _LONGEST_BLOCK)


def _bucket(settings: DeepSpeedSettings) -> int:
    size = settings.reduce_bucket_size
    return int(size) if isinstance(size, int | float) else 2**62


def _states(settings: DeepSpeedSettings) -> int:
    """Numbers per parameter that the optimizer keeps."""
    name = str(settings.optimizer or "").lower()
    momentum: Any = settings.at("optimizer.params.momentum", 0)
    return 1 if name == "sgd" and momentum else _STATES.get(name, _UNKNOWN_STATES)


def _basis(settings: DeepSpeedSettings) -> str:
    name = settings.optimizer or "an optimizer that the configuration does not name"
    known = str(settings.optimizer or "").lower() in _STATES
    states = f"{_states(settings)} state(s) per parameter{'' if known else ', assumed as for Adam'}"
    return f"{name} ({states}) at ZeRO stage {settings.zero_stage}, {'bf16' if settings.bf16 else 'fp32'}"


def _on_torch(shard: TableShard, config: DMTConfig, rule: Rule, fbgemm: bool) -> bool:
    """Whether PyTorch looks the shard up, as far as it can be said here: FBGEMM may turn out to lack a rule."""
    if config.lookup.backend == "torch" or not fbgemm or not rule.plain:
        return True
    if rule.dtype == "bf16" or rule.stochastic_rounding:
        return True
    return bool(shard.columns % _UNIT) and rule.name == "rowwise_adagrad"
