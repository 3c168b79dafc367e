"""The small model of the cases, its batches, and what is computed with a plan or a section on it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.faults.judge import expect
from dmt_plugin import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.doctor import tiny
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWorld
from tests.passes.world import differences, run_placed

TABLES, SAMPLES = 4, 6
DENSE, IDS, _ = tiny.batch(0, SAMPLES, TABLES)
SGD = {"optimizer": "sgd", "lr": 1.0, "backend": "torch"}
"""The rule by which gradients of tables are seen on simulated ranks."""


@functools.cache
def flat_outputs() -> Tensor:
    """What the flat model gives."""
    with torch.no_grad():
        return tiny.build(TABLES)(DENSE, IDS)


def outputs(model: TowerModel) -> Tensor:
    """What a tower model gives for the same batch."""
    with torch.no_grad():
        return model(DENSE, IDS)


def rewritten(dmt: Mapping[str, Any], topology: str | None, partition: Any = None) -> TowerModel:
    """The model with a section's towers."""
    return transform(tiny.build(TABLES), (DENSE, IDS), {"dmt": dict(dmt)}, topology, partition=partition)


@functools.cache
def known(section: str, topology: str) -> tuple[str, Tensor]:
    """The plan of a section, as JSON, and the outputs with it."""
    model = rewritten(json.loads(section), topology)
    return json.dumps(model.plan.to_dict()), outputs(model)


def check_on_ranks(model: TowerModel, config: DMTConfig) -> None:
    """A step on simulated ranks is the step of the logical model: outputs and gradients.

    Args:
        model: the logical model; its tables must be trained by :data:`SGD`.
        config: the section that it was made with.

    Raises:
        Wrong: something differs.
    """
    topology = Topology.parse(model.plan.topology)
    batches = [tiny.batch(0, SAMPLES * topology.world_size, TABLES)[:2]]
    parts = [
        tuple(part[rank * SAMPLES : (rank + 1) * SAMPLES] for part in batches[0]) for rank in range(topology.world_size)
    ]
    placed = run_placed(model, config, SimulatedWorld(topology, 30), parts)
    wrong = differences(model, placed, parts)
    expect(wrong == [], f"on {topology} simulated ranks another result than in one process", wrong)
