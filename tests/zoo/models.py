"""Flat recommenders as their users write them: nothing here knows of this package.

Every builder takes the number of features, their width and optionally the dense width,
and returns ``(model, batch)`` where ``batch(n, seed)`` makes a call for ``n`` samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Batch = Callable[[int, int], tuple[Any, ...]]
DENSE = 5


def rows_of(feature: int) -> int:
    return 11 + 7 * feature


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def matrix_batch(features: int) -> Batch:
    def batch(n: int, seed: int = 0) -> tuple[Any, ...]:
        g = torch.Generator().manual_seed(seed)
        ids = [torch.randint(0, rows_of(f), (n,), generator=g) for f in range(features)]
        return torch.randn(n, DENSE, generator=g), torch.stack(ids, 1)

    return batch


class DLRM(nn.Module):
    """Pooled single-hot tables, dot interaction over a buffer of pairs."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows_of(f), width, mode="sum") for f in range(features))
        self.bottom = nn.Sequential(mlp(DENSE, 12, width), nn.ReLU())
        n = features + 1
        self.register_buffer("pairs", torch.tril_indices(n, n, offset=-1), persistent=False)
        self.top = mlp(width + n * (n - 1) // 2, 16, 1)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = self.bottom(dense)
        vectors = [x] + [table(sparse[:, f : f + 1]) for f, table in enumerate(self.tables)]
        t = torch.cat(vectors, dim=1).view(x.size(0), -1, x.size(1))
        z = torch.bmm(t, t.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return self.top(torch.cat([x, z], dim=1)).squeeze(1)


class MultiHotDLRM(nn.Module):
    """Bags with offsets of varying length, mean and sum pooling, pairs listed in Python."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.bags = nn.ModuleDict(
            {f"field_{f}": nn.EmbeddingBag(rows_of(f), width, mode="mean" if f % 2 else "sum") for f in range(features)}
        )
        self.bottom = mlp(DENSE, 12, width)
        n = features + 1
        self.top = mlp(width + n * (n - 1) // 2, 16, 1)

    def forward(self, dense: Tensor, offsets: list[Tensor], ids: list[Tensor]) -> Tensor:
        x = torch.relu(self.bottom(dense))
        looked_up = []
        for k, bag in enumerate(self.bags.values()):
            looked_up.append(bag(ids[k], offsets[k]))
        t = torch.stack([x, *looked_up], dim=1)
        z = torch.matmul(t, t.transpose(-1, -2))
        _, ni, nj = z.shape
        rows = [i for i in range(ni) for j in range(i)]
        cols = [j for i in range(nj) for j in range(i)]
        return self.top(torch.cat([x, z[:, rows, cols]], dim=1)).squeeze(1)


def bag_batch(features: int) -> Batch:
    def batch(n: int, seed: int = 0) -> tuple[Any, ...]:
        g = torch.Generator().manual_seed(seed)
        offsets, ids = [], []
        for f in range(features):
            lengths = torch.randint(0, 4, (n,), generator=g)
            offsets.append(torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)[:-1]]))
            ids.append(torch.randint(0, rows_of(f), (int(lengths.sum()),), generator=g))
        return torch.randn(n, DENSE, generator=g), offsets, ids

    return batch


class DCNv2(nn.Module):
    """Embedding columns beside dense ones, cross layers, a deep tower in parallel, BatchNorm and dropout."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows_of(f), width) for f in range(features))
        flat = DENSE + features * width
        self.cross = nn.ModuleList(nn.Linear(flat, flat) for _ in range(2))
        self.deep = nn.Sequential(nn.Linear(flat, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 8))
        self.norm = nn.LayerNorm(flat)
        self.head = nn.Linear(flat + 8, 1)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        columns = [table(sparse[:, f]) for f, table in enumerate(self.tables)]
        x0 = self.norm(torch.cat([dense, *columns], dim=-1))
        x = x0
        for layer in self.cross:
            x = x0 * layer(x) + x
        return self.head(torch.cat([x, self.deep(x0)], dim=1)).squeeze(-1)


class DeepFM(nn.Module):
    """First-order weights, FM by the square of the sum, and an MLP on the same vectors."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Embedding(rows_of(f), 1) for f in range(features))
        self.vectors = nn.ModuleList(nn.Embedding(rows_of(f), width) for f in range(features))
        self.dense = nn.Linear(DENSE, 1)
        self.deep = mlp(features * width, 16, 1)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        linear = torch.cat([e(sparse[:, f : f + 1]) for f, e in enumerate(self.first)], dim=1).sum(1)
        v = torch.cat([e(sparse[:, f : f + 1]) for f, e in enumerate(self.vectors)], dim=1)
        pairs = 0.5 * (v.sum(dim=1).pow(2) - v.pow(2).sum(dim=1)).sum(1, keepdim=True)
        return (linear + pairs + self.dense(dense) + self.deep(v.flatten(1))).squeeze(1)


class Products(nn.Module):
    """Inner products over lists of pairs, in which every vector is several times, and vectors by position."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows_of(f), width) for f in range(features))
        self.fields = nn.ModuleList(nn.LayerNorm(width) for _ in range(features))
        self.top = mlp(DENSE + features * (features - 1) // 2 + features * width, 16, 1)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        vectors = [table(sparse[:, f]) for f, table in enumerate(self.tables)]
        pairs = list(itertools.combinations(vectors, 2))
        rows, columns = torch.stack([a for a, _ in pairs], 1), torch.stack([b for _, b in pairs], 1)
        own = [norm(vector) for norm, vector in zip(self.fields, vectors, strict=True)]
        return self.top(torch.cat([dense, (rows * columns).sum(2), *own], dim=1)).squeeze(1)


def dlrm(features: int = 6, width: int = 8) -> tuple[nn.Module, Batch]:
    return DLRM(features, width), matrix_batch(features)


def multi_hot_dlrm(features: int = 6, width: int = 8) -> tuple[nn.Module, Batch]:
    return MultiHotDLRM(features, width), bag_batch(features)


def dcn_v2(features: int = 6, width: int = 8) -> tuple[nn.Module, Batch]:
    return DCNv2(features, width), matrix_batch(features)


def deepfm(features: int = 6, width: int = 8) -> tuple[nn.Module, Batch]:
    return DeepFM(features, width), matrix_batch(features)


def _collection(features: int, width: int) -> Any:
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=f"t{f}", embedding_dim=width, num_embeddings=rows_of(f), feature_names=[f"cat_{f}"])
            for f in range(features)
        ]
    )


def jagged_batch(features: int) -> Batch:
    def batch(n: int, seed: int = 0) -> tuple[Any, ...]:
        from torchrec import KeyedJaggedTensor

        dense, offsets, ids = bag_batch(features)(n, seed)
        lengths = [torch.diff(torch.cat([o, torch.tensor([len(i)])])) for o, i in zip(offsets, ids, strict=True)]
        keys = [f"cat_{f}" for f in range(features)]
        return dense, KeyedJaggedTensor(keys=keys, values=torch.cat(ids), lengths=torch.cat(lengths))

    return batch


def torchrec_dlrm(features: int = 6, width: int = 8) -> tuple[nn.Module, Batch]:
    from torchrec.models.dlrm import DLRM as TorchrecDLRM

    model = TorchrecDLRM(_collection(features, width), DENSE, [12, width], [16, 1])
    return model, jagged_batch(features)


def torchrec_dcn(features: int = 6, width: int = 8) -> tuple[nn.Module, Batch]:
    from torchrec.models.dlrm import DLRM_DCN

    model = DLRM_DCN(_collection(features, width), DENSE, [12, width], [16, 1], dcn_num_layers=2, dcn_low_rank_dim=4)
    return model, jagged_batch(features)


def products(features: int = 6, width: int = 8) -> tuple[nn.Module, Batch]:
    return Products(features, width), matrix_batch(features)


#: Models whose interaction cannot take other streams.
TIED: dict[str, Callable[..., tuple[nn.Module, Batch]]] = {"products": products}

ZOO: dict[str, Callable[..., tuple[nn.Module, Batch]]] = {
    "dlrm": dlrm,
    "multi_hot_dlrm": multi_hot_dlrm,
    "dcn_v2": dcn_v2,
    "deepfm": deepfm,
    "torchrec_dlrm": torchrec_dlrm,
    "torchrec_dcn": torchrec_dcn,
}
