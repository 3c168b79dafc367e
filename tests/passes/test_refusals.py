"""Groups whose streams the model behind cannot take: found without capturing, or compiling, once for each of them."""

from __future__ import annotations

import logging
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin import compiler
from dmt_plugin.compiler import transform
from dmt_plugin.passes.resize.sweep import Sweep


class FieldAware(nn.Module):
    """A table per field and partner field; each vector is read back by its place."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.ModuleList(nn.Embedding(9, 4) for _ in range(fields)) for _ in range(fields))

    def forward(self, ids: Tensor) -> Tensor:
        x = [torch.stack([t(ids[:, i]) for i, t in enumerate(row)], 1) for row in self.tables]
        pairs = [(x[j][:, i] * x[i][:, j]).sum(1) for i in range(len(x)) for j in range(i + 1, len(x))]
        return torch.stack(pairs, 1).sum(1)


def counted(fields: int, way: str) -> tuple[Any, dict[str, int]]:
    """The tower model of a field-aware model; how often it was captured and compiled, and nodes walked."""
    counts = {"captured": 0, "compiled": 0, "visited": 0}

    def counting(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    config = {"dmt": {"towers": {"module": "dlrm", "dim": 2}, "transform": {"on_unsupported": way}}}
    with (
        mock.patch.object(compiler, "capture", counting("captured", compiler.capture)),
        mock.patch.object(compiler, "run_passes", counting("compiled", compiler.run_passes)),
        mock.patch.object(Sweep, "_visit", counting("visited", Sweep._visit)),
    ):
        model = transform(FieldAware(fields), (torch.randint(0, 9, (5, fields)),), config, "2x1")
    return model, counts


@pytest.mark.parametrize(("way", "kind", "form"), [
    ("decoder", "tower", "decoder"), ("preserve", "tower", "preserve"), ("transport", "transport", "native"),
])  # fmt: skip
def test_every_group_is_blocked_at_once(way: str, kind: str, form: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    model, counts = counted(4, way)
    assert [(g.kind, g.form) for g in model.plan.groups] == [(kind, form)] * 4
    assert counts["captured"] == 1 and counts["compiled"] <= 4  # both lists of passes, twice


def test_the_work_grows_with_the_model(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    few, many = (counted(fields, "decoder")[1]["visited"] for fields in (4, 8))
    assert many < 10 * few  # four times the nodes, twice the groups


def test_only_the_guilty_group_is_blocked(caplog: pytest.LogCaptureFixture) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.ModuleList(nn.Embedding(9, 4) for _ in range(4))
            self.two = nn.ModuleList(nn.Embedding(9, 4) for _ in range(4))
            self.top = nn.Linear(16 + 4, 1)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            x = torch.stack([t(a[:, i]) for i, t in enumerate(self.one)], 1)
            y = torch.stack([t(b[:, i]) for i, t in enumerate(self.two)], 1)
            return self.top(torch.cat([x.flatten(1), y[:, 1]], 1)) + y.sum((1, 2)).unsqueeze(1)

    caplog.set_level(logging.ERROR)
    config = {"dmt": {"towers": {"module": "dlrm", "dim": 2}, "transform": {"on_unsupported": "decoder"}}}
    batch = (torch.randint(0, 9, (5, 4)), torch.randint(0, 9, (5, 4)))
    plan = transform(Two(), batch, config, "2x1").plan
    assert [g.form for g in plan.groups] == ["native", "decoder"]
