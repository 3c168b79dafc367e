"""What forward does around its operations: contexts, own backwards, hooks, state in Python; layers whose parameters are
not plain. Each is a body behind stacked tables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.zoo.spec import mlp, rows_of

Body = Callable[["Plain", Tensor], Any]


class Plain(nn.Module):
    """Tables, stacked; what happens behind them is ``body``; ``make`` adds parts."""

    def __init__(self, features: int, width: int, make: Callable[..., None], body: Body) -> None:
        super().__init__()
        self.features, self.width = features, width
        self.tables = nn.ModuleList(nn.Embedding(rows_of(i), width) for i in range(features))
        make(self, features, width)
        self.body = body

    def forward(self, ids: Tensor) -> Any:
        return self.body(self, torch.stack([t(ids[:, i]) for i, t in enumerate(self.tables)], dim=1))


class Reverse(torch.autograd.Function):
    """Gradient reversal."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -0.5 * grad


def _net(m: Any, f: int, n: int) -> None:
    m.net = mlp([f * n, 16, 1])


def _set(**parts: Callable[[int, int], Any]) -> Callable[..., None]:
    def make(m: Any, f: int, n: int) -> None:
        for name, part in parts.items():
            value = part(f, n)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                m.register_buffer(name, value)
            else:
                setattr(m, name, value)

    return make


def no_grad(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        w = torch.softmax(m.gate(x.flatten(1)), 1)
    return m.net((x * w.unsqueeze(2)).flatten(1))


def reversal(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.relu(m.first(x.flatten(1)))
    return m.task(h), m.domain(Reverse.apply(h))


def hook(m: Any, x: Tensor) -> Tensor:
    h = torch.relu(m.first(x.flatten(1)))
    if h.requires_grad:
        h.register_hook(lambda g: g * 0.1)
    return m.task(h)


def checkpointed(m: Any, x: Tensor) -> Tensor:
    return m.task(checkpoint(m.first, x.flatten(1), use_reentrant=False))


def counting(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    return m.net(x.flatten(1)) / (1.0 + 0.1 * m.calls)


def autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = m.net(x.flatten(1))
    return y.float()


def f_dropout(m: Any, x: Tensor) -> Tensor:
    return m.net(F.dropout(x, 0.2, m.training).flatten(1))


def net(m: Any, x: Tensor) -> Tensor:
    return m.net(x.flatten(1))


def weight_normed(f: int, n: int) -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(f * n, 12)), nn.ReLU(), nn.Linear(12, 1))


def spectral(f: int, n: int) -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(f * n, 12)), nn.ReLU(), nn.Linear(12, 1))


def old_weight_normed(f: int, n: int) -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(f * n, 12)), nn.ReLU(), nn.Linear(12, 1))


def frozen(f: int, n: int) -> nn.Module:
    m = mlp([f * n, 16, 1])
    m[0].weight.requires_grad_(False)
    return m
