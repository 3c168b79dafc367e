"""Where the capture stops, the error says what torch.export sees, and nothing else comes of it."""

from __future__ import annotations

import logging
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmt_plugin import ExampleBatch
from dmt_plugin.capture import capture
from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import CaptureError
from dmt_plugin.core.findings import Finding


class Tables(nn.Module):
    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10 + i, 4) for i in range(count))
        self.extra = nn.Parameter(torch.randn(6, 4))
        self.bag = nn.EmbeddingBag(20, 4, mode="sum")
        self.head = nn.Linear(4, 1)

    def forward(self, ids: Tensor) -> Tensor:
        out = sum(table(ids[:, i]) for i, table in enumerate(self.tables))
        return self.head(out + F.embedding(ids[:, 0], self.extra) + self.bag(ids))


class AsksForTensors(Tables):
    """Export follows this: there, everything is a tensor."""

    def forward(self, ids: Tensor) -> Tensor:
        if not isinstance(ids, Tensor):
            raise TypeError("ids must be a tensor")
        return super().forward(ids)


class Branches(Tables):
    """Nothing follows this."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * (2 if ids.sum() > 3 else 1)


def batch(n: int) -> Tensor:
    return torch.arange(n * 3).view(n, 3) % 6


def refused(model: nn.Module, *args: Any) -> tuple[Finding, ...]:
    with pytest.raises(CaptureError) as caught:
        capture(model, ExampleBatch(args))
    return caught.value.findings


def test_what_export_sees_is_listed_by_name() -> None:
    error, note = refused(AsksForTensors(), batch(5))
    assert (error.code, error.severity) == ("DMT107", "error") and "ids must be a tensor" in error.reason
    assert (note.code, note.severity) == ("DMT111", "info")
    assert "at any batch size" in note.reason and "5 embedding call(s)" in note.reason
    for call in ("tables.0.weight (10 x 4)", "tables.2.weight (12 x 4)", "extra (6 x 4)", "bag.weight (20 x 4)"):
        assert call in note.reason
    assert "register_adapter" in note.hint


def test_where_export_stops_too_the_tables_are_listed() -> None:
    error, note = refused(Branches(12), torch.zeros(5, 12, dtype=torch.long))
    assert error.code == "DMT101" and "ids.sum() > 3" in error.reason
    assert "cannot follow the model either" in note.reason and "13 table(s)" in note.reason
    assert "tables.0 (10 x 4)" in note.reason and "and 5 more" in note.reason


def test_a_model_without_tables_gets_no_note() -> None:
    class Numbers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.max().item()

    assert [f.code for f in refused(Numbers(), torch.ones(5, 3))] == ["DMT101"]


def test_the_model_and_the_surroundings_stay_as_they_were(capfd: pytest.CaptureFixture[str]) -> None:
    model = Branches().train()
    attributes = {path: dict(module.__dict__) for path, module in model.named_modules()}
    refused(model, batch(5))
    for path, module in model.named_modules():
        assert module.__dict__.keys() == attributes[path].keys() and module.training
    assert not logging.root.manager.disable
    assert capfd.readouterr() == ("", "")


def test_transform_raises_the_same_error_and_it_pickles() -> None:
    with pytest.raises(CaptureError) as caught:
        transform(AsksForTensors(), (batch(5),), {"dmt": {}}, "2x1")
    assert [f.code for f in caught.value.findings] == ["DMT107", "DMT111"]
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.findings == caught.value.findings and str(again) == str(caught.value)
    assert str(again).startswith("the model cannot be captured as a graph: 1 place must change\n  DMT107 error")
