"""Towers that take the blocks of the lanes compute what they compute from the stacked features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.model.placed import place_graph
from dmt_plugin.nn.graph_ops import pack_streams
from dmt_plugin.nn.towers import DLRMTower
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWorld
from tests.passes.flat import Flat, cat, ids
from tests.passes.world import differences, run_placed, settings, towered

WIDTH = 4
ORDERS = {"as they are": [0, 1, 2, 3, 4], "mixed": [3, 0, 4, 1, 2]}


def _grads(module: nn.Module, output: Tensor, x: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [*torch.autograd.grad((output.sigmoid() * weights).sum(), [x, *module.parameters()])]


@pytest.mark.parametrize("counts", [(2, 3), (5, 0), (1, 3, 1)], ids=str)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("c", "p"), [(1, 0), (2, 0), (0, 3), (2, 1)])
def test_blocks_are_the_stack(c: int, p: int, order: str, counts: tuple[int, ...]) -> None:
    """``order``: where each feature of the tower is, counted over the blocks; also for a batch of no samples."""
    torch.manual_seed(0)
    tower, places = DLRMTower(5, WIDTH, 3, c, p, "torch").double(), ORDERS[order]
    for batch in (6, 0):
        x = torch.randn(batch, 5, WIDTH, dtype=torch.float64, requires_grad=True)
        stacked = tower(x)
        feature_at = [places.index(place) for place in range(5)]
        blocks = [block.flatten(1) for block in x[:, feature_at].split(counts, dim=1)]
        fed = tower(blocks, places)
        assert stacked.shape == fed.shape == (batch, tower.out_features)
        torch.testing.assert_close(fed, stacked)
        for a, b in zip(_grads(tower, tower(blocks, places), x), _grads(tower, tower(x), x), strict=True):
            torch.testing.assert_close(a, b)


def _stacks(features: int, towers: dict[str, Any], topology: str) -> list[int]:
    """For each rank the nodes that stack features, in a model of tables alike."""
    torch.manual_seed(0)
    config = settings(towers=towers, comm={"micro_blocks": 1})
    logical = towered(Flat(cat, features=features, width=WIDTH), (ids(features, 5),), topology, config)
    parsed = Topology.parse(topology)
    graphs = [place_graph(logical, config, parsed, rank).graph_module.graph for rank in range(parsed.world_size)]
    return [sum(n.target is pack_streams for n in graph.nodes) for graph in graphs]


def test_which_towers_take_blocks() -> None:
    dlrm = {"module": "dlrm", "c": 1, "p": 1, "dim": 4}
    assert _stacks(8, dlrm, "2x2") == [0, 0, 0, 0]
    assert _stacks(8, {**dlrm, "count": 4}, "2x2") == [2, 2, 2, 2]  # two towers share a lane's block
    assert _stacks(8, {"module": "dcn"}, "2x2") == [1, 1, 1, 1]  # its layers need all features at once


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("features", [6, 9])
def test_placed_is_logical(features: int, blocks: int) -> None:
    """Nine features on two hosts of three lanes: lanes hold two tables or one, in an order of their own."""
    torch.manual_seed(0)
    config = settings(towers={"module": "dlrm", "c": 1, "p": 1, "dim": 4}, comm={"micro_blocks": blocks})
    logical = towered(Flat(cat, features=features, width=WIDTH), (ids(features, 5),), "2x3", config)
    batches = [(ids(features, 3, seed=rank),) for rank in range(6)]
    placed = run_placed(logical, config, SimulatedWorld(Topology(2, 3)), batches)
    assert differences(logical, placed, batches) == []
