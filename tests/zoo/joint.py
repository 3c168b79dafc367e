"""Models over one joint table with field offsets: DLRM, and the factorization machine family.

All fields share a table; field ``i`` reads the rows from ``offsets[i]`` on. Two spellings: a numpy array made a
tensor in ``forward``, and a buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.joint_layers import (
    CIN,
    FM,
    MLP,
    Cross,
    FeaturesEmbedding,
    FeaturesLinear,
    FieldAwareEmbedding,
    InnerProduct,
    OuterProduct,
    PairAttention,
    SelfAttention,
)  # fmt: skip
from tests.zoo.spec import DENSE, FEATURES, WIDTH, Built, Oracle, Variant, by_size, dense_and_ids, only_ids, rows_of


class JointDLRM(nn.Module):
    """Numerical vector first, then all categorical ones; the interaction may be padded by a column of zeros."""

    def __init__(self, rows: list[int], width: int, pad: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sum(rows), width)
        offsets = torch.tensor([0, *rows]).cumsum(0)[:-1]
        self.register_buffer("offsets", offsets)
        self.bottom_mlp = nn.Sequential(nn.Linear(DENSE, 12), nn.ReLU(), nn.Linear(12, width), nn.ReLU())
        vectors = len(rows) + 1
        self.pad = pad
        pairs = vectors * (vectors - 1) // 2
        self.top_mlp = nn.Sequential(nn.Linear(width + pairs + int(pad), 16), nn.ReLU(), nn.Linear(16, 1))
        tril = torch.tensor([[i, j] for i in range(vectors) for j in range(i)]).t().contiguous()
        self.register_buffer("tril_indices", tril, persistent=False)

    def forward(self, numerical: Tensor, categorical: Tensor) -> Tensor:
        bottom = self.bottom_mlp(numerical)
        embeddings = self.embedding(categorical + self.offsets[None, :])
        concat = torch.cat([bottom.unsqueeze(1), embeddings], dim=1)
        interaction = torch.bmm(concat, torch.transpose(concat, 1, 2))
        flat = interaction[:, self.tril_indices[0], self.tril_indices[1]]
        parts = [bottom, flat]
        if self.pad:
            parts.append(torch.zeros(numerical.size(0), 1, dtype=flat.dtype, device=flat.device))
        return self.top_mlp(torch.cat(parts, dim=1))


def joint_dlrm(features: int = FEATURES, width: int = WIDTH, pad: bool = False) -> Built:
    return JointDLRM([rows_of(f) for f in range(features)], width, pad), dense_and_ids(features)


class JointModel(nn.Module):
    """First-order weights + a part over the vectors + an MLP over the flat vectors, any of them left out."""

    def __init__(self, field_dims: list[int], width: int, linear: bool, part: Any, flat: Any) -> None:
        super().__init__()
        self.linear = FeaturesLinear(field_dims) if linear else None
        self.embedding = FeaturesEmbedding(field_dims, width)
        self.embed_output_dim = len(field_dims) * width
        self.part = part
        self.flat = flat

    def forward(self, x: Tensor) -> Tensor:
        embed_x = self.embedding(x)
        terms = [self.linear(x)] if self.linear is not None else []
        if self.part is not None:
            terms.append(self.part(embed_x))
        if self.flat is not None:
            terms.append(self.flat(embed_x.view(-1, self.embed_output_dim)))
        return torch.sigmoid(sum(terms).squeeze(1))


class DeepAndCross(nn.Module):
    def __init__(self, field_dims: list[int], width: int) -> None:
        super().__init__()
        self.embedding = FeaturesEmbedding(field_dims, width)
        self.embed_output_dim = len(field_dims) * width
        self.cn = Cross(self.embed_output_dim, 2)
        self.mlp = MLP(self.embed_output_dim, (16, 8), 0.2, output_layer=False)
        self.linear = nn.Linear(8 + self.embed_output_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        embed_x = self.embedding(x).view(-1, self.embed_output_dim)
        x_stack = torch.cat([self.cn(embed_x), self.mlp(embed_x)], 1)
        return torch.sigmoid(self.linear(x_stack).squeeze(1))


class ProductNet(nn.Module):
    """PNN: products of pairs beside the flat vectors."""

    def __init__(self, field_dims: list[int], width: int, outer: bool) -> None:
        super().__init__()
        fields = len(field_dims)
        self.pn: nn.Module = OuterProduct(fields, width) if outer else InnerProduct()
        self.embedding = FeaturesEmbedding(field_dims, width)
        self.embed_output_dim = fields * width
        self.mlp = MLP(fields * (fields - 1) // 2 + self.embed_output_dim, (16,), 0.1)

    def forward(self, x: Tensor) -> Tensor:
        embed_x = self.embedding(x)
        cross_term = self.pn(embed_x)
        x = torch.cat([embed_x.view(-1, self.embed_output_dim), cross_term], dim=1)
        return torch.sigmoid(self.mlp(x).squeeze(1))


class FieldAwareFM(nn.Module):
    def __init__(self, field_dims: list[int], width: int) -> None:
        super().__init__()
        self.linear = FeaturesLinear(field_dims)
        self.ffm = FieldAwareEmbedding(field_dims, width)

    def forward(self, x: Tensor) -> Tensor:
        ffm_term = torch.sum(torch.sum(self.ffm(x), dim=1), dim=1, keepdim=True)
        return torch.sigmoid((self.linear(x) + ffm_term).squeeze(1))


Maker = Callable[[list[int], int], nn.Module]


def _variant(name: str, family: str, make: Maker, *, linear: bool = False, why_no_oracle: str = "") -> Variant:
    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return make([rows_of(f) for f in range(features)], width), only_ids(features)

    oracle = Oracle(by_size(build), lambda streams: ["embedding.embedding"], copied=("linear",) if linear else ())
    return Variant(name, family, build, None if why_no_oracle else oracle, why_no_oracle)


def _make(linear: bool, part: Callable[[int, int], Any] | None, flat: tuple[int, ...] | None) -> Maker:
    def make(dims: list[int], width: int) -> nn.Module:
        deep = MLP(len(dims) * width, flat, 0.2) if flat else None
        return JointModel(dims, width, linear, part(len(dims), width) if part else None, deep)

    return make


def _dlrm(name: str, pad: bool) -> Variant:
    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return joint_dlrm(features, width, pad)

    oracle = Oracle(by_size(build), lambda streams: ["embedding"], skipped=("offsets",))
    return Variant(name, "DLRM, one joint table", build, oracle)


VARIANTS = [
    _dlrm("joint_dlrm", False),
    _dlrm("joint_dlrm_padded", True),
    _variant("joint_deepfm", "pytorch-fm DeepFM", _make(True, lambda f, n: FM(), (16, 8)), linear=True),
    _variant("joint_wide_deep", "pytorch-fm Wide&Deep", _make(True, None, (16, 8)), linear=True),
    _variant("joint_dcn", "pytorch-fm DCN v1", DeepAndCross),
    _variant("joint_xdeepfm", "pytorch-fm xDeepFM", _make(True, lambda f, n: CIN(f, (8, 6)), (16,)), linear=True),
    _variant(
        "joint_xdeepfm_whole", "pytorch-fm xDeepFM", _make(True, lambda f, n: CIN(f, (8, 6), False), (16,)), linear=True
    ),
    _variant("joint_autoint", "pytorch-fm AutoInt", _make(True, SelfAttention, (16,)), linear=True),
    _variant("joint_pnn_inner", "pytorch-fm PNN", lambda dims, n: ProductNet(dims, n, False)),
    _variant("joint_pnn_outer", "pytorch-fm PNN", lambda dims, n: ProductNet(dims, n, True)),
    _variant(
        "joint_afm", "pytorch-fm AFM", _make(True, lambda f, n: PairAttention(n, 6, (0.2, 0.2)), None), linear=True
    ),
    _variant("joint_ffm", "pytorch-fm FFM", FieldAwareFM, why_no_oracle="every field has its own place in the model"),
]
