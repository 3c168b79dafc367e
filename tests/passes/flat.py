"""Flat models with one peculiarity each in their lookups or joins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dmt_plugin.capture import ExampleBatch, capture
from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.findings import Finding
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.passes.base import PassContext, run_passes
from dmt_plugin.passes.pipeline import towers_passes
from dmt_plugin.topology.shape import Topology

ROWS = 10


def ids(features: int, n: int, seed: int = 0) -> Tensor:
    return torch.randint(0, ROWS, (n, features), generator=torch.Generator().manual_seed(seed))


class Flat(nn.Module):
    """``join(streams, self)`` of ``tables``, then a layer of its own size; ``look`` makes the streams."""

    def __init__(
        self,
        join: Callable[[list[Tensor], Flat], Tensor],
        tables: list[nn.Module] | None = None,
        look: Callable[[Flat, Tensor], list[Tensor]] | None = None,
        width: int = 4,
        features: int = 4,
    ) -> None:
        super().__init__()
        made = tables or [nn.Embedding(ROWS, width) for _ in range(features)]
        self.tables = nn.ModuleList(made)
        self.features = features
        self.join, self.look = join, look
        example = torch.zeros(2, features, dtype=torch.long)
        self.top: nn.Module = nn.Identity()
        with torch.no_grad():
            self.top = nn.Linear(self._joined(example).shape[1], 1)

    def _joined(self, index: Tensor) -> Tensor:
        streams = self.look(self, index) if self.look else [t(index[:, f]) for f, t in enumerate(self.tables)]
        return self.join(streams, self)

    def forward(self, index: Tensor) -> Tensor:
        return self.top(self._joined(index))


def cat(streams: list[Tensor], model: Any) -> Tensor:
    return torch.cat(streams, dim=1)


def found(model: nn.Module, *args: Any, **dmt: Any) -> PassContext:
    """The model after ``find_joins``, findings and all."""
    ctx = PassContext(capture(model, ExampleBatch(args)), DMTConfig.model_validate(dmt), Topology(2, 1))
    steps = towers_passes()
    return run_passes(steps[: [step.name for step in steps].index("find_joins") + 1], ctx)


def towers(model: nn.Module, *args: Any, topology: str = "2x1", **dmt: Any) -> TowerModel:
    return transform(model, args, {"dmt": dmt}, topology)


def only(findings: Any, code: str) -> Finding:
    (finding,) = [f for f in findings if f.code == code]
    return finding
