"""A captured model computes what the model computes, at any batch size, and leaves the model alone."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from dmt_plugin.capture import ExampleBatch, GraphModel, capture
from tests.capture import models as m


def rows(n: int, width: int = 3) -> torch.Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(n))


def captured(model: nn.Module, *args: Any, **kwargs: Any) -> GraphModel:
    return capture(model, ExampleBatch(args, kwargs)).as_module()


def nested(n: int) -> tuple[Any, ...]:
    inner = {"a": rows(n, 2), "b": rows(n, 2) + 1}
    return [rows(n, 2), rows(n, 2) * 3], {"inner": inner}, (rows(n, 2), rows(n, 2) * 2)


CALLS = {
    "buffers": (m.Buffers, lambda n: (rows(n),)),
    "stores attribute": (m.StoresAttribute, lambda n: (rows(n),)),
    "functional dropout": (m.FunctionalDropout, lambda n: (rows(n),)),
    "makes modules": (m.MakesModules, lambda n: (rows(n),)),
    "factories": (m.Factories, lambda n: (rows(n),)),
    "constants": (m.Constants, lambda n: (rows(n),)),
    "nested inputs": (m.PythonOverInputs, nested),
    "unpacks": (m.UnpacksTensor, lambda n: (rows(n),)),
    "in place": (m.InPlace, lambda n: (rows(n),)),
    "normed": (m.Normed, lambda n: (rows(n),)),
    "dataclass": (m.TakesDataclass, lambda n: (m.Batch(rows(n), torch.arange(n) % 10),)),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return torch.equal(a, b)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_the_graph_computes_what_the_model_computes(name: str) -> None:
    kind, batch = CALLS[name]
    torch.manual_seed(0)
    model = kind()
    graph = captured(model, *batch(5))
    copies = [copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))]
    for other in (graph, *copies):
        assert other.state_dict().keys() == model.state_dict().keys()
        for training in (False, True):
            for n in (2, 6, 12):
                twin = copy.deepcopy(model).train(training)
                torch.manual_seed(1)
                expected = twin(*batch(n))
                torch.manual_seed(1)
                assert same(copy.deepcopy(other).train(training)(*batch(n)), expected)


@pytest.mark.parametrize("name", sorted(CALLS))
def test_the_model_is_left_as_it_was(name: str) -> None:
    kind, batch = CALLS[name]
    model = kind()
    model.train()
    for module in list(model.children())[:1]:
        module.eval()
    attributes = {path: dict(module.__dict__) for path, module in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    args = batch(5)
    before = copy.deepcopy(args)
    random_state = torch.get_rng_state()
    graph = captured(model, *args)
    assert torch.equal(torch.get_rng_state(), random_state)
    for path, module in model.named_modules():
        assert module.__dict__.keys() == attributes[path].keys()
        assert all(value is attributes[path][key] for key, value in module.__dict__.items())
    assert [module.training for module in model.modules()][:2] == [True, *[False for _ in model.children()]][:2]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert str(args) == str(before)
    for key, parameter in graph.named_parameters():
        assert parameter is model.get_parameter(key)
    for key, buffer in model.named_buffers():
        assert graph.get_buffer(key) is buffer


def test_a_module_keeps_its_own_mode() -> None:
    model = m.Normed()
    model.norm.eval()
    graph = captured(model, rows(5))
    assert graph.training and not graph.norm.training and graph.drop.training


def test_buffers_are_read_when_the_graph_runs_and_saved_as_before() -> None:
    model = m.Buffers()
    graph = captured(model, rows(5))
    assert set(graph.state_dict()) == {"scale"}
    with torch.no_grad():
        model.scale.mul_(10)
        model.pick.copy_(torch.tensor([[1, 1], [0, 0]]))
    assert torch.equal(graph(rows(4)), model(rows(4)))


def test_dropout_follows_the_mode() -> None:
    graph = captured(m.FunctionalDropout(), torch.ones(5, 3))
    assert torch.equal(graph.eval()(torch.ones(4, 3)), torch.full((4, 3), 2.0))
    torch.manual_seed(0)
    assert (graph.train()(torch.ones(100, 3)) != 2.0).any()
    assert sorted(layer.p for layer in graph.children()) == [0.25, 0.75]


def test_an_operation_in_place_is_neither_lost_nor_moved_past_a_reader() -> None:
    model = m.InPlace()
    graph = capture(model, ExampleBatch((rows(5),))).graph_module.graph
    before = len(graph.nodes)
    graph.eliminate_dead_code()
    assert len(graph.nodes) == before
    reader = next(n for n in graph.nodes if n.target == "sum")
    overwritten = [n.args[0] for n in graph.nodes if n.target in ("mul_", "add_", "relu")]
    assert reader.args[0] not in overwritten
    (scaled,) = [n for n in graph.nodes if n.target == "mul_"]
    assert scaled.args[0].target == "clone"


def test_layers_keep_their_names() -> None:
    graph = capture(m.InPlace(), ExampleBatch((rows(5),))).graph_module.graph
    assert [n.target for n in graph.nodes if n.op == "call_module"] == ["layer", "relu"]


def test_torch_save_and_load() -> None:
    model = m.Normed()
    graph = captured(model, rows(5))
    file = io.BytesIO()
    torch.save(graph, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded.training == graph.training
    assert torch.equal(loaded.eval()(rows(4)), model.eval()(rows(4)))


def test_a_copy_has_parameters_of_its_own() -> None:
    model = m.StoresAttribute()
    graph = captured(model, rows(5))
    twin = copy.deepcopy(graph)
    with torch.no_grad():
        twin.layer.weight.zero_()
    assert model.layer.weight.abs().sum() > 0
    assert dict(twin.named_parameters())["layer.weight"] is twin.graph_module.layer.weight
    assert twin.double()(rows(4).double()).dtype == torch.float64


def test_a_model_without_data_can_be_captured() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
    graph = captured(model, torch.empty(5, 3, device="meta"))
    assert graph(torch.empty(9, 3, device="meta")).shape == (9, 4)
