"""Bytes of summing gradients over ranks in one optimizer step, on one rank, by formula.

1. The configuration says who sums (:func:`gradient_sums`). At ZeRO stage 0 with ``dmt.comm.overlap`` the engine does,
   during the backward pass and by way of the hosts (:mod:`dmt_plugin.comm.sums`): dense gradients cross
   each host's link as ``2*(H-1)/H`` of the buffer, those of towers stay inside the host. These bytes are counted as
   they are sent, and a test holds count and formula together.
2. Else DeepSpeed does, with the library's all-reduce, which counts nothing. It is counted as a ring in the order of the
   ranks: every rank sends ``2*(G-1)/G`` of the buffer, and one of ``G`` links leaves each host. Which lane that is
   depends on the library, so every rank gets its share of the host's.
3. ZeRO stages 1 and 2 also hand out the updated parameters: half as much again.
4. Where a host consists of several machines, a machine takes the place of the host, and gradients of towers cross
   between the machines of theirs.
5. In bf16 gradients and parameters travel as bf16, unless ``communication_data_type`` says otherwise for gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dmt_plugin.comm.sums import bytes_sent
from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.planner.cost import ExchangeCost
from dmt_plugin.topology.group_names import groups_of_rows_once
from dmt_plugin.topology.shape import Topology

_FP32 = 4
_SIZES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class GradientSums:
    """Who sums gradients, and how.

    Attributes:
        by: ``"hosts"``: the engine, by way of the hosts; ``"all-reduce"``: DeepSpeed at stage 0; ``"partitions"``:
            DeepSpeed at stages 1 and 2, which hand out parameters after the step.
        wire: format of gradients between ranks.
        parameters: format of parameters between ranks.
        note: for which case this holds, in words.
    """

    by: Literal["hosts", "all-reduce", "partitions"]
    wire: str
    note: str
    parameters: str = "fp32"


def gradient_sums(ds_config: Mapping[str, Any], config: DMTConfig) -> GradientSums:
    """What a configuration leads to.

    Args:
        ds_config: the DeepSpeed configuration; empty for its defaults.
        config: the ``"dmt"`` section.
    """
    settings = DeepSpeedSettings(ds_config)
    kind = "bf16" if settings.bf16 else "fp32"
    stage, wire = settings.zero_stage, settings.wire
    reasons = [
        *([f"ZeRO stage {stage}"] if stage else []),
        *([] if config.comm.overlap else ["dmt.comm.overlap is off"]),
        *(["prescale_gradients is on"] if settings.prescales else []),
        *([f"gradient_predivide_factor is {f}"] if (f := settings.predivide_factor) != 1 else []),
        *(["the model is in bf16"] if kind == "bf16" else []),
        *([f"communication_data_type is {wire}"] if wire != kind else []),
    ]
    often = _how_often(settings.micro_batches, stage)
    if not reasons:
        note = (
            "ZeRO stage 0 with dmt.comm.overlap: sums of gradients run during the backward pass, those of the dense "
            f"part by way of the hosts (each host's link carries 2(H-1)/H of them), towers' inside the host; {often}."
        )
        return GradientSums("hosts", wire, note)
    note = (
        f"DeepSpeed sums gradients ({', '.join(reasons)}), {often}: told as a ring over all ranks in order, which "
        "carries 2(G-1)/G of the buffer over every host's link; each rank's share of its host's."
    )
    return GradientSums("partitions" if stage else "all-reduce", wire, note, kind)


def gradient_costs(sums: GradientSums, dense: int, towers: int, topology: Topology) -> list[ExchangeCost]:
    """The rows of one rank.

    Args:
        sums: who sums.
        dense: trainable entries that all ranks hold.
        towers: trainable entries that the lanes of this rank's host hold alone.
        topology: hosts and lanes.
    """
    machines, beside = topology.by_machine, topology.machines_per_host
    hosts, lanes = machines.hosts, machines.ranks_per_host
    found = []
    if sums.by == "hosts":
        away, near = bytes_sent(dense, _FP32, hosts, lanes)
        far, inside = groups_of_rows_once(topology)
        between = [group for group, size in ((inside, lanes), (far, hosts)) if size > 1]
        text = f"{dense:,} gradients" + (", by way of the hosts" if hosts > 1 else "")
        found = [ExchangeCost("dense", ", ".join(between) or inside, "backward", text, away, near)]
        if towers:
            away, near = bytes_sent(towers, _FP32, beside, lanes)
            found.append(ExchangeCost("towers", "lanes", "backward", f"{towers:,} gradients", away, near))
        return found
    size = _SIZES.get(sums.wire, _FP32)
    form = "" if sums.wire == "fp32" else f" {sums.wire}"
    world = topology.world_size
    own = topology.ranks_per_host
    for name, group, members, entries in (("dense", "world", world, dense), ("towers", "lanes", own, towers)):
        if entries or name == "dense":
            crossing = hosts > 1 if group == "world" else beside > 1
            away, near = _ring(2 * size * entries, members, lanes, crossing)
            text = f"{entries:,} gradients{form}, all-reduce (ring)"
            found.append(ExchangeCost(name, group, "backward", text, away, near))
            if sums.by == "partitions":
                away, near = _ring(_SIZES[sums.parameters] * entries, members, lanes, crossing)
                text = f"{entries:,} parameters{'' if sums.parameters == 'fp32' else ' bf16'}, all-gather (ring)"
                found.append(ExchangeCost(name, group, "step", text, away, near))
    return found


def _ring(size: int, members: int, lanes: int, crossing: bool) -> tuple[int, int]:
    """Bytes to other hosts and to other lanes: this rank's share of what its host's ranks pass on."""
    sent = size * (members - 1) // members
    away = sent // lanes if crossing else 0
    return away, sent - away


def _how_often(micro_batches: int, stage: int) -> str:
    if micro_batches == 1:
        return "once per step"
    return "in every micro-batch" if stage == 2 else f"once per step, in one of its {micro_batches} micro-batches"
