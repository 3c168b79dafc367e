"""Every way to look up a feature, placed on ranks: joint tables, sequences, quotient-remainder, projections.

All ranks are threads over a simulated wire; outputs and the gradients of dense layers, towers and tables are those
of the logical graph.
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

DLRM = {"module": "dlrm", "c": 1, "p": 1, "dim": 8}
SPTT = {"module": "none"}
UNEVEN = (7, 6, 9, 8)
"""Samples of each rank. Not as few as two: batch normalisation over two samples gives 1 and -1, whatever they are, and
the gradient before it is what rounding leaves of two equal numbers."""
NAMES = [
    "joint_deepfm",
    "joint_dlrm",
    "dlrm_qr_mult",
    "dlrm_qr_add",
    "dlrm_qr_concat",
    "dlrm_mixed_dims",
    "deepctr_deepfm_sequence",
    "fuxi_deepfm_sequence",
    "fuxi_deepfm_shared_sequence",
]


def case(name: str, topology: str, **dmt: Any) -> tuple[Any, Any, list[Any]]:
    torch.manual_seed(0)
    model, batch = CATALOGUE[name].build()
    config = settings(**dmt)
    logical = towered(model, call_of(batch(5, 0))[0], topology, config)
    count = Topology.parse(topology).world_size
    return logical, config, [call_of(batch(UNEVEN[rank], 10 + rank))[0] for rank in range(count)]


@pytest.mark.parametrize("towers", [SPTT, DLRM], ids=["sptt", "modules"])
@pytest.mark.parametrize(("topology", "route"), [("2x2", "hierarchical"), ("2x1", "flat")], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_placed_is_logical(name: str, topology: str, route: str, towers: dict[str, Any]) -> None:
    backend = "fbgemm" if route == "hierarchical" else "torch"
    logical, config, batches = case(name, topology, towers=towers, comm={"route": route}, backend=backend)
    assert [g.kind for g in logical.plan.groups].count("tower") == 1
    placed = run_placed(logical, config, SimulatedWorld(Topology.parse(topology)), batches)
    assert differences(logical, placed, batches) == []
