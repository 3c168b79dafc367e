"""All that can be chosen for a run, with the time of a step and the memory of a rank; what does not fit is left out.

1. Of each variant: wire formats between hosts and inside them, micro-blocks, ZeRO stages. The flat model under stock
   DeepSpeed, every table on every rank, is one more.
2. Memory comes first: parameters, states and buffers of the largest rank (:mod:`dmt_plugin.planner.memory`), and what
   its layers keep for the backward pass. A tenth of the accelerator is left to libraries and allocators.
3. Then the time, in the expected world (:mod:`dmt_plugin.planner.cluster.rates`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from dmt_plugin.comm.formats import Format
from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.planner.buffers import Entries
from dmt_plugin.planner.cluster.cluster import Cluster
from dmt_plugin.planner.cluster.rates import World
from dmt_plugin.planner.gradient_cost import GradientSums
from dmt_plugin.planner.memory import memory_need, trained_bytes
from dmt_plugin.planner.time.step import Load, StepTime
from dmt_plugin.planning.loads import (
    Moved,
    Wire,
    at_stage,
    load_of,
    moved,
    replicated_load,
    sums_of,
    tables_of,
)
from dmt_plugin.planning.variants import Variant

MEMORY_SHARE = 0.9
"""Of an accelerator's memory, for a model; the rest is for libraries and allocators."""

PEER_FORMATS: tuple[Format, ...] = ("fp32", "bf16", "int8")
LANE_FORMATS: tuple[Format, ...] = ("fp32", "bf16")
BLOCKS = (1, 2, 4)
STAGES = (0, 1, 2)
REPLICATED = "replicated"
"""The name of the flat model under stock DeepSpeed."""


@dataclass(frozen=True)
class Choice:
    """What can be chosen for a variant.

    Attributes:
        variant: the model.
        wire: formats of rows.
        blocks: micro-blocks.
        stage: of ZeRO.
        replicated: whether every rank has all tables.
    """

    variant: Variant
    wire: Wire
    blocks: int
    stage: int
    replicated: bool = False

    @property
    def name(self) -> str:
        """For people."""
        return REPLICATED if self.replicated else self.variant.way.name

    @property
    def group(self) -> str:
        """``"exact"``, or what is changed about the model."""
        return self.variant.way.group

    @property
    def kind(self) -> tuple[bool, bool, bool]:
        """Its route, whether rows travel once, and whether every rank has all tables."""
        return self.variant.flat, self.variant.way.dedup, self.replicated

    @property
    def plain(self) -> bool:
        """Whether it is the flat route, with rows by sample."""
        return self.kind == (True, False, False)

    @property
    def wire_text(self) -> str:
        """The formats for people: between hosts, and inside where it is another."""
        if self.replicated:
            return "-"
        one = self.variant.flat or self.wire.peers == self.wire.lanes or self.variant.topology.hosts == 1
        return self.wire.peers if one else f"{self.wire.peers}, {self.wire.lanes} inside"

    def section(self, hosts: int, ranks_per_host: int) -> dict[str, Any]:
        """The keys of a DeepSpeed configuration that make it, beside those that the user gave.

        Args:
            hosts: machines of the cluster.
            ranks_per_host: ranks of each.
        """
        zero = {"zero_optimization": {"stage": self.stage}}
        if self.replicated:
            return {**zero, "dmt": {"enabled": False}}
        topology = self.variant.topology
        own: dict[str, dict[str, Any]] = {part: dict(keys) for part, keys in self.variant.way.section.items()}
        if (topology.hosts, topology.ranks_per_host) != (hosts, ranks_per_host):
            own["topology"] = {"hosts": topology.hosts, "ranks_per_host": topology.ranks_per_host}
        own.setdefault("comm", {})
        own["comm"] |= {"peer_dtype": self.wire.peers}
        own["comm"] |= {} if self.variant.flat else {"intra_dtype": self.wire.lanes}
        own["comm"] |= {"micro_blocks": self.blocks}
        return {**zero, "dmt": own}


@dataclass(frozen=True)
class Priced:
    """A choice with what it costs.

    Attributes:
        choice: what was chosen.
        load: what a rank does.
        sums: who sums gradients.
        step: the time, in the expected world.
        memory: bytes of the largest rank.
    """

    choice: Choice
    load: Load
    sums: GradientSums
    step: StepTime
    memory: int

    def in_world(self, world: World, bf16: bool) -> float:
        """Seconds of a step in another world."""
        return _step(world, self.choice, self.load, self.sums, bf16).seconds


@dataclass(frozen=True)
class Misfit:
    """A choice that needs more memory than there is."""

    choice: Choice
    memory: int


class Pricer:
    """Prices the choices for one cluster.

    Args:
        cluster: machines, accelerators, links.
        samples: per rank.
        ds_config: the DeepSpeed configuration around the ``"dmt"`` section.
    """

    def __init__(self, cluster: Cluster, samples: int, ds_config: Mapping[str, Any]) -> None:
        self.cluster, self.samples, self.ds_config = cluster, samples, ds_config
        self.bf16 = DeepSpeedSettings(ds_config).bf16
        self.limit = int(MEMORY_SHARE * cluster.memory.value)
        self.world = World(cluster)
        self._moved: dict[tuple[int, Wire], Moved] = {}
        self._memory: dict[tuple[object, ...], _RankBytes] = {}

    def price(self, choices: Sequence[Choice]) -> tuple[list[Priced], list[Misfit]]:
        """Choices with their times, and those that do not fit, in the order given."""
        fit: list[Priced] = []
        too_large: list[Misfit] = []
        for choice in choices:
            memory = self.memory(choice)
            if memory > self.limit:
                too_large.append(Misfit(choice, memory))
                continue
            load, sums = self.load(choice)
            step = _step(self.world, choice, load, sums, self.bf16)
            fit.append(Priced(choice, load, sums, step, memory))
        return fit, too_large

    def load(self, choice: Choice) -> tuple[Load, GradientSums]:
        """What a rank does, and who sums gradients."""
        variant = choice.variant
        sums = sums_of(self.ds_config, variant, choice.stage, stock=choice.replicated)
        if choice.replicated:
            settings = DeepSpeedSettings(at_stage(self.ds_config, choice.stage))
            return replicated_load(variant, self.samples, settings, sums, self.cluster.ranks_per_host), sums
        key = (id(variant), choice.wire)
        if key not in self._moved:
            self._moved[key] = moved(variant, self.samples, choice.wire, self.cluster.shared_nic)
        load = load_of(variant, self.samples, choice.wire, self._moved[key], sums, self.cluster.ranks_per_host)
        return replace(load, blocks=choice.blocks), sums

    def memory(self, choice: Choice) -> int:
        """Bytes of the rank that needs most, with what its layers keep for the backward pass.

        Stages change what parameters need, formats what buffers do: each is asked for by itself.
        """
        variant, stage = choice.variant, choice.stage
        if choice.replicated:
            found = self._replicated(choice)
        else:
            own, base, wire = (
                self._ranks(variant, *asked) for asked in ((stage, _FP32), (STAGES[0], _FP32), (STAGES[0], choice.wire))
            )
            found = max(a + c - b for a, b, c in zip(own.totals, base.totals, wire.totals, strict=True))
        return found + int(self.samples * variant.flops.saved)

    def tables(self, choice: Choice) -> int:
        """The most bytes of tables and their optimizer's state on a rank."""
        return max(self._ranks(choice.variant, choice.stage, _FP32).tables)

    def _replicated(self, choice: Choice) -> int:
        variant = choice.variant
        settings = DeepSpeedSettings(at_stage(self.ds_config, choice.stage))
        towers = sum(variant.sizes.towers.values(), Entries())
        entries = variant.sizes.dense + towers + tables_of(variant)
        return trained_bytes(entries, settings, variant.topology.world_size)

    def _ranks(self, variant: Variant, stage: int, wire: Wire) -> _RankBytes:
        key = (id(variant), stage, wire)
        if key not in self._memory:
            formats = {"peer_dtype": wire.peers, "intra_dtype": wire.lanes}
            config = variant.config.model_copy(update={"comm": variant.config.comm.model_copy(update=formats)})
            settings = DeepSpeedSettings(at_stage(self.ds_config, stage))
            need = memory_need(variant.placed.plan, variant.topology, config, settings, variant.sizes)
            self._memory[key] = _RankBytes(
                tuple(rank.total for rank in need.ranks),
                tuple(rank.tables + rank.table_states for rank in need.ranks),
            )
        return self._memory[key]


_FP32 = Wire("fp32", "fp32")


@dataclass(frozen=True)
class _RankBytes:
    """Of every rank all that it needs, and of it tables with their state."""

    totals: tuple[int, ...]
    tables: tuple[int, ...]


def choices_of(variant: Variant, *, replicated: bool = False) -> Iterator[Choice]:
    """All choices for one variant.

    Args:
        variant: the model.
        replicated: whether to add the flat model under stock DeepSpeed; for a variant of the flat route.
    """
    inside = LANE_FORMATS if not variant.flat else ("fp32",)
    peers = PEER_FORMATS if variant.topology.hosts > 1 or variant.flat else ("fp32",)
    wires = [Wire(peer, peer if variant.flat else lane) for peer, lane in product(peers, inside)]
    # Where nothing crosses hosts there is no second exchange to go on beside.
    blocks = BLOCKS if variant.topology.hosts > 1 else (1,)
    for wire, count, stage in product(wires, blocks, STAGES):
        yield Choice(variant, wire, count, stage)
    if replicated:
        for stage in STAGES:
            yield Choice(variant, Wire("fp32", "fp32"), 1, stage, replicated=True)


def _step(world: World, choice: Choice, load: Load, sums: GradientSums, bf16: bool) -> StepTime:
    topology = choice.variant.topology
    ring = sums.by != "hosts" and topology.world_size > world.cluster.ranks_per_host
    return world.step(topology, load, flat=choice.variant.flat, ring=ring, bf16=bf16)
