"""What comes out of the capture is a module like any other: it compiles, trains, and is one node per layer."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin import ExampleBatch
from dmt_plugin.capture import capture
from tests.capture.test_capture import CALLS, captured, rows, same
from tests.zoo.catalogue import CATALOGUE
from tests.zoo.checks import build, example, run


@pytest.mark.parametrize("name", sorted(CALLS))
def test_it_compiles_as_one_graph(name: str) -> None:
    kind, batch = CALLS[name]
    torch.manual_seed(0)
    graph = captured(kind(), *batch(5)).eval()
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(graph), backend="aot_eager", fullgraph=True, dynamic=True)
    for n in (6, 9):
        assert same(compiled(*batch(n)), graph(*batch(n)))


@pytest.mark.parametrize("name", ["torchrec_dlrm", "fuxi_dlrm", "joint_deepfm"])
def test_a_recommender_compiles_as_one_graph(name: str) -> None:
    model, batch = build(CATALOGUE[name])
    graph = capture(model, example(batch)).as_module().eval()
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(graph), backend="aot_eager", fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(run(compiled, batch, 5, 1), run(graph, batch, 5, 1), strict=True))


class Layers(nn.Module):
    """Layers of torch that call layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.1)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        wide = x.unsqueeze(1)
        mixed, _ = self.attention(wide, wide, wide)
        return self.norm(self.encoder(mixed).squeeze(1))


def test_a_layer_is_one_node_whatever_it_calls_and_its_values_are_not_recorded() -> None:
    graph = capture(Layers(), ExampleBatch((rows(5, 4),))).graph_module.graph
    assert [n.target for n in graph.nodes if n.op == "call_module"] == ["attention", "encoder", "norm"]
    assert not [n for n in graph.nodes if n.op == "get_attr"]


def test_example_values_count_for_no_batch() -> None:
    model = Layers()
    captured(model, rows(5, 4))
    assert model.norm.num_batches_tracked == 0 and torch.equal(model.norm.running_mean, torch.zeros(4))


def test_it_trains_as_the_model_does() -> None:
    torch.manual_seed(0)
    model = Layers()
    graph = captured(copy.deepcopy(model), rows(5, 4))
    results: list[Any] = []
    for one in (model, graph):
        optimizer = torch.optim.Adam(one.parameters(), lr=0.1)
        for step in range(4):
            torch.manual_seed(step)
            optimizer.zero_grad()
            one(rows(6 + step, 4)).square().sum().backward()
            optimizer.step()
        results.append(one.state_dict())
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_a_layer_of_two_names_keeps_both() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.item = nn.Embedding(9, 4)
            self.layers = nn.ModuleDict({"item": self.item, "history": self.item})

        def forward(self, ids: Tensor) -> Tensor:
            return self.layers["history"](ids) + self.item(ids)

    model = Shared()
    graph = capture(model, ExampleBatch((torch.arange(5),))).as_module()
    assert graph.state_dict().keys() == model.state_dict().keys()
    assert len(list(graph.parameters())) == 1
