"""Refuses, before anything is allocated, a model that needs more memory than the ranks have.

1. Every rank reads what its machine, its control groups and its accelerator have left, and all ranks share what they
   have read; only when all have read it may any of them allocate.
2. Tables on an accelerator count against its own memory, those in managed or host memory against the machine's, which
   all ranks on it share, hosts that are emulated on one machine too. So does the snapshot of an asynchronous save.
3. All ranks compare the same numbers, so that all raise the same error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator

from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.memory import MemoryLimit, memory_limits
from dmt_plugin.model.memory import memory_need_of
from dmt_plugin.model.placed import PlacedGraph
from dmt_plugin.planner.memory import MemoryNeed
from dmt_plugin.planner.memory_check import Share, check_memory
from dmt_plugin.topology.agreement import gather
from dmt_plugin.topology.groups import RankGroups

_ON_DEVICE = ("auto", "device")


def check_need(
    graph: PlacedGraph, config: DMTConfig, settings: DeepSpeedSettings, samples: int, groups: RankGroups
) -> MemoryNeed:
    """Compares the need of all ranks with what they have; every rank calls it, before any table is allocated.

    Args:
        graph: what this rank will run.
        config: the ``"dmt"`` section.
        settings: the DeepSpeed configuration around it.
        samples: samples per rank of the example; the configuration's micro batch goes before it.
        groups: this rank's groups.

    Returns:
        The need of every rank.

    Raises:
        MemoryNeedError: on every rank, if the memory of any does not suffice.
        ExchangeError: a rank is gone, or ``comm.timeout_s`` is over.
    """
    asked: Any = settings.given.get("train_micro_batch_size_per_gpu")
    need = memory_need_of(graph, config, settings, asked if isinstance(asked, int) else samples)
    read = gather(
        groups,
        (memory_limits(), _device_limits(groups), _present(graph, need, groups)),
        "comparing the memory that it needs with what there is",
    )
    on_device = groups.device.type != "cpu"
    of_host = Share(config.lookup.location not in _ON_DEVICE, rest=False) if on_device else Share()
    check_memory(graph.plan, config, need, [x[0] for x in read], of_host, [x[2] for x in read])
    if on_device:
        check_memory(graph.plan, config, need, [x[1] for x in read], Share(not of_host.tables, snapshot=False))
    return need


def _device_limits(groups: RankGroups) -> list[MemoryLimit]:
    """What the accelerator of this rank has left; nothing where it computes on the CPU."""
    if groups.device.type == "cpu":
        return []
    name = f"the memory of {get_accelerator().device_name(groups.device.index)}"
    return [MemoryLimit(name, int(get_accelerator().available_memory(groups.device.index)), f"rank {groups.rank}")]


def _present(graph: PlacedGraph, need: MemoryNeed, groups: RankGroups) -> int:
    """Bytes of this rank's need that are in the machine's memory already: parameters of towers and the dense part."""
    if groups.device.type != "cpu":
        return 0
    tables = {table.parameter for table in graph.plan.tables}
    parameters: Mapping[str, torch.nn.Parameter] = dict(graph.logical.named_parameters())
    there = sum(p.nbytes for name, p in parameters.items() if name not in tables and not p.is_meta)
    own = need.ranks[groups.rank]
    return min(there, own.towers + own.dense)
