"""Habits of public model code, placed on ranks: parameters for one feature alone, joins of several kinds, read-backs.

All ranks are threads over a simulated wire; outputs and the gradients of dense layers, towers and tables are those of
the logical graph, whether rows travel once per sample or each once.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWorld
from tests.passes.world import differences, run_placed, settings, towered
from tests.zoo.catalogue import CATALOGUE
from tests.zoo.spec import call_of

WAYS: dict[str, dict[str, Any]] = {
    "sptt": {"module": "none"},
    "modules": {"module": "dlrm", "c": 1, "p": 1, "dim": 8},
    "by feature": {"module": "dlrm", "c": 1, "p": 0, "dim": 4},
}
OWN = ["k_bias_row", "k_bias_or_zeros", "k_gates", "k_gate_layers", "k_scale_and_shift", "k_zeros_like"]
JOINED = [
    "k_joint_and_id", "k_joint_and_sequence", "k_first", "k_rest_before", "k_query", "k_einops_layers",
    "k_einops_heads", "k_fignn_edges", "k_gate_interleaved", "k_heads_in_batch", "k_conv2d_fields", "k_filled_rows",
    "k_token_behind", "k_flat_and_back",
]  # fmt: skip
CORE = [
    ("k_bias_row", "2x2", "hierarchical", "off", "modules"), ("k_bias_or_zeros", "2x2", "hierarchical", "on", "sptt"),
    ("k_scale_and_shift", "2x1", "flat", "off", "by feature"),
    ("k_bias_or_zeros", "2x1", "hierarchical", "off", "modules"),
    ("k_gate_layers", "2x1", "hierarchical", "on", "modules"),
    ("k_joint_and_sequence", "2x2", "hierarchical", "on", "modules"),
    ("k_zeros_like", "2x2", "hierarchical", "off", "by feature"),
    ("k_first", "2x2", "hierarchical", "on", "by feature"),
    ("k_einops_heads", "2x2", "hierarchical", "off", "modules"), ("k_fignn_edges", "2x1", "flat", "on", "modules"),
    ("k_filled_rows", "2x2", "hierarchical", "on", "by feature"),
]  # fmt: skip
EVERY = [
    (name, topology, route, dedup, way)
    for name in (*OWN, *JOINED)
    for topology, route in (("2x2", "hierarchical"), ("2x1", "hierarchical"), ("2x1", "flat"))
    for dedup in ("off", "on")
    for way in WAYS
]


def check(name: str, topology: str, route: str, dedup: str, way: str) -> list[str]:
    torch.manual_seed(0)
    model, batch = CATALOGUE[name].build()
    config = settings(towers=WAYS[way], comm={"route": route, "dedup": dedup})
    logical = towered(model, call_of(batch(5, 0))[0], topology, config)
    assert [g.form for g in logical.plan.groups if g.kind == "tower"] == ["native"]
    count = Topology.parse(topology).world_size
    batches = [call_of(batch((7, 6, 9, 8)[rank], 10 + rank))[0] for rank in range(count)]
    placed = run_placed(logical, config, SimulatedWorld(Topology.parse(topology)), batches)
    return differences(logical, placed, batches)


@pytest.mark.parametrize(("name", "topology", "route", "dedup", "way"), CORE)
def test_placed_is_logical(name: str, topology: str, route: str, dedup: str, way: str) -> None:
    assert check(name, topology, route, dedup, way) == []


@pytest.mark.campaign
@pytest.mark.parametrize(("name", "topology", "route", "dedup", "way"), EVERY)
def test_placed_is_logical_everywhere(name: str, topology: str, route: str, dedup: str, way: str) -> None:
    assert check(name, topology, route, dedup, way) == []
