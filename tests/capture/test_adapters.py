"""Adapters: a model whose forward cannot be followed is captured through another one, or refused by name."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dmt_plugin
from dmt_plugin import ExampleBatch, register_adapter, unregister_adapter, with_forward
from dmt_plugin.capture import capture
from dmt_plugin.core.errors import CaptureError
from tests.capture.test_capture import rows

Register = Callable[..., Any]


class Gate(nn.Module):
    """Control flow on data: small values are doubled."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.layer(x))
        if bool((x.abs() < 1e9).all()):
            x = x * 2
        return x


def straight(self: Gate, x: Tensor) -> Tensor:
    x = self.norm(self.layer(x))
    return torch.where((x.abs() < 1e9).all(), x * 2, x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), Gate())
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x))


@pytest.fixture
def register() -> Iterator[Register]:
    entries: list[Any] = []

    def call(*args: Any) -> None:
        entries.append(register_adapter(*args))

    yield call
    for entry in entries:
        unregister_adapter(entry)


def finding(model: nn.Module, *args: Any) -> Any:
    with pytest.raises(CaptureError) as caught:
        capture(model, ExampleBatch(args))
    return caught.value.findings[0]


def test_without_an_adapter_it_is_refused() -> None:
    found = finding(Model(), rows(5))
    assert (found.code, found.module) == ("DMT101", "inner.1")


@pytest.mark.parametrize("match", [Gate, lambda module: isinstance(module, Gate)])
@pytest.mark.parametrize("whole", [False, True])
def test_a_module_is_captured_through_its_adapter(register: Register, match: Any, whole: bool) -> None:
    register(match, lambda gate: with_forward(gate, straight))
    model = Gate() if whole else Model()
    before = {path: (module, dict(module.__dict__)) for path, module in model.named_modules()}
    graph = capture(model, ExampleBatch((rows(5),))).as_module()
    for training in (False, True):
        expected = model.train(training)(rows(4))
        model.train(not training)
        assert torch.equal(graph.train(training)(rows(4)), expected) or training  # BatchNorm moved on in between
    model.train()
    assert graph.state_dict().keys() == model.state_dict().keys()
    assert all(parameter is model.get_parameter(name) for name, parameter in graph.named_parameters())
    for path, (module, attributes) in before.items():
        assert model.get_submodule(path) is module and module.__dict__.keys() == attributes.keys()


def test_a_class_of_the_users_is_an_adapter(register: Register) -> None:
    class Followed(nn.Module):
        def __init__(self, gate: Gate) -> None:
            super().__init__()
            self.layer, self.norm = gate.layer, gate.norm
            self.train(gate.training)

        def forward(self, x: Tensor) -> Tensor:
            return straight(self, x)  # type: ignore[arg-type]

    register(Gate, Followed)
    model = Model().eval()
    graph = capture(model, ExampleBatch((rows(5),))).as_module()
    assert torch.equal(graph(rows(4)), model(rows(4)))


def test_the_check_of_an_adapter_changes_nothing(register: Register) -> None:
    register(Gate, lambda gate: with_forward(gate, straight))
    model = Model()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    capture(model, ExampleBatch((rows(5),)))
    assert model.training and all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters()) and torch.equal(torch.get_rng_state(), random)


def other_state(gate: Gate) -> nn.Module:
    twin = with_forward(gate, straight)
    twin.layer = nn.Linear(3, 3)
    return twin


def without_gradient(self: Gate, x: Tensor) -> Tensor:
    return straight(self, x.detach())


@pytest.mark.parametrize(
    ("adapter", "reason"),
    [
        (lambda gate: with_forward(gate, lambda self, x: self.norm(self.layer(x))), "output 0 differs by up to"),
        (lambda gate: with_forward(gate, lambda self, x: straight(self, x)[:, :2]), "the model fails: RuntimeError"),
        (lambda gate: with_forward(gate, without_gradient), "gives inner.0.weight a gradient"),
        (other_state, "does not hold the model's own parameters: ['layer.bias', 'layer.weight']"),
        (lambda gate: None, "NoneType, not a module"),
    ],
)
def test_an_adapter_that_is_another_model_is_refused(register: Register, adapter: Any, reason: str) -> None:
    register(Gate, adapter)
    found = finding(Model(), rows(5))
    assert (found.code, found.module) == ("DMT110", "inner.1") and reason in found.reason


def test_two_adapters_for_one_module_are_not_a_choice(register: Register) -> None:
    for _ in range(2):
        register(Gate, lambda gate: with_forward(gate, straight))
    found = finding(Model(), rows(5))
    assert (found.code, found.module) == ("DMT110", "inner.1") and "2 adapters match Gate" in found.reason


def test_a_subclass_needs_an_adapter_of_its_own(register: Register) -> None:
    class Special(Gate):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 3

    register(Gate, lambda gate: with_forward(gate, straight))
    assert finding(Special(), rows(5)).code == "DMT101"


def test_weights_without_data_cannot_be_compared(register: Register) -> None:
    register(Gate, lambda gate: with_forward(gate, straight))
    with torch.device("meta"):
        model = Model()
    findings = capture(model, ExampleBatch((torch.empty(5, 3, device="meta"),))).findings
    assert [(f.code, f.severity, f.module) for f in findings] == [("DMT110", "warning", "inner.1")]


def test_the_forward_of_a_layer_of_torch_can_be_another(register: Register) -> None:
    def linear(self: nn.Linear, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)

    register(nn.Linear, lambda layer: with_forward(layer, linear))
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    graph = capture(model, ExampleBatch((rows(5),))).as_module()
    assert nn.functional.linear in {n.target for n in graph.graph.nodes}
    assert torch.equal(pickle.loads(pickle.dumps(graph))(rows(4)), model(rows(4)))


def test_the_names_are_public() -> None:
    assert {"mark_embeddings", "register_adapter", "unregister_adapter", "with_forward"} <= set(dmt_plugin.__all__)
