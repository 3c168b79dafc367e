"""What forward does to gradients beside its operations is in the graph, or is refused: outputs would not show it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.checkpoint import checkpoint

from dmt_plugin.capture import ExampleBatch, capture
from dmt_plugin.core.errors import CaptureError

Step = Callable[[Any, Tensor], Tensor]


class Model(nn.Module):
    """One table, two layers, and a step between them."""

    def __init__(self, step: Step) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.scale = nn.Parameter(torch.rand(4))
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.step = step

    def forward(self, ids: Tensor) -> Tensor:
        return self.second(self.step(self, self.first(self.table(ids))))


class Reverse(torch.autograd.Function):
    """The same numbers, the opposite gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


@fx.wrap
def reversed_gradient(x: Tensor) -> Tensor:
    return Reverse.apply(x)


def block(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(model.first(x) * model.scale)
    return x * gate * model.scale


def decorated(model: Any, x: Tensor) -> Tensor:
    @torch.no_grad()
    def target() -> Tensor:
        return model.first(x).softmax(1)

    return x * target()


def items(model: Any, x: Tensor) -> Tensor:
    outside = x.chunk(2, 1)
    with torch.no_grad():
        kept = outside[0]
        inside = torch.tanh(x).chunk(2, 1)
    return torch.cat([kept * inside[1], outside[1]], 1)


def on_again(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = torch.sigmoid(x)
        with torch.enable_grad():
            y = gate * model.scale
        return y + x


def by_set(model: Any, x: Tensor) -> Tensor:
    with torch.set_grad_enabled(False):
        gate = torch.sigmoid(x)
    return x + gate


def numbers_of_it(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        place = x.argmax(1)
    return x + place.unsqueeze(1)


def reentrant(model: Any, x: Tensor) -> Tensor:
    return checkpoint(lambda y: model.first(y).tanh(), x, use_reentrant=True)


def not_reentrant(model: Any, x: Tensor) -> Tensor:
    return checkpoint(model.first, x, use_reentrant=False)


def wrapped(model: Any, x: Tensor) -> Tensor:
    return reversed_gradient(x)


def penalised(model: Any, x: Tensor) -> Tensor:
    layers = [p for name, p in model.named_parameters() if not name.startswith("table")]
    assert next(model.parameters()).device == x.device and all(p.numel() > 0 and p.shape for p in layers)
    penalty = sum(p.square().sum() for p in layers) + sum(torch.norm(p, 1) for p in model.first.parameters())
    return x * 2 + penalty * 0.01 + model._parameters["scale"].data


def gradients(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    out = model(ids)
    out.square().sum().backward()
    return {"": out.detach()} | {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    "step", [block, decorated, items, on_again, by_set, numbers_of_it, reentrant, not_reentrant, wrapped, penalised]
)
@pytest.mark.parametrize("outside", [True, False])
def test_gradients_are_those_of_the_model(step: Step, outside: bool) -> None:
    model = Model(step)
    with torch.set_grad_enabled(outside):
        graph = capture(copy.deepcopy(model), ExampleBatch((torch.arange(5),))).as_module()
    ids = torch.tensor([1, 4, 4, 8])
    expected, found = gradients(model, ids), gradients(graph, ids)
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_parameters_read_past_their_names_are_those_of_the_day() -> None:
    model = Model(penalised)
    graph = capture(model, ExampleBatch((torch.arange(5),))).as_module()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    assert torch.equal(model(torch.arange(4)), graph(torch.arange(4)))


def own_backward(model: Any, x: Tensor) -> Tensor:
    return Reverse.apply(x)


def hooked(model: Any, x: Tensor) -> Tensor:
    x.register_hook(lambda grad: grad * 2)
    return x


def hooked_parameter(model: Any, x: Tensor) -> Tensor:
    model.scale.register_hook(lambda grad: grad * 2)
    return x * model.scale


def asks(model: Any, x: Tensor) -> Tensor:
    return x * 2 if x.requires_grad else x


def in_place(model: Any, x: Tensor) -> Tensor:
    y = x * 1
    with torch.no_grad():
        y.mul_(2)
    return y


def autocast(model: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return (x @ x.t()).float() @ x


@pytest.mark.parametrize(
    ("step", "says"),
    [
        (own_backward, "Reverse, a torch.autograd.Function"),
        (hooked, ".register_hook"),
        (hooked_parameter, ".register_hook"),
        (asks, ".requires_grad"),
        (in_place, "mul_"),
        (autocast, "torch.autocast"),
    ],
)
def test_what_a_graph_would_lose_is_refused(step: Step, says: str) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Model(step), ExampleBatch((torch.arange(5),)))
    finding = caught.value.findings[0]
    assert finding.code == "DMT114" and says in finding.reason and "test_gradients.py" in finding.reason
    assert torch.autograd.Function.apply is not None and Reverse.apply(torch.ones(1)).item() == 1
