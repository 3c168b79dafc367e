"""Towers before the exchange inside the host: the same numbers, and fewer bytes between lanes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dmt_plugin.comm.output_dist.output_dist import OutputDist
from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.fxtools.names import EXCHANGE_META, tower_number
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.model.placed import PlacedGraph, place_graph
from dmt_plugin.topology.shape import Topology
from tests._util.pairs import pairwise
from tests._util.simulated import SimulatedWorld
from tests.passes.flat import Flat, cat, ids
from tests.passes.world import differences, run_placed, settings, without_dropout

WIDTH = 4


def _case(features: int, topology: str, **dmt: Any) -> tuple[TowerModel, DMTConfig]:
    torch.manual_seed(0)
    config = settings(**dmt)
    flat = without_dropout(Flat(cat, features=features, width=WIDTH))
    return transform(flat, (ids(features, 5),), config, Topology.parse(topology)), config


def _graph(rank: int, features: int, topology: str, **dmt: Any) -> PlacedGraph:
    logical, config = _case(features, topology, **dmt)
    return place_graph(logical, config, Topology.parse(topology), rank)


def _tower_is_first(graph: PlacedGraph) -> bool:
    nodes = list(graph.graph_module.graph.nodes)
    tower = next(i for i, n in enumerate(nodes) if n.op == "call_module" and tower_number(str(n.target)) is not None)
    return tower < next(i for i, n in enumerate(nodes) if n.meta.get(EXCHANGE_META) == "lanes")


CASES = pairwise(
    {"shape": [(6, "2x2"), (9, "2x3"), (5, "2x4")], "blocks": [1, 2, 3], "c": [1, 2], "backend": ["torch", "fbgemm"]}
)


@pytest.mark.parametrize(("shape", "blocks", "c", "backend"), [tuple(case.values()) for case in CASES], ids=str)
def test_placed_is_logical(shape: tuple[int, str], blocks: int, c: int, backend: str) -> None:
    """Also where lanes hold no table, and for batches smaller than the number of blocks."""
    features, topology = shape
    towers = {"module": "dlrm", "c": c, "p": 0, "dim": 2}
    logical, config = _case(features, topology, towers=towers, comm={"micro_blocks": blocks}, lookup={
        "backend": backend, "optimizer": "sgd", "lr": 1.0
    })  # fmt: skip
    count = Topology.parse(topology).world_size
    batches = [(ids(features, (3, 1, 4, 2, 6, 2, 5, 1)[rank], seed=rank),) for rank in range(count)]
    placed = run_placed(logical, config, SimulatedWorld(Topology.parse(topology)), batches)
    assert differences(logical, placed, batches) == []


def test_which_towers_run_first() -> None:
    dlrm = {"module": "dlrm", "c": 1, "p": 0, "dim": 2}
    for blocks in (1, 2):
        graph = _graph(0, 8, "2x2", towers=dlrm, comm={"micro_blocks": blocks})
        assert _tower_is_first(graph)
        lanes = graph.placement.exchanges["lanes"]
        assert isinstance(lanes, OutputDist)
        # Two features a lane, each of width 4 in the table and 2 behind the tower.
        assert (lanes.send_width, lanes.recv_widths) == (4, (4, 4))
    for towers in ({**dlrm, "p": 1}, {**dlrm, "count": 4}, {"module": "dcn"}):
        graph = _graph(0, 8, "2x2", towers=towers)
        assert not _tower_is_first(graph)
        lanes = graph.placement.exchanges["lanes"]
        assert isinstance(lanes, OutputDist) and lanes.send_width == 2 * WIDTH


def test_all_lanes_of_a_host_agree() -> None:
    """Five features on two hosts of four lanes: a lane without tables makes the same exchange as the others."""
    towers = {"module": "dlrm", "c": 1, "p": 0, "dim": 2}
    widths = set()
    for rank in range(4):
        graph = _graph(rank, 5, "2x4", towers=towers)
        lanes = graph.placement.exchanges["lanes"]
        assert isinstance(lanes, OutputDist)
        assert lanes.send_width == lanes.recv_widths[rank]
        widths.add(lanes.recv_widths)
    assert widths == {(2, 2, 2, 0)}
