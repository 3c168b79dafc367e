"""A folder with a model file and a configuration, as a user has them; and the ``dmt`` command there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(20, 8) for _ in range(5))
        self.first = nn.EmbeddingBag(20, 1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(5 * 8 + 3, 1)

    def forward(self, dense, sparse):
        columns = [t(sparse[:, i:i + 1]) for i, t in enumerate(self.tables)]
        flat = self.drop(torch.cat([dense, *columns], dim=1))
        return self.head(flat) + self.first(sparse[:, 1:2])

def build():
    torch.manual_seed(0)
    return Net()

def example_batch():
    return torch.randn(4, 3), torch.randint(0, 20, (4, 5))
"""

REFUSED = MODEL.replace("return self.head(flat)", "return self.head(flat) * self.tables[0].weight[0, 0]")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder: models ``net.py`` and ``refused.py``, configurations ``ds.json`` and ``sptt.json``."""
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "refused.py").write_text(REFUSED)
    section = {"towers": {"c": 1, "p": 1, "dim": 4}}
    (tmp_path / "ds.json").write_text(json.dumps({"train_micro_batch_size_per_gpu": 64, "dmt": section}))
    (tmp_path / "sptt.json").write_text(json.dumps({"dmt": {"towers": {"module": "none"}}}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
