"""The models of the negative zoo: each is :class:`Base` with one thing that no rewrite can keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmt_plugin import mark_embeddings
from tests.zoo.checks import TRACE_BATCH
from tests.zoo.spec import DENSE, WIDTH, Built, bags_of, dense_and_ids, dense_of, mlp, rows_of

FIELDS = 6


class Base(nn.Module):
    """A plain model that is fine: tables, one join, an MLP. The cases spoil one thing each."""

    def __init__(self, fields: int = FIELDS, **table: Any) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows_of(f), WIDTH, **table) for f in range(fields))
        self.deep = mlp([DENSE + fields * WIDTH, 12, 1])

    def vectors(self, ids: Tensor) -> list[Tensor]:
        return [table(ids[:, i]) for i, table in enumerate(self.tables)]

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.deep(torch.cat([dense, *self.vectors(ids)], dim=1))


class Behind(Base):
    """The plain model with one more module behind it; that module is called ``last``."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.last = last

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.last(super().forward(dense, ids))


class BranchOnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            x = x * 2
        return x


class NumberFromData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        longest = int(x.max().item())
        return x + longest


class SizeFromData(nn.Module):
    """How many entries there are is only known once there are data."""

    def forward(self, x: Tensor) -> Tensor:
        return x - torch.masked_select(x, x > 0).sum()


class LoopOverBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[i : i + 1] * 2 for i in range(x.size(0))])


class FixedBatch(nn.Module):
    """The batch size of the example is written into the model."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), 1) / torch.arange(1, x.shape[0].__index__() + 1).unsqueeze(1)


class PathOfMode(nn.Module):
    """Another computation in train mode, which no layer holds."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else torch.relu(x)


class MadeInForward(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.Linear(1, 1)(x)


class ThroughNumpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + float(x.detach().numpy().sum())


class CountsCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x / self.calls


class AssignsItems(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.size(0), 2)
        out[:, 0][:] = x[:, 0]
        return out


class WritesIntoTable(Base):
    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        with torch.no_grad():
            self.tables[2].weight[0].zero_()
        return super().forward(dense, ids)


class WritesIntoVector(Base):
    """Changes an embedding that somebody reads through another view of it."""

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        vectors = self.vectors(ids)
        first = vectors[0].detach()
        vectors[0].data[:, 0].mul_(0.5)
        return self.deep(torch.cat([dense, first, *vectors[1:]], dim=1))


class UsedOutside(Base):
    """Field 3 is in the join, and gates the result besides."""

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        vectors = self.vectors(ids)
        gate = torch.sigmoid(vectors[3].sum(dim=1, keepdim=True))
        return self.deep(torch.cat([dense, *vectors], dim=1)) * gate


class Repeated(Base):
    """Products of some pairs, from lists in which every vector is several times."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2 * FIELDS, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        v = self.vectors(ids)
        pairs = [(i, (i + step) % FIELDS) for step in (1, 2) for i in range(FIELDS)]
        left, right = torch.stack([v[i] for i, _ in pairs], 1), torch.stack([v[j] for _, j in pairs], 1)
        return self.head((left * right).sum(-1)) + dense.sum(1, keepdim=True)


class FixedPositions(Base):
    """Field 0 is identified by its place in the stack."""

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        stacked = torch.stack(self.vectors(ids), dim=1)
        user = stacked[:, 0]
        return self.deep(torch.cat([dense, stacked.flatten(1)], dim=1)) + (user * stacked[:, 1]).sum(1, keepdim=True)


class Tied(Base):
    """Table 1 is the output layer too (a softmax over items)."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = mlp([DENSE + FIELDS * WIDTH, 12, WIDTH])
        self.items = nn.Linear(WIDTH, rows_of(1), bias=False)
        self.items.weight = self.tables[1].weight

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.items(super().forward(dense, ids))


class TiedByFunction(Base):
    """Table 1 read as a matrix: scores against all items, and a penalty on its size."""

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        vectors = self.vectors(ids)
        scores = vectors[0] @ self.tables[1].weight.t()
        return self.deep(torch.cat([dense, *vectors], dim=1)) + scores.mean(1, keepdim=True)


class OneLookup(Base):
    def __init__(self) -> None:
        super().__init__(fields=1)


class OneTable(nn.Module):
    """All fields in one table, whose ids the data pipeline made unique: the model does not say which rows are whose."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(sum(rows_of(f) for f in range(FIELDS)), WIDTH)
        self.deep = mlp([DENSE + FIELDS * WIDTH, 12, 1])

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.deep(torch.cat([dense, self.table(ids).flatten(1)], dim=1))


class Pooled(nn.Module):
    """Bags with one option of the layer that has no sharded equal."""

    def __init__(self, **table: Any) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            nn.EmbeddingBag(rows_of(f), WIDTH, **(table if f == 2 else {"mode": "sum"})) for f in range(FIELDS)
        )
        self.deep = mlp([DENSE + FIELDS * WIDTH, 12, 1])

    def forward(self, dense: Tensor, offsets: list[Tensor], ids: list[Tensor]) -> Tensor:
        vectors = [table(i, o) for table, i, o in zip(self.tables, ids, offsets, strict=True)]
        return self.deep(torch.cat([dense, *vectors], dim=1))


class SomeFunctional(Base):
    """Most tables are layers; one is a parameter that is read with a function and could be missed."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.randn(rows_of(0), WIDTH), requires_grad=True)
        self.deep = mlp([DENSE + (FIELDS + 1) * WIDTH, 12, 1])

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        extra = F.embedding(ids[:, 0], self.extra, max_norm=1.0)
        return self.deep(torch.cat([dense, *self.vectors(ids), extra], dim=1))


class Hidden:
    """A batch that only its author can read."""

    def __init__(self, dense: Tensor, ids: Tensor) -> None:
        self.dense, self.ids = dense, ids


class TakesHidden(Base):
    def forward(self, batch: Hidden) -> Tensor:
        return super().forward(batch.dense, batch.ids)


class MarkedTwice(Base):
    """Says of table 2 that it is an item, and then that it is a user."""

    def vectors(self, ids: Tensor) -> list[Tensor]:
        vectors = super().vectors(ids)
        mark_embeddings("item", vectors[:3], ["a", "b", "c"])
        mark_embeddings("user", vectors[2:], ["d", "e", "f", "g"])
        return vectors


class NamedGraph(Base):
    def __init__(self) -> None:
        super().__init__()
        self.graph = nn.Linear(1, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.graph(super().forward(dense, ids))


class NoTable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.deep = mlp([DENSE, 8, 1])

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        return self.deep(dense) + ids.float().mean(1, keepdim=True)


def _plain(make: Callable[[], nn.Module], fields: int = FIELDS) -> Callable[[], Built]:
    return lambda: (make(), dense_and_ids(fields))


def _bags(**table: Any) -> Callable[[], Built]:
    return lambda: (Pooled(**table), lambda n, seed=0: (dense_of(n, seed), *bags_of(n, FIELDS, seed)))


def _padding_not_zero() -> Built:
    model = Base(padding_idx=0)
    with torch.no_grad():
        for table in model.tables:
            table.weight[0] = 1.0
    return model, dense_and_ids(FIELDS)


def _behind(last: Callable[[], nn.Module]) -> Callable[[], Built]:
    return lambda: (Behind(last()), dense_and_ids(FIELDS))


def _compiled() -> Built:
    return torch.compile(Base(), backend="eager"), dense_and_ids(FIELDS)  # type: ignore[return-value]


def _compiled_inside() -> Built:
    model = Base()
    model.deep = torch.compile(model.deep, backend="eager")  # type: ignore[assignment]
    return model, dense_and_ids(FIELDS)


def _compiled_in_place() -> Built:
    model = Base()
    model.deep.compile(backend="eager")
    return model, dense_and_ids(FIELDS)


def _scripted() -> Built:
    batch = dense_and_ids(FIELDS)
    return torch.jit.trace(Base(), batch(TRACE_BATCH, 0), check_trace=False), batch


def _scripted_inside() -> Built:
    model = Base()
    model.deep = torch.jit.script(model.deep)
    return model, dense_and_ids(FIELDS)


def _distributed() -> Built:
    return nn.DataParallel(Base()), dense_and_ids(FIELDS)


def _hidden() -> Built:
    batch = dense_and_ids(FIELDS)
    return TakesHidden(), lambda n, seed=0: (Hidden(*batch(n, seed)),)


def _misfit() -> Built:
    batch = dense_and_ids(FIELDS)
    return Base(), lambda n, seed=0: (*batch(n, seed), torch.zeros(n))


def _hooked() -> Built:
    model = Base()
    model.register_forward_hook(lambda module, args, output: output * 2)
    return model, dense_and_ids(FIELDS)


def _hooked_backward() -> Built:
    model = Base()
    model.deep.register_full_backward_hook(lambda module, above, below: None)
    return model, dense_and_ids(FIELDS)
