"""Placed graphs of towers that keep the shapes behind them: towers at their host, decoders where the samples are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from dmt_plugin.model.placed import place
from dmt_plugin.report.explain.explanation import costs_of
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWorld
from tests.passes.flat import Flat, ids
from tests.passes.test_gather_streams import pairs
from tests.passes.test_insert_tower_modules import InTurn
from tests.passes.world import differences, run_placed, settings, towered

UNEVEN = (3, 1, 2, 4, 2, 5)
FORMS = ("decoder", "preserve")


def case(form: str, topology: str, model: Any = None, **dmt: Any) -> tuple[Any, Any, list[Any]]:
    torch.manual_seed(0)
    config = settings(transform={"on_unsupported": form}, **dmt)
    logical = towered(model or Flat(pairs, features=6), (ids(6, 5),), topology, config)
    count = Topology.parse(topology).world_size
    return logical, config, [(ids(6, UNEVEN[rank], 10 + rank),) for rank in range(count)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("topology", "dmt"),
    [
        ("2x2", {}),
        ("2x2", {"towers": {"c": 1, "p": 1, "dim": 3, "overrides": {"1": {"module": "dcn"}}}}),
        ("2x1", {"towers": {"count": 2}, "comm": {"route": "flat"}}),
        ("3x2", {}),
        ("1x2", {"towers": {"count": 2}}),
    ],
    ids=str,
)
def test_all_ranks_together_are_the_logical_model(form: str, topology: str, dmt: dict[str, Any]) -> None:
    if form == "preserve" and "towers" in dmt:
        dmt = {**dmt, "towers": {k: v for k, v in dmt["towers"].items() if k == "count"}}
    logical, config, batches = case(form, topology, **dmt)
    assert [g.form for g in logical.plan.groups] == [form]
    placed = run_placed(logical, config, SimulatedWorld(Topology.parse(topology)), batches)
    assert differences(logical, placed, batches) == []


def test_a_model_that_uses_its_vectors_in_turn() -> None:
    class First(InTurn):
        def forward(self, index: Any) -> Any:
            return super().forward(index)[0]

    logical, config, batches = case("decoder", "2x2", First())
    placed = run_placed(logical, config, SimulatedWorld(Topology.parse("2x2")), batches)
    assert differences(logical, placed, batches) == []


def test_towers_stay_at_their_host_and_decoders_are_everywhere() -> None:
    logical, config, _ = case("decoder", "2x2")
    topology = Topology.parse("2x2")
    for rank in range(4):
        model = place(copy.deepcopy(logical), config, topology, rank)
        host = topology.host_of(rank)
        assert model.tower_paths == (f"dmt_towers.group0.tower{host}",)
        own = {n.rpartition(".")[0] for n, _ in model.named_parameters() if n.startswith("dmt_towers")}
        decoders = {f"dmt_towers.group0.decoder{t}" for t in (0, 1)}
        assert own == {f"dmt_towers.group0.tower{host}.per_feature", *decoders}
        order = [str(n.target) for n in model.graph.nodes if n.op == "call_module"]
        arrived = order.index("dmt_exchange.peers.wait")
        assert order.index(f"dmt_towers.group0.tower{host}") < order.index("dmt_exchange.peers.start") < arrived
        assert all(order.index(path) > arrived for path in decoders)


def test_compressed_outputs_cross_hosts() -> None:
    sent = {}
    for form in FORMS:
        logical, config, _ = case(form, "2x2")
        placed = place(logical, config, Topology.parse("2x2"), 0)
        sent[form] = sum(c.other_hosts for c in costs_of(placed, 8) if c.name == "peers")
        widths = [c.width for own in placed.placement.host_columns for c in own]
        assert widths == ([3 * 2] * 2 if form == "decoder" else [3 * 4] * 2)
    assert 2 * sent["decoder"] == sent["preserve"] == 2 * 4 * 8 * 12  # forward and backward, 4 bytes, 8 samples


def test_rows_that_nothing_uses() -> None:
    flat = Flat(lambda s, m: pairs(s[:4], m), features=6)
    logical, config, batches = case("decoder", "2x2", flat)
    placed = run_placed(logical, config, SimulatedWorld(Topology.parse("2x2")), batches)
    assert differences(logical, placed, batches) == []
