"""The Adagrad that survives ZeRO is torch's Adagrad."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import nn

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.integrations.deepspeed.engine.adagrad import LazyAdagrad, safe_for_zero

ADAGRAD = sys.modules["torch.optim.adagrad"]


def test_it_updates_as_torch_does() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    twin = copy.deepcopy(model)

    def groups(m: nn.Sequential) -> list[dict]:
        return [
            {"params": list(m[0].parameters()), "lr": 0.3, "weight_decay": 0.01},
            {"params": list(m[1].parameters()), "lr_decay": 0.1},
        ]

    theirs = torch.optim.Adagrad(groups(model), lr=0.1, eps=1e-8, initial_accumulator_value=0.5)
    ours = safe_for_zero(torch.optim.Adagrad(groups(twin), lr=0.1, eps=1e-8, initial_accumulator_value=0.5))
    assert isinstance(ours, LazyAdagrad) and not isinstance(ours, torch.optim.Adagrad)
    for step in range(4):
        for m, optimizer in ((model, theirs), (twin, ours)):
            optimizer.zero_grad()
            m(torch.full((5, 3), 0.5 + step)).square().mean().backward()
            optimizer.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False}])
def test_the_implementation_that_was_asked_for_runs(options: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(3, 2)
    groups = [{"params": [layer.weight]}, {"params": [layer.bias]}]
    optimizer = safe_for_zero(torch.optim.Adagrad(groups, lr=0.1, **options))
    (name,) = options
    ran = "single_tensor" if not options[name] else {"foreach": "multi_tensor", "fused": "fused"}[name]
    seen: list[str] = []
    for known in ("single_tensor", "multi_tensor", "fused"):
        stock = getattr(ADAGRAD, f"_{known}_adagrad")

        def noted(*args: Any, stock: Any = stock, known: str = known, **kwargs: Any) -> None:
            seen.append(known)
            stock(*args, **kwargs)

        monkeypatch.setattr(ADAGRAD, f"_{known}_adagrad", noted)
    layer(torch.ones(1, 3)).sum().backward()
    before = layer.weight.detach().clone()
    optimizer.step()
    assert seen == [ran, ran]
    torch.testing.assert_close(layer.weight.detach(), before - 0.1)


def test_steps_that_gradients_flow_through_are_refused() -> None:
    layer = nn.Linear(3, 2)
    groups = [{"params": [layer.weight]}, {"params": [layer.bias]}]
    with pytest.raises(ConfigError, match="differentiable = True"):
        safe_for_zero(torch.optim.Adagrad(groups, differentiable=True))


def test_others_are_left_alone() -> None:
    layer = nn.Linear(2, 2)
    single = torch.optim.Adagrad(layer.parameters())
    assert safe_for_zero(single) is single
    adam = torch.optim.Adam([{"params": [layer.weight]}, {"params": [layer.bias]}])
    assert safe_for_zero(adam) is adam
    assert safe_for_zero(None) is None
