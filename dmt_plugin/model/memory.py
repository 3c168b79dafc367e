"""Measures a placed graph for the memory that ranks need (:mod:`dmt_plugin.planner.memory`); nothing is allocated."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from importlib.util import find_spec

from torch import nn

from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.fxtools.names import tower_part, tower_path
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.model.placed import PlacedGraph
from dmt_plugin.planner.buffers import Entries, ModelSizes
from dmt_plugin.planner.memory import MemoryNeed, memory_need


def memory_need_of(graph: PlacedGraph, config: DMTConfig, settings: DeepSpeedSettings, batch: int) -> MemoryNeed:
    """The memory that every rank needs, from the graph of any of them.

    Args:
        graph: what one rank will run.
        config: the ``"dmt"`` section.
        settings: the DeepSpeed configuration around it.
        batch: samples per rank.
    """
    return memory_need(graph.plan, graph.topology, config, settings, sizes_of(graph, batch))


def sizes_of(graph: PlacedGraph, batch: int) -> ModelSizes:
    """What the need depends on besides plan and configuration.

    Args:
        graph: what one rank will run.
        batch: samples per rank.
    """
    placement = graph.placement
    towers, dense = _entries(graph.logical, placement.at_samples)
    # Rows that travel once need no more than a row per sample would, and how many they are is known by the batch only.
    once = placement.distinct_widths or (0,) * graph.topology.world_size
    of_hosts = [sum(column.width for column in own) for own in placement.host_columns] or [0] * graph.topology.hosts
    return ModelSizes(
        batch=batch,
        slots=placement.slots,
        looked_up=placement.looked_up,
        rank_widths=[width + own for width, own in zip(placement.rank_widths, once, strict=True)],
        host_widths=[
            width + sum(once[graph.topology.rank_of(host, lane)] for lane in range(graph.topology.ranks_per_host))
            for host, width in enumerate(of_hosts)
        ],
        towers=towers,
        dense=dense,
        fbgemm=find_spec("fbgemm_gpu") is not None,
        on_torch=graph.logical.stored_facts.pooled_by_maximum,
        once=placement.distinct_slots,
        asked=placement.distinct_ids,
        read_twice=any(choice.on and choice.mixed for choice in placement.choices),
    )


def _entries(logical: TowerModel, everywhere: Collection[str]) -> tuple[dict[int, Entries], Entries]:
    """Entries of the tower modules of each host, and of everything else but tables.

    Args:
        logical: the tower model.
        everywhere: paths of the tower modules that all ranks hold.
    """
    tables = {table.parameter for table in logical.plan.tables}
    towers: dict[int, Entries] = {}
    rest = []
    for name, parameter in logical.named_parameters():
        part = tower_part(name)
        if part is not None and part.kind == "tower" and tower_path(part.group, part.number) not in everywhere:
            host = logical.plan.tower_hosts[part.number]
            towers[host] = towers.get(host, Entries()) + _counted([parameter])
        elif name not in tables:
            rest.append(parameter)
    return towers, _counted(rest)


def _counted(parameters: Iterable[nn.Parameter]) -> Entries:
    sizes = [(p.numel(), p.requires_grad) for p in parameters]
    return Entries(sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained))
