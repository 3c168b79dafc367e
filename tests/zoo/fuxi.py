"""Models in the style of FuxiCTR: one dict of columns goes in, a dict with the prediction comes out.

Ids are looked up one by one, numeric columns become vectors by ``nn.Linear(1, N)``, an optional padded sequence is
pooled by a masked mean; all are stacked to ``(B, fields, N)``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.zoo.fuxi_layers import (
    Aggregation,
    DotWithDense,
    FeatureGates,
    HadamardCIN,
    HeadsOverFields,
    InnerProductSum,
    MaskNetPart,
    WuKongPart,
)  # fmt: skip
from tests.zoo.spec import (
    FEATURES,
    WIDTH,
    Batch,
    Built,
    Oracle,
    Variant,
    dense_of,
    generator,
    ids_of,
    mlp,
    rows_of,
    sequence_of,
)  # fmt: skip

LENGTH = 4
Model = Callable[[int, int], nn.Module]


class MaskedMean(nn.Module):
    """Mean over the positions whose vector is not all zero (padding is a zero row)."""

    def forward(self, embedding_matrix: Tensor) -> Tensor:
        mask = torch.any(embedding_matrix != 0, dim=-1, keepdim=True).float()
        return torch.sum(embedding_matrix * mask, dim=1) / (torch.sum(mask, dim=1) + 1e-12)


class Embedder(nn.Module):
    """Columns to vectors, in the order of the feature map."""

    def __init__(self, features: int, width: int, numbers: int, sequence: bool, share: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        self.kinds: dict[str, str] = {}
        for i in range(numbers):
            self.layers[f"I{i}"] = nn.Linear(1, width, bias=False)
            self.kinds[f"I{i}"] = "numeric"
        for i in range(features):
            self.layers[f"C{i}"] = nn.Embedding(rows_of(i), width)
            self.kinds[f"C{i}"] = "categorical"
        if sequence:
            self.layers["hist"] = self.layers["C4"] if share else nn.Embedding(23, width, padding_idx=0)
            self.kinds["hist"] = "sequence"
        self.pooling = MaskedMean()

    def forward(self, X: dict[str, Tensor]) -> dict[str, Tensor]:
        vectors = OrderedDict()
        for name, kind in self.kinds.items():
            if kind == "numeric":
                vectors[name] = self.layers[name](X[name].float().view(-1, 1))
            elif kind == "categorical":
                vectors[name] = self.layers[name](X[name].long())
            else:
                vectors[name] = self.pooling(self.layers[name](X[name].long()))
        return vectors


class StackModel(nn.Module):
    """Logit = the sum of the parts over the stack, plus an MLP over the flat vectors."""

    def __init__(
        self, features: int, width: int, numbers: int, sequence: bool, parts: Callable[[int, int], list[nn.Module]],
        hidden: bool, share: bool = False, first: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        fields = features + numbers + sequence
        self.embedding = Embedder(features, width, numbers, sequence, share)
        self.first_order = Embedder(first, 1, numbers, False) if first else None
        self.parts = nn.ModuleList(parts(fields, width))
        self.mlp = mlp([fields * width, 16, 8, 1], norm=True, dropout=0.1) if hidden else None

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = {k: v for k, v in inputs.items() if k != "label"}
        feature_emb = torch.stack(list(self.embedding(X).values()), dim=1)
        y_pred = 0
        for part in self.parts:
            y_pred = y_pred + part(feature_emb)
        if self.first_order is not None:
            y_pred = y_pred + torch.stack(list(self.first_order(X).values()), dim=1).sum(dim=1)
        if self.mlp is not None:
            y_pred = y_pred + self.mlp(feature_emb.flatten(start_dim=1))
        return {"y_pred": torch.sigmoid(y_pred)}


class CrossStack(nn.Module):
    """DCN-v2 over the flat stack, with a squeeze of the batch's last dimension at the end."""

    def __init__(self, fields: int, width: int) -> None:
        super().__init__()
        flat = fields * width
        self.crossnet = nn.ModuleList(nn.Linear(flat, flat) for _ in range(2))
        self.parallel = mlp([flat, 12, 6], last=True, dropout=0.1)
        self.fc = nn.Linear(flat + 6, 1)

    def forward(self, feature_emb: Tensor) -> Tensor:
        flat = feature_emb.flatten(start_dim=1)
        x_i = flat
        for layer in self.crossnet:
            x_i = x_i + flat * layer(x_i)
        return self.fc(torch.cat([x_i, self.parallel(flat)], dim=-1))


class AttentionStack(nn.Module):
    def __init__(self, fields: int, width: int) -> None:
        super().__init__()
        self.self_attention = nn.Sequential(HeadsOverFields(width, 8, 2), HeadsOverFields(8, 8, 2))
        self.fc = nn.Linear(fields * 8, 1)

    def forward(self, feature_emb: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.self_attention(feature_emb), start_dim=1))


class DotStack(nn.Module):
    def __init__(self, fields: int, width: int) -> None:
        super().__init__()
        self.interact = DotWithDense(fields)
        self.top = mlp([self.interact.units + fields * width, 12, 1])

    def forward(self, feature_emb: Tensor) -> Tensor:
        return self.top(torch.cat([self.interact(feature_emb), feature_emb.flatten(start_dim=1)], dim=-1))


class FinalMLP(nn.Module):
    """Two MLPs over gated vectors; the contexts of the gates are a parameter, or two features used once more."""

    def __init__(self, features: int, width: int, numbers: int, contexts: bool) -> None:
        super().__init__()
        flat = (features + numbers) * width
        self.embedding = Embedder(features, width, numbers, False)
        self.contexts = contexts
        if not contexts:
            self.context1 = nn.Parameter(torch.randn(1, 6) * 0.3)
            self.context2 = nn.Parameter(torch.randn(1, 6) * 0.3)
        self.gates = FeatureGates(flat, (width, width) if contexts else (6, 6))
        self.mlp1 = mlp([flat, 16, 8], last=True, norm=True, dropout=0.1)
        self.mlp2 = mlp([flat, 12, 8], last=True)
        self.fusion = Aggregation(8, 8, 2)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        vectors = self.embedding(inputs)
        flat = torch.stack(list(vectors.values()), dim=1).flatten(start_dim=1)
        if self.contexts:
            one, two = vectors["C0"], vectors["C1"]
        else:
            one, two = self.context1.repeat(flat.size(0), 1), self.context2.repeat(flat.size(0), 1)
        gated1, gated2 = self.gates(flat, one, two)
        return {"y_pred": torch.sigmoid(self.fusion(self.mlp1(gated1), self.mlp2(gated2)))}


def columns(features: int, numbers: int, sequence: bool, label: bool = True) -> Batch:
    """Calls ``model({column: tensor, ...})``; the label rides along, as in a data loader."""

    def batch(n: int, seed: int = 0) -> tuple[dict[str, Tensor]]:
        ids, dense = ids_of(n, features, seed), dense_of(n, seed)
        found = {f"C{i}": ids[:, i] for i in range(features)} | {f"I{i}": dense[:, i] for i in range(numbers)}
        if sequence:
            found["hist"] = sequence_of(n, LENGTH, 23, seed)
        if label:
            found["label"] = torch.randint(0, 2, (n,), generator=generator(seed, 41)).float()
        return (found,)

    return batch


def _stack(
    name: str, family: str, parts: Callable[[int, int], list[nn.Module]], *, numbers: int = 2, hidden: bool = True,
    sequence: bool = False, share: bool = False, first_order: bool = False, why: str = "",
) -> Variant:  # fmt: skip
    def made(features: int, width: int, first: int, sequence: bool) -> Built:
        count = first if first_order else 0
        model = StackModel(features, width, numbers, sequence, parts, hidden, share, count)
        return model, columns(max(features, count), numbers, sequence)

    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return made(features, width, features, sequence)

    def as_built(streams: int, dim: int, features: int) -> Built:
        return made(streams, dim, features, False)  # what a sequence became is a stream as any other

    oracle = None if why else Oracle(as_built, lambda streams: [f"embedding.layers.C{i}" for i in range(streams)])
    return Variant(name, family, build, oracle, why)


def _final_mlp(name: str, contexts: bool) -> Variant:
    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return FinalMLP(features, width, 1, contexts), columns(features, 1, False, label=False)

    why = "two features are used outside the join as well" if contexts else ""
    oracle = Oracle(
        lambda streams, dim, features: build(streams, dim),
        lambda streams: [f"embedding.layers.C{i}" for i in range(streams)],
    )
    return Variant(name, "FuxiCTR FinalMLP", build, None if contexts else oracle, why)


def _masknet(name: str, parallel: bool) -> Variant:
    why = "every field has its own LayerNorm"
    return _stack(name, "FuxiCTR MaskNet", lambda f, n: [MaskNetPart(f, n, parallel)], hidden=False, why=why)


VARIANTS = [
    _stack("fuxi_deepfm", "FuxiCTR DeepFM", lambda f, n: [InnerProductSum()], first_order=True),
    _stack("fuxi_deepfm_sequence", "FuxiCTR DeepFM + sequence", lambda f, n: [InnerProductSum()], sequence=True),
    _stack(
        "fuxi_deepfm_shared_sequence",
        "FuxiCTR DeepFM + sequence, shared table",
        lambda f, n: [InnerProductSum()],
        sequence=True,
        share=True,
    ),
    _stack("fuxi_dlrm", "FuxiCTR DLRM", lambda f, n: [DotStack(f, n)], numbers=3, hidden=False),
    _stack("fuxi_dcnv2", "FuxiCTR DCNv2", lambda f, n: [CrossStack(f, n)], hidden=False),
    _stack("fuxi_xdeepfm", "FuxiCTR xDeepFM", lambda f, n: [HadamardCIN(f, (6, 4))], first_order=True),
    _stack("fuxi_autoint", "FuxiCTR AutoInt", lambda f, n: [AttentionStack(f, n)]),
    _final_mlp("fuxi_finalmlp", contexts=False),
    _final_mlp("fuxi_finalmlp_contexts", contexts=True),
    _masknet("fuxi_masknet_serial", parallel=False),
    _masknet("fuxi_masknet_parallel", parallel=True),
    _stack("fuxi_wukong", "WuKong", lambda f, n: [WuKongPart(f, n)], numbers=0, hidden=False),
    _stack("fuxi_wukong_numbers", "WuKong", lambda f, n: [WuKongPart(f, n)], numbers=2, hidden=False),
]
