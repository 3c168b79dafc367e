"""Models with one table per field, written straight down: cross networks in all their spellings, DeepFM with a
first-order part, Wide&Deep with crossed wide features, a two-branch model with shared tables.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.zoo.spec import (
    DENSE,
    FEATURES,
    WIDTH,
    Built,
    Oracle,
    Variant,
    by_size,
    dense_and_ids,
    mlp,
    numbered,
    rows_of,
)


class CrossV1(nn.Module):
    """Rank-one layers, the weights of all layers in one parameter ``(layers, d, 1)``."""

    def __init__(self, d: int, layers: int) -> None:
        super().__init__()
        self.layers = layers
        self.kernels = nn.Parameter(torch.randn(layers, d, 1) * 0.02)
        self.bias = nn.Parameter(torch.zeros(layers, d, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        x_0 = inputs.unsqueeze(2)
        x_l = x_0
        for i in range(self.layers):
            xl_w = torch.tensordot(x_l, self.kernels[i], dims=([1], [0]))
            x_l = torch.matmul(x_0, xl_w) + self.bias[i] + x_l
        return torch.squeeze(x_l, dim=2)


class CrossLinear(nn.Module):
    """Full matrices as ``nn.Linear``."""

    def __init__(self, d: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(d, d) for _ in range(layers))

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for layer in self.layers:
            x = x0 * layer(x) + x
        return x


class CrossKernels(nn.Module):
    """Full matrices as raw parameters, columns on the right."""

    def __init__(self, d: int, layers: int) -> None:
        super().__init__()
        self.kernels = nn.ParameterList(nn.Parameter(torch.randn(d, d) * 0.1) for _ in range(layers))
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(d, 1)) for _ in range(layers))

    def forward(self, inputs: Tensor) -> Tensor:
        x0 = inputs.unsqueeze(2)
        x = x0
        for kernel, bias in zip(self.kernels, self.bias, strict=True):
            x = x0 * (torch.matmul(kernel, x) + bias) + x
        return x.squeeze(2)


class CrossLowRank(nn.Module):
    """``W = U V`` as two Linear layers."""

    def __init__(self, d: int, layers: int, rank: int = 3) -> None:
        super().__init__()
        self.v = nn.ModuleList(nn.Linear(d, rank, bias=False) for _ in range(layers))
        self.u = nn.ModuleList(nn.Linear(rank, d) for _ in range(layers))

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for v, u in zip(self.v, self.u, strict=True):
            x = torch.addcmul(x, x0, u(v(x)))
        return x


class CrossLowRankKernels(nn.Module):
    """``W = U V`` as raw parameters in lists."""

    def __init__(self, d: int, layers: int, rank: int = 3) -> None:
        super().__init__()
        self.W = nn.ParameterList(nn.Parameter(torch.randn(d, rank) * 0.1) for _ in range(layers))
        self.V = nn.ParameterList(nn.Parameter(torch.randn(rank, d) * 0.1) for _ in range(layers))
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(d)) for _ in range(layers))

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for w, v, b in zip(self.W, self.V, self.bias, strict=True):
            x_v = nn.functional.linear(x, v)
            x = x0 * (nn.functional.linear(x_v, w) + b) + x
        return x


class CrossMix(nn.Module):
    """Low-rank experts mixed by gates; all parameters of a kind in one tensor with a layer dimension."""

    def __init__(self, d: int, layers: int, rank: int = 3, experts: int = 2) -> None:
        super().__init__()
        self.layers, self.experts = layers, experts
        self.U = nn.Parameter(torch.randn(layers, experts, d, rank) * 0.1)
        self.V = nn.Parameter(torch.randn(layers, experts, d, rank) * 0.1)
        self.C = nn.Parameter(torch.randn(layers, experts, rank, rank) * 0.1)
        self.gating = nn.ModuleList(nn.Linear(d, 1, bias=False) for _ in range(experts))
        self.bias = nn.Parameter(torch.zeros(layers, d, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        x_0 = inputs.unsqueeze(2)
        x_l = x_0
        for i in range(self.layers):
            outputs, gates = [], []
            for e in range(self.experts):
                gates.append(self.gating[e](x_l.squeeze(2)))
                v_x = torch.tanh(torch.matmul(self.V[i][e].t(), x_l))
                v_x = torch.tanh(torch.matmul(self.C[i][e], v_x))
                uv_x = torch.matmul(self.U[i][e], v_x)
                outputs.append((x_0 * (uv_x + self.bias[i])).squeeze(2))
            stacked = torch.stack(outputs, 2)
            gate = torch.stack(gates, 1)
            x_l = torch.matmul(stacked, gate.softmax(1)) + x_l
        return x_l.squeeze()


class CrossAndDeep(nn.Module):
    """Numbers and embeddings side by side, cross and deep part parallel or one after the other."""

    def __init__(self, features: int, width: int, cross: Callable[[int, int], nn.Module], stacked: bool) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows_of(f), width) for f in range(features))
        flat = DENSE + features * width
        self.stacked = stacked
        self.norm = nn.BatchNorm1d(flat)
        self.cross = cross(flat, 2)
        self.deep = mlp([flat, 16, 8], last=True, norm=True, dropout=0.2)
        self.head = nn.Linear(8 if stacked else flat + 8, 1)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        columns = [table(sparse[:, i]) for i, table in enumerate(self.tables)]
        x0 = self.norm(torch.cat([dense, *columns], dim=-1))
        crossed = self.cross(x0)
        if self.stacked:
            return self.head(self.deep(crossed)).squeeze(-1)
        return self.head(torch.cat([crossed, self.deep(x0)], dim=-1)).squeeze(-1)


def _cross(name: str, cross: Callable[[int, int], nn.Module], stacked: bool = False) -> Variant:
    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return CrossAndDeep(features, width, cross, stacked), dense_and_ids(features)

    oracle = Oracle(by_size(build), numbered("tables"))
    return Variant(name, "DCN-v2" if "v2" in name else "DCN", build, oracle)


class WideAndDeep(nn.Module):
    """The wide part has its own first-order tables, and one for the cross of the first two fields."""

    def __init__(self, features: int, width: int, wide: int) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Embedding(rows_of(f), 1) for f in range(wide))
        self.crossed = nn.Embedding(31, 1)
        self.deep_tables = nn.ModuleList(nn.EmbeddingBag(rows_of(f), width, mode="mean") for f in range(features))
        self.wide_dense = nn.Linear(DENSE, 1)
        self.deep = mlp([DENSE + features * width, 24, 12, 1], norm=True, dropout=0.1)

    def forward(self, dense: Tensor, sparse: Tensor) -> dict[str, Tensor]:
        wide = self.wide_dense(dense) + self.crossed((sparse[:, 0] * 7 + sparse[:, 1]) % 31)
        for i, table in enumerate(self.wide):
            wide = wide + table(sparse[:, i])
        vectors = [table(sparse[:, i : i + 1]) for i, table in enumerate(self.deep_tables)]
        logit = (wide + self.deep(torch.cat([dense, *vectors], 1))).view(-1)
        return {"logit": logit, "probability": logit.sigmoid()}


def wide_deep(features: int = FEATURES, width: int = WIDTH, wide: int | None = None) -> Built:
    count = features if wide is None else wide
    return WideAndDeep(features, width, count), dense_and_ids(max(features, count))


class FirstOrderDeepFM(nn.Module):
    """First-order weights for ids and numbers, numbers scaled into vectors of the same stack by a parameter."""

    def __init__(self, features: int, width: int, linear: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Embedding(rows_of(f), 1) for f in range(linear))
        self.second = nn.ModuleList(nn.Embedding(rows_of(f), width) for f in range(features))
        self.first_dense = nn.Linear(DENSE, 1)
        self.second_dense = nn.Parameter(torch.randn(DENSE, width) * 0.1)
        self.deep = mlp([(features + DENSE) * width, 16, 8], last=True, dropout=0.1)
        self.head = nn.Linear(8 + width + 1, 1)

    def forward(self, numbers: Tensor, ids: Tensor) -> Tensor:
        first = [table(ids[:, i]) for i, table in enumerate(self.first)]
        linear = torch.cat(first, dim=1).sum(dim=1, keepdim=True) + self.first_dense(numbers)
        scaled = numbers.unsqueeze(2) * self.second_dense.unsqueeze(0)
        looked_up = torch.stack([table(ids[:, i]) for i, table in enumerate(self.second)], dim=1)
        vectors = torch.cat([looked_up, scaled], dim=1)
        pairs = 0.5 * (vectors.sum(dim=1).pow(2) - vectors.pow(2).sum(dim=1))
        deep = self.deep(vectors.reshape(vectors.shape[0], -1))
        return torch.sigmoid(self.head(torch.cat([linear, pairs, deep], dim=1))).squeeze(-1)


def first_order_deepfm(features: int = FEATURES, width: int = WIDTH, linear: int | None = None) -> Built:
    count = features if linear is None else linear
    return FirstOrderDeepFM(features, width, count), dense_and_ids(max(features, count))


class SharedTables(nn.Module):
    """The first two fields (user and author, say) may read one table."""

    def __init__(self, features: int, width: int, shared: bool) -> None:
        super().__init__()
        self.shared = int(shared)
        self.tables = nn.ModuleList(nn.Embedding(rows_of(max(f, 1)), width) for f in range(self.shared, features))
        self.deep = mlp([features * width + DENSE, 16, 1])

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        vectors = [self.tables[max(i - self.shared, 0)](sparse[:, i]) for i in range(sparse.shape[1])]
        return self.deep(torch.cat([*vectors, dense], dim=1))


def shared_tables(features: int = FEATURES, width: int = WIDTH, shared: bool = True) -> Built:
    return SharedTables(features, width, shared), dense_and_ids(features)


VARIANTS = [
    _cross("dcn_v1", CrossV1),
    _cross("dcn_v2_full", CrossLinear),
    _cross("dcn_v2_full_stacked", CrossLinear, stacked=True),
    _cross("dcn_v2_kernels", CrossKernels),
    _cross("dcn_v2_low_rank", CrossLowRank),
    _cross("dcn_v2_low_rank_kernels", CrossLowRankKernels, stacked=True),
    _cross("dcn_v2_mix", CrossMix),
    Variant("wide_deep", "Wide&Deep", wide_deep, Oracle(wide_deep, numbered("deep_tables"))),
    Variant("deepfm_numbers_in_stack", "DeepFM", first_order_deepfm, Oracle(first_order_deepfm, numbered("second"))),
    Variant(
        "shared_tables",
        "two fields, one table",
        shared_tables,
        Oracle(lambda streams, dim, features: shared_tables(streams, dim, False), numbered("tables")),
    ),
]
