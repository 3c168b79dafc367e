"""What a model may do with its embeddings, one habit per class, as an author would write it.

Every head is built from the number of streams, their width and the width of the dense vector, and called
with ``(dense input, streams)``. So the same class, built with the towers' numbers, is the oracle of a repair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DENSE = 5
Streams = list[Tensor]


class Head(nn.Module):
    """A dense vector of the streams' width, and a last layer of its own."""

    def __init__(self, streams: int, width: int) -> None:
        super().__init__()
        self.bottom = nn.Sequential(nn.Linear(DENSE, 6), nn.ReLU(), nn.Linear(6, width), nn.ReLU())
        self.build(streams, width)

    def build(self, n: int, d: int) -> None:
        raise NotImplementedError


class Dot(Head):
    """Flat cat, regrouped by the width of the dense vector; pairs as a buffer."""

    offset = -1
    function: Any = staticmethod(torch.tril_indices)

    def build(self, n: int, d: int) -> None:
        self.register_buffer("pairs", self.function(n + 1, n + 1, offset=self.offset), persistent=False)
        self.top = nn.Linear(d + self.pairs.shape[1], 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        x = self.bottom(x)
        t = torch.cat([x, *streams], dim=1).view(x.size(0), -1, x.size(1))
        z = torch.bmm(t, t.transpose(1, 2))
        return self.top(torch.cat([x, z[:, self.pairs[0], self.pairs[1]]], dim=1))


class DotWithDiagonal(Dot):
    offset = 0


class DotUpper(Dot):
    offset = 1
    function = staticmethod(torch.triu_indices)


class DotUpperWithDiagonal(Dot):
    offset = 0
    function = staticmethod(torch.triu_indices)


class DotLiteral(Head):
    """Literal sizes in both views, a boolean mask for the pairs."""

    def build(self, n: int, d: int) -> None:
        self.n, self.d = n + 1, d
        self.register_buffer("mask", torch.ones(n + 1, n + 1).tril(-1).bool(), persistent=False)
        self.top = nn.Linear(d + (n + 1) * n // 2, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        x = self.bottom(x)
        t = torch.cat([x, *streams], dim=1).reshape(-1, self.n, self.d)
        z = torch.matmul(t, t.permute(0, 2, 1))
        return self.top(torch.cat([x, z[:, self.mask]], dim=-1))


class DotLists(Head):
    """Stacked, pairs as Python lists written in forward."""

    def build(self, n: int, d: int) -> None:
        self.top = nn.Linear(d + (n + 1) * n // 2, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        x = self.bottom(x)
        t = torch.stack([x, *streams], dim=1)
        z = t @ t.mT
        n = z.shape[1]
        rows = [i for i in range(n) for j in range(i)]
        columns = [j for i in range(n) for j in range(i)]
        return self.top(torch.cat([x, z[..., rows, columns]], dim=1))


class StackedLiteral(Head):
    """Streams only: stacked, flattened by literal sizes, then a layer."""

    def build(self, n: int, d: int) -> None:
        self.n, self.d = n, d
        self.top = nn.Linear(n * d, 3)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        return self.top(torch.stack(streams, dim=1).view(-1, self.n * self.d))


class GroupedRows(Head):
    """A flat cat cut into vectors of the streams' width by a literal, a layer on each vector."""

    def build(self, n: int, d: int) -> None:
        self.n, self.d = n, d
        self.each = nn.Linear(d, 4)
        self.top = nn.Linear(4, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.cat(streams, 1).view(x.size(0), self.n, self.d)
        return self.top(torch.relu(self.each(t)).sum(dim=1))


class SumOverFeatures(Head):
    """Reductions with every spelling of the dimension."""

    def build(self, n: int, d: int) -> None:
        self.top = nn.Linear(2 * d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, 1)
        return self.top(torch.cat([t.sum(axis=1), torch.mean(t, 1, True).squeeze(1)], dim=1))


class CrossLinear(Head):
    def build(self, n: int, d: int) -> None:
        flat = n * d + DENSE
        self.layers = nn.ModuleList(nn.Linear(flat, flat) for _ in range(2))
        self.top = nn.Linear(flat, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        x0 = xl = torch.cat([x, *streams], dim=1)
        for layer in self.layers:
            xl = x0 * layer(xl) + xl
        return self.top(xl)


class CrossParameters(Head):
    """Cross layers of raw parameters: DCN v1's vectors, v2's matrices, low rank."""

    def build(self, n: int, d: int) -> None:
        flat = n * d + DENSE
        self.vector, self.shift = nn.Parameter(torch.randn(flat, 1)), nn.Parameter(torch.zeros(flat))
        self.matrix = nn.Parameter(torch.randn(flat, flat))
        self.down, self.up = nn.Parameter(torch.randn(3, flat)), nn.Parameter(torch.randn(flat, 3))
        self.bias = nn.Parameter(torch.zeros(flat))
        self.top = nn.Linear(flat, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        x0 = torch.cat([x, *streams], dim=1)
        xl = x0 * (x0 @ self.vector) + self.shift + x0
        xl = x0 * torch.matmul(xl, self.matrix) + xl
        xl = x0 * F.linear(F.linear(xl, self.down), self.up, self.bias) + xl
        return self.top(xl)


class FactorisationMachine(Head):
    def build(self, n: int, d: int) -> None:
        self.deep = nn.Linear(n * d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        v = torch.stack(streams, dim=1)
        pairs = 0.5 * (v.sum(1) ** 2 - (v**2).sum(1))
        return pairs.sum(1, keepdim=True) + self.deep(v.flatten(start_dim=1))


class NormedMLP(Head):
    def build(self, n: int, d: int) -> None:
        flat = DENSE + n * d
        self.batch_norm, self.layer_norm = nn.BatchNorm1d(flat), nn.LayerNorm(flat)
        self.top = nn.Sequential(nn.Linear(flat, 8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        flat = torch.cat([x, *streams], dim=-1)
        return self.top(self.layer_norm(self.batch_norm(flat)))


class Attention(Head):
    """Fields weighed by a softmax over them."""

    def build(self, n: int, d: int) -> None:
        self.score = nn.Linear(d, 1)
        self.top = nn.Linear(d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        return self.top((t * torch.softmax(self.score(t), dim=1)).sum(dim=1))


class TypedDense(Head):
    """A dense vector of its own width beside the streams, cast to their type; a transposition before the flattening."""

    def build(self, n: int, d: int) -> None:
        self.side = nn.Linear(DENSE, 7)
        self.top = nn.Linear(n * d + 7, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1).transpose(1, 2).reshape(x.shape[0], -1)
        return self.top(torch.cat([t, self.side(x).type_as(t)], dim=1))


# -- what must be refused ---------------------------------------------------------------------


class Refused(Head):
    """``use(t, self)`` on the stacked streams ``(B, n, d)``; the result is summed to a vector."""

    def __init__(self, streams: int, width: int, use: Callable[[Tensor, Refused], Tensor]) -> None:
        self.use = use
        super().__init__(streams, width)

    def build(self, n: int, d: int) -> None:
        self.n, self.d = n, d
        self.layer = nn.Linear(n * d, 4)
        self.frozen = nn.Linear(n * d, 4).requires_grad_(False)
        self.twin = nn.Linear(n * d, 4)
        self.twin.weight = self.layer.weight
        self.other = nn.Linear(n * d, 4)
        self.plain = nn.Linear(n * d, 4)
        self.hooked = nn.utils.parametrizations.weight_norm(nn.Linear(n * d, 4))
        self.each = nn.ModuleList(nn.Linear(d, 2) for _ in range(n))
        self.recurrent = nn.GRU(d, 2, batch_first=True)
        self.register_buffer("table", torch.ones(n, d))
        self.register_buffer("wide", torch.ones(1, n * d))
        self.register_buffer("odd_pairs", torch.tensor([[0, 1], [1, 2]]))

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        out = self.use(torch.stack(streams, dim=1), self)
        return out.flatten(1).sum(1) + self.bottom(x).sum(1)


class Recommender(nn.Module):
    """Tables of one width, and a head."""

    def __init__(self, head: nn.Module, features: int, width: int, unsqueezed: bool = False) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10 + f, width) for f in range(features))
        self.head = head
        self.unsqueezed = unsqueezed

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        return self.head(x, [table(ids[:, f]) for f, table in enumerate(self.tables)])


def batch(features: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, DENSE, generator=g), torch.randint(0, 10, (n, features), generator=g)
