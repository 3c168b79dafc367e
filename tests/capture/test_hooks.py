"""Hooks: a leaf keeps its own, those of the rest are recorded or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin import ExampleBatch
from dmt_plugin.capture import capture
from dmt_plugin.core.errors import CaptureError
from tests.capture.test_capture import rows


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def doubled(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 2


@pytest.mark.parametrize("register", ["register_forward_hook", "register_full_backward_hook"])
def test_a_leaf_keeps_its_hooks(register: str) -> None:
    model = Model()
    calls: list[int] = []
    getattr(model.head, register)(lambda *args: calls.append(1))
    captured = capture(model, ExampleBatch((rows(5),)))
    assert not captured.findings
    calls.clear()  # an example value is what the layer gives, hooks included
    captured.as_module()(rows(4)).sum().backward()
    assert calls == [1]


def test_a_forward_hook_inside_is_recorded_with_a_warning() -> None:
    model = Model()
    model.body.register_forward_hook(doubled)
    captured = capture(model, ExampleBatch((rows(5),)))
    assert torch.equal(captured.as_module()(rows(4)), model(rows(4)))
    assert [(f.code, f.severity, f.module) for f in captured.findings] == [("DMT112", "warning", "body")]


@pytest.mark.parametrize(
    ("path", "register"),
    [
        ("", "register_forward_hook"),
        ("", "register_forward_pre_hook"),
        ("", "register_full_backward_hook"),
        ("body", "register_full_backward_hook"),
        ("body", "register_full_backward_pre_hook"),
    ],
)
def test_hooks_that_would_not_run_are_refused(path: str, register: str) -> None:
    model = Model()
    getattr(model.get_submodule(path), register)(lambda *args: None)
    with pytest.raises(CaptureError) as caught:
        capture(model, ExampleBatch((rows(5),)))
    assert [(f.code, f.severity, f.module) for f in caught.value.findings] == [("DMT112", "error", path)]
