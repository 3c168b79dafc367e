"""Placed models with wire formats stay as close to the logical graph as the formats round.

Stated tolerances, relative to the largest entry, over two exchanges in turn and the interaction behind them, for one
step from the same weights: outputs ``OUTPUTS``, gradients of the tables by norm ``GRADIENTS``. The latter are loose
on purpose: a rounded input moves a ReLU's gate, and with it a gradient as a whole.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from dmt_plugin.compiler import transform
from dmt_plugin.config.section import read_dmt_config
from dmt_plugin.model.placed import place
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWire, SimulatedWorld
from tests.zoo.models import ZOO

BATCH = 8
OUTPUTS = {"fp32": 2e-6, "bf16": 0.01, "fp16": 0.0015, "int8": 0.03}
GRADIENTS = {"fp32": 2e-6, "bf16": 0.1, "fp16": 0.02, "int8": 0.1}
LR = 100.0  # gradients are read off the tables: a small step would be lost in the rounding of the weights
TOWERS: dict[str, dict[str, Any]] = {
    "sptt": {"module": "none"},
    "modules": {"module": "dlrm", "c": 1, "p": 0, "dim": 4},
}


def config_for(route: str, name: str, towers: dict[str, Any]) -> Any:
    formats = {"peer_dtype": name, "intra_dtype": name}
    lookup = {"backend": "torch", "optimizer": "sgd", "lr": LR}
    config = read_dmt_config({"dmt": {"comm": {"route": route, **formats}, "lookup": lookup, "towers": towers}})
    assert config is not None
    return config


@pytest.mark.parametrize("route", ["hierarchical", "flat"])
@pytest.mark.parametrize("towers", TOWERS)
@pytest.mark.parametrize("name", list(OUTPUTS))
def test_placed_is_near_the_logical_graph(name: str, towers: str, route: str) -> None:
    torch.manual_seed(0)
    flat, batch = ZOO["dlrm"]()
    where = Topology(2, 2)
    config = config_for(route, name, TOWERS[towers])
    logical = transform(flat, batch(5, 0), config, where)
    reference = copy.deepcopy(logical)
    expected = [reference(*batch(BATCH, rank)) for rank in range(4)]
    (sum(out.square().mean() for out in expected) / 4).backward()
    wanted = {table: reference.get_parameter(f"{table}.weight").grad for table in reference.table_names}

    models = [place(logical, config, where, rank) for rank in range(where.world_size)]

    def program(wire: SimulatedWire) -> Any:
        placed = models[wire.rank]
        placed.bind(wire)
        before = {table: placed.lookup.table_weight(table).clone() for table in placed.lookup.tables}
        out = placed(*batch(BATCH, wire.rank))
        (out.square().mean() / 4).backward()
        placed.lookup.step()
        return out.detach(), {t: (w - placed.lookup.table_weight(t)) / LR for t, w in before.items()}

    results = SimulatedWorld(where).run(program)
    scale = max(float(out.detach().abs().max()) for out in expected)
    errors = [float((found - out.detach()).abs().max()) for (found, _), out in zip(results, expected, strict=True)]
    assert max(errors) <= OUTPUTS[name] * scale
    assert name == "fp32" or max(errors) > 0, "the format was not used"
    found = {table: gradient for _, own in results for table, gradient in own.items()}
    assert found.keys() == wanted.keys()
    for table, gradient in wanted.items():
        assert float((found[table] - gradient).norm() / gradient.norm()) <= GRADIENTS[name], table
