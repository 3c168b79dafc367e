"""The first line of a rank's records, and of each start of the run: which run this is, and of what.

Beside who wrote it, it says what decides how long a step takes: the model's sizes, the configuration, and what the
configuration's ``"auto"`` came to. So records can be compared with what the planner predicts of the same run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Set
from typing import Any

import torch

from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.core.run_files import FORMAT
from dmt_plugin.core.versions import installed_versions
from dmt_plugin.integrations.deepspeed.engine.state import DMTState
from dmt_plugin.model.placed import PlacedModel

_KEPT = (
    "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "zero_optimization", "bf16",
    "bfloat16", "communication_data_type",
)  # fmt: skip
"""Keys of the DeepSpeed configuration that a step's time depends on; others may hold what is nobody's business."""


def header_of(engine: Any, settings: DeepSpeedSettings, every: int) -> dict[str, Any]:
    """The line, as data.

    Args:
        engine: its ``dmt`` is there.
        settings: the DeepSpeed configuration.
        every: optimizer steps between two records.
    """
    dmt: DMTState = engine.dmt
    groups = [group for group in dmt.placed.placement.groups if group.once]
    once = {table.name.partition("[columns ")[0] for group in groups for table in group.tables}
    return {
        "run": FORMAT,
        "at": time.time(),
        "rank": dmt.groups.rank,
        "host": dmt.groups.host,
        "lane": dmt.groups.lane,
        "topology": str(dmt.topology),
        "hosts": dmt.topology.hosts,
        "ranks_per_host": dmt.topology.ranks_per_host,
        "source": dmt.source,
        "device": str(dmt.groups.device),
        "device_name": _name_of(dmt.groups.device),
        "plan": dmt.plan.fingerprint,
        "route": dmt.placed.placement.route,
        "towers": [list(names) for names in dmt.plan.towers],
        "tower_hosts": list(dmt.plan.tower_hosts),
        "every": every,
        "batch_per_rank": engine.train_micro_batch_size_per_gpu(),
        "accumulation": engine.gradient_accumulation_steps(),
        "zero_stage": settings.zero_stage,
        "dense_dtype": "bf16" if settings.bf16 else "fp32",
        "wire": {group: list(dmt.config.comm.formats_of(group)) for group in ("lanes", "peers", "world")},
        "micro_blocks": dmt.config.comm.blocks_on(dmt.topology.hosts),
        "once": sorted(once),
        "dedup": _dedup(dmt, once),
        "parameters": _parameters(dmt.placed),
        "tables": {table.name: [table.rows, table.dim] for table in dmt.plan.tables},
        "configuration": _configuration(settings.given, dmt.config.model_dump(mode="json", exclude_unset=True)),
        "effective": dmt.config.model_dump(mode="json"),
        "versions": {name: version for name, version in installed_versions().items() if version},
    }


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _dedup(dmt: DMTState, once: Set[str]) -> dict[str, Any]:
    """What ``comm.dedup`` says, and the features whose rows travel once by it."""
    features = sorted(feature.name for feature in dmt.plan.features if not once.isdisjoint(feature.tables))
    return {"mode": dmt.config.comm.dedup, "features": features}


def _parameters(placed: PlacedModel) -> dict[str, int]:
    """Numbers in the parameters of this rank: of the tower modules that its host has alone, and of all others."""
    towers = {id(p) for path in placed.tower_paths for p in placed.get_submodule(path).parameters()}
    found = {"dense": 0, "towers": 0}
    for parameter in placed.parameters():
        found["towers" if id(parameter) in towers else "dense"] += parameter.numel()
    return found


def _configuration(given: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {key: given[key] for key in _KEPT if key in given}
    if "type" in (optimizer := given.get("optimizer") or {}):
        kept["optimizer"] = {"type": optimizer["type"]}
    return {**kept, "dmt": section}
