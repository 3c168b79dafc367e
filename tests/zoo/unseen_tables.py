"""Ways to hold and call tables: offsets in a loop, hashing, compositions, shared tables, weighted bags, numbers
times vectors, per-field preparation.

Written as a user would write them, without a look at what the compiler knows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.spec import (
    DENSE,
    FEATURES,
    WIDTH,
    Built,
    Oracle,
    Variant,
    bags_of,
    by_size,
    dense_and_ids,
    dense_of,
    generator,
    ids_of,
    mlp,
    numbered,
    only_ids,
    rows_of,
)


def _dot(x: Tensor) -> Tensor:
    i, j = torch.tril_indices(x.size(1), x.size(1), -1)
    return torch.bmm(x, x.transpose(1, 2))[:, i, j]


class JointLoop(nn.Module):
    """One big table, called column by column at its offset."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        rows = [rows_of(i) for i in range(features)]
        self.offsets = [0, *itertools.accumulate(rows)][:-1]
        self.table = nn.Embedding(sum(rows), width)
        self.bottom = nn.Linear(DENSE, width)
        self.top = mlp([width + (features + 1) * features // 2, 16, 1])

    def forward(self, dense: Tensor, x: Tensor) -> Tensor:
        d = self.bottom(dense)
        vectors = [self.table(x[:, i] + self.offsets[i]) for i in range(x.shape[1])]
        return self.top(torch.cat([d, _dot(torch.stack([d, *vectors], dim=1))], dim=1))


class JointBuffer(JointLoop):
    """The same, with the offsets in a buffer."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        self.register_buffer("off", torch.tensor(self.offsets))

    def forward(self, dense: Tensor, x: Tensor) -> Tensor:
        d = self.bottom(dense)
        vectors = [self.table(x[:, i] + self.off[i]) for i in range(x.shape[1])]
        return self.top(torch.cat([d, _dot(torch.stack([d, *vectors], dim=1))], dim=1))


class JointNumpy(nn.Module):
    """One big table over all columns at once; offsets made with numpy inside forward, as in well-known code."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        rows = [rows_of(i) for i in range(features)]
        self.table = nn.Embedding(sum(rows), width)
        self.offsets = np.array((0, *np.cumsum(rows)[:-1]), dtype=np.int64)
        nn.init.xavier_uniform_(self.table.weight.data)
        self.width = features * width
        self.net = mlp([features * width, 16, 1])

    def forward(self, x: Tensor) -> Tensor:
        x = x + x.new_tensor(self.offsets).unsqueeze(0)
        return torch.sigmoid(self.net(self.table(x).view(-1, self.width)).squeeze(1))


class Hashed(nn.Module):
    """The hashing trick: ids modulo the rows of the table, two fields on one table."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(5 + i, width) for i in range(features - 1))
        self.net = mlp([features * width, 16, 1])

    def forward(self, ids: Tensor) -> Tensor:
        parts = [table(ids[:, i] % table.num_embeddings) for i, table in enumerate(self.tables)]
        parts.append(self.tables[0](torch.remainder(ids[:, -1] * 7919 + 13, self.tables[0].num_embeddings)))
        return self.net(torch.cat(parts, dim=1))


class Composed(nn.Module):
    """Quotient and remainder tables, both handed to the join, or multiplied, or added before it."""

    def __init__(self, features: int, width: int, how: str) -> None:
        super().__init__()
        self.how, self.base = how, 4
        self.q = nn.ModuleList(nn.Embedding(rows_of(i) // 4 + 1, width) for i in range(features))
        self.r = nn.ModuleList(nn.Embedding(4, width) for _ in range(features))
        streams = features * (2 if how == "both" else 1)
        self.net = mlp([streams * width, 16, 1])

    def forward(self, ids: Tensor) -> Tensor:
        parts = []
        for i, (q, r) in enumerate(zip(self.q, self.r, strict=True)):
            a = q(torch.div(ids[:, i], self.base, rounding_mode="floor"))
            b = r(ids[:, i] % self.base)
            parts.extend([a, b] if self.how == "both" else [a * b] if self.how == "mul" else [a + b])
        return self.net(torch.cat(parts, dim=1))


class WeightedBags(nn.Module):
    """Bags with a weight per id."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(rows_of(i), width, mode="sum") for i in range(features))
        self.net = mlp([features * width, 16, 1])

    def forward(self, offsets: list[Tensor], ids: list[Tensor], weights: list[Tensor]) -> Tensor:
        each = zip(self.bags, ids, offsets, weights, strict=True)
        return self.net(torch.cat([bag(i, o, per_sample_weights=w) for bag, i, o, w in each], dim=1))


class NumbersTimesVectors(nn.Module):
    """Dict inputs; a numeric feature scales a learned vector and stands beside the fields in the stack."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.categorical = nn.ModuleDict({f"cat_{i}": nn.Embedding(rows_of(i), width) for i in range(features)})
        self.numeric = nn.ParameterDict({f"num_{i}": nn.Parameter(torch.randn(width) * 0.3) for i in range(2)})
        self.net = mlp([(features + 2) * width + (features + 2) * (features + 1) // 2, 16, 1])

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        vectors = [table(batch[name]) for name, table in self.categorical.items()]
        vectors += [batch[name].unsqueeze(-1) * vector for name, vector in self.numeric.items()]
        x = torch.stack(vectors, dim=1)
        return {"logit": self.net(torch.cat([x.flatten(1), _dot(x)], dim=1)).squeeze(-1)}


class Dense13(nn.Module):
    """All numeric features times a matrix, concatenated with the stacked fields along the axis of fields."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows_of(i), width) for i in range(features))
        self.numeric = nn.Parameter(torch.randn(DENSE, width) * 0.2)
        self.net = mlp([(features + DENSE) * width, 16, 1])

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        fields = torch.stack([t(ids[:, i]) for i, t in enumerate(self.tables)], dim=1)
        numbers = torch.einsum("bi,id->bid", dense, self.numeric)
        return self.net(torch.cat((numbers, fields), dim=1).reshape(len(dense), -1))


class Prepared(nn.Module):
    """Every vector goes through its own dropout, norm or projection before the join."""

    def __init__(self, features: int, width: int, how: str) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows_of(i), width) for i in range(features))
        makers: dict[str, Callable[[], nn.Module]] = {
            "dropout": lambda: nn.Dropout(0.2),
            "norm": lambda: nn.LayerNorm(width),
            "batch": lambda: nn.BatchNorm1d(width),
            "linear": lambda: nn.Linear(width, width),
        }
        self.prepare = nn.ModuleList(makers[how]() for _ in range(features))
        self.net = mlp([features * width, 16, 1])

    def forward(self, ids: Tensor) -> Tensor:
        parts = [p(t(ids[:, i])) for i, (t, p) in enumerate(zip(self.tables, self.prepare, strict=True))]
        return self.net(torch.stack(parts, dim=1).flatten(1))


class Functional(nn.Module):
    """``F.embedding`` on parameters."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(rows_of(i), width) * 0.1) for i in range(features))
        self.net = mlp([features * width, 16, 1])

    def forward(self, ids: Tensor) -> Tensor:
        return self.net(torch.cat([F.embedding(ids[:, i], w) for i, w in enumerate(self.weights)], 1))


class CatOfCat(nn.Module):
    """Groups joined first, then the groups; split again by sizes later."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.users = nn.ModuleDict({f"u{i}": nn.Embedding(rows_of(i), width) for i in range(features // 2)})
        self.items = nn.ModuleDict({f"i{i}": nn.Embedding(rows_of(i), width) for i in range(features // 2, features)})
        self.sizes = [len(self.users) * width, len(self.items) * width]
        self.left, self.right = nn.Linear(self.sizes[0], 7), nn.Linear(self.sizes[1], 7)
        self.net = mlp([features * width + 7, 16, 1])

    def forward(self, ids: Tensor) -> Tensor:
        columns = dict(zip([*self.users, *self.items], ids.unbind(1), strict=True))
        u = torch.cat([table(columns[name]) for name, table in self.users.items()], dim=-1)
        v = torch.cat([table(columns[name]) for name, table in self.items.items()], dim=-1)
        x = torch.cat([u, v], dim=-1)
        a, b = torch.split(x, self.sizes, dim=-1)
        return self.net(torch.cat([x, torch.tanh(self.left(a) * self.right(b))], dim=-1))


class Chunked(nn.Module):
    """All fields in one tensor, cut in halves that gate one another (F*N even, so any width works)."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows_of(i), width) for i in range(features))
        self.up = nn.Linear(features * width, 2 * features * width)
        self.out = nn.Linear(features * width, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.cat([t(ids[:, i]) for i, t in enumerate(self.tables)], 1)
        value, gate = self.up(x).chunk(2, dim=-1)
        return self.out(value * torch.sigmoid(gate) + x)


class TwoColumns(nn.Module):
    """One table for two id columns (who sends, who receives), the others with their own."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.person = nn.Embedding(rows_of(1), width)
        self.tables = nn.ModuleList(nn.Embedding(rows_of(i + 2), width) for i in range(features - 2))
        self.top = mlp([features * (features - 1) // 2 + width * features, 16, 1])

    def forward(self, ids: Tensor) -> Tensor:
        vectors = [self.person(ids[:, 0]), self.person(ids[:, 1])]
        vectors += [t(ids[:, i + 2]) for i, t in enumerate(self.tables)]
        x = torch.stack(vectors, 1)
        return self.top(torch.cat([_dot(x), x.flatten(1)], 1))


class PNN(nn.Module):
    """Inner products by two lists of pairs, as in well-known code."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows_of(i), width) for i in range(features))
        self.net = mlp([features * (features - 1) // 2 + features * width, 16, 1])

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.stack([t(ids[:, i]) for i, t in enumerate(self.tables)], 1)
        fields = x.shape[1]
        row, col = [], []
        for i in range(fields - 1):
            for j in range(i + 1, fields):
                row.append(i)
                col.append(j)
        products = torch.sum(x[:, row] * x[:, col], dim=2)
        return self.net(torch.cat([x.view(x.shape[0], -1), products], dim=1))


class ONN(nn.Module):
    """A table per field and partner; pairs pick their own."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.tables = nn.ModuleList(
            nn.ModuleList(nn.Embedding(rows_of(i), width) for _ in range(features)) for i in range(features)
        )
        self.net = mlp([features * width + features * (features - 1) // 2, 16, 1])

    def forward(self, ids: Tensor) -> Tensor:
        grid = [[t(ids[:, i]) for t in row] for i, row in enumerate(self.tables)]
        own = torch.cat([grid[i][i] for i in range(self.features)], dim=1)
        pairs = [
            (grid[i][j] * grid[j][i]).sum(1, keepdim=True) for i, j in itertools.combinations(range(self.features), 2)
        ]
        return self.net(torch.cat([own, *pairs], dim=1))


def _ids(kind: type[nn.Module], *args: object) -> Any:
    return lambda features=FEATURES, width=WIDTH: (kind(features, width, *args), only_ids(features))


def _dense(kind: type[nn.Module], *args: object) -> Any:
    return lambda features=FEATURES, width=WIDTH: (kind(features, width, *args), dense_and_ids(features))


def weighted(features: int = FEATURES, width: int = WIDTH) -> Built:
    """Bags with weights."""

    def batch(n: int, seed: int = 0) -> tuple[Any, ...]:
        offsets, ids = bags_of(n, features, seed)
        return offsets, ids, [torch.rand(len(i), generator=generator(seed, f, 2)) for f, i in enumerate(ids)]

    return WeightedBags(features, width), batch


def numbers(features: int = FEATURES, width: int = WIDTH) -> Built:
    """A dict of columns."""

    def batch(n: int, seed: int = 0) -> tuple[dict[str, Tensor]]:
        ids, dense = ids_of(n, features, seed), dense_of(n, seed)
        return ({f"cat_{i}": ids[:, i] for i in range(features)} | {f"num_{i}": dense[:, i] for i in range(2)},)

    return NumbersTimesVectors(features, width), batch


def _plain(name: str, family: str, build: Any, path: str = "tables") -> Variant:
    return Variant(name, family, build, Oracle(by_size(build), numbered(path)))


VARIANTS = [
    Variant("u_joint_loop", "DLRM, one table", _dense(JointLoop)),
    Variant("u_joint_buffer", "DLRM, one table", _dense(JointBuffer)),
    Variant("u_joint_numpy", "torchfm", _ids(JointNumpy)),
    Variant("u_hashed", "hashing trick", _ids(Hashed)),
    Variant("u_composed_both", "compositional", _ids(Composed, "both")),
    Variant("u_composed_mul", "compositional", _ids(Composed, "mul")),
    Variant("u_composed_add", "compositional", _ids(Composed, "add")),
    Variant("u_weighted_bags", "bags", weighted),
    Variant("u_numbers", "AutoInt inputs", numbers),
    _plain("u_dense_matrix", "numbers times vectors", _dense(Dense13)),
    Variant("u_prep_dropout", "prepared", _ids(Prepared, "dropout")),
    Variant("u_prep_norm", "prepared", _ids(Prepared, "norm")),
    Variant("u_prep_batch", "prepared", _ids(Prepared, "batch")),
    Variant("u_prep_linear", "prepared", _ids(Prepared, "linear")),
    Variant("u_functional", "functional", _ids(Functional)),
    Variant("u_cat_of_cat", "user and item", _ids(CatOfCat)),
    _plain("u_chunked", "GLU", _ids(Chunked)),
    Variant("u_two_columns", "one table, two columns", _ids(TwoColumns)),
    _plain("u_pnn", "PNN", _ids(PNN)),
    Variant("u_onn", "ONN", _ids(ONN)),
]
