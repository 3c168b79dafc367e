"""Random architectures: a seed gives a recommender that is put together from the habits of public model code.

1. Tables of one kind (a list, bags, a joint table by offsets, functions over parameters), what is done to each feature
   alone, numbers as one vector beside the fields' or as they are.
2. A join: stacked, or flat and cut by a view; blocks that keep the shape ``(B, F, N)``; one to three branches behind,
   each with an interaction that gives one row a sample; a head over them.

Every part is drawn from lists below with one generator, so that a seed means one architecture for any number and width
of features: the same seed with as many features as there are streams behind the towers is the oracle of a rewrite.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo import constructs_features as features_of
from tests.zoo import constructs_stacked as stacked
from tests.zoo.spec import (
    DENSE,
    Batch,
    Built,
    Oracle,
    Variant,
    by_size,
    dense_and_ids,
    mlp,
    numbered,
    only_ids,
    rows_of,
)

FIELDS, WIDTH = 6, 4

# -- tables ----------------------------------------------------------------------------------


class ListOfTables(nn.Module):
    """One table per field; in bags of one, or read by a function."""

    def __init__(self, features: int, width: int, kind: str) -> None:
        super().__init__()
        make: Callable[..., Any] = nn.EmbeddingBag if kind == "bags" else nn.Embedding
        options = {"mode": "sum"} if kind == "bags" else {}
        self.items = nn.ModuleList(make(rows_of(i), width, **options) for i in range(features))
        self.kind = kind

    def forward(self, ids: Tensor) -> list[Tensor]:
        if self.kind == "bags":
            return [table(ids[:, i : i + 1]) for i, table in enumerate(self.items)]
        if self.kind == "function":
            return [F.embedding(ids[:, i], table.weight) for i, table in enumerate(self.items)]
        if self.kind == "columns":
            return [table(column) for table, column in zip(self.items, ids.unbind(1), strict=True)]
        return [table(ids[:, i].long()) for i, table in enumerate(self.items)]


class JointTable(nn.Module):
    """One table by offsets; its fields stay in one tensor ``(B, F, N)``."""

    def __init__(self, features: int, width: int, kind: str) -> None:
        super().__init__()
        rows = torch.tensor([rows_of(i) for i in range(features)])
        self.table = nn.Embedding(int(rows.sum()), width)
        first = rows.cumsum(0) - rows
        self.kind = kind
        if kind == "joint array":
            self.offsets: Any = first.numpy()
        else:
            self.register_buffer("offsets", first.unsqueeze(0), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        if self.kind == "joint array":
            return self.table(ids + ids.new_tensor(self.offsets).unsqueeze(0))
        return self.table(ids + self.offsets)


LISTS = ("plain", "bags", "function", "columns")
JOINTS = ("joint", "joint array")

# -- what is done to one feature alone -------------------------------------------------------

Own = tuple[Callable[..., Tensor] | None, dict[str, Any]]

OWN: list[Own] = [
    (features_of.bias, {"bias": features_of.per_feature(features_of.vector)}),
    (features_of.gate, {"gates": features_of.per_feature(lambda n: nn.Parameter(torch.randn(1)))}),
    (features_of.gate_layer, {"gates": features_of.per_feature(lambda n: nn.Linear(n, 1))}),
    (features_of.normed, {"norms": features_of.per_feature(nn.LayerNorm)}),
    (features_of.zeros_like, {}),
]

# -- blocks (B, F, N) -> (B, F, N) -----------------------------------------------------------

Body = Callable[[Any, Tensor], Tensor]
Parts = dict[str, Callable[[int, int], Any]]


def _gated(spread: Callable[[Any, Tensor, Tensor], Tensor]) -> Body:
    return lambda m, x: spread(m, x, m.gate(x.mean(-1)))


def _token_dropped(m: Any, x: Tensor) -> Tensor:
    y = torch.cat([m.cls.expand(x.size(0), -1, -1), x], dim=1)
    y = y + torch.softmax(y @ y.transpose(1, 2), -1) @ y
    return y[:, 1:] * torch.sigmoid(y[:, :1])


def _rows(m: Any, x: Tensor) -> Tensor:
    b, f, n = x.shape
    return x + torch.tanh(m.field(x.reshape(b * f, n))).view(b, f, -1)


def _flat(m: Any, x: Tensor) -> Tensor:
    b, f, n = x.shape
    return x * torch.sigmoid(m.same(x.view(b, f * n))).view(b, f, n)


BLOCKS: list[tuple[Body, Parts]] = [
    (_gated(lambda m, x, a: x * a.unsqueeze(-1).repeat(1, 1, x.size(-1))), {"gate": stacked.GATE}),
    (_gated(lambda m, x, a: x * a[..., None].expand_as(x)), {"gate": stacked.GATE}),
    (_gated(lambda m, x, a: (x.flatten(1) * a.repeat_interleave(x.size(2), dim=1)).view(*x.shape)),
     {"gate": stacked.GATE}),
    (lambda m, x: x + m.pos.unsqueeze(0).expand(x.size(0), -1, -1),
     {"pos": lambda f, n: nn.Parameter(torch.randn(f, n))}),
    (lambda m, x: m.norm(x), {"norm": lambda f, n: nn.LayerNorm(n)}),
    (lambda m, x: F.dropout(x, 0.1, m.training), {}),
    (lambda m, x: x + torch.softmax(x @ x.transpose(1, 2), -1) @ x, {}),
    (_token_dropped, {"cls": lambda f, n: nn.Parameter(torch.randn(1, 1, n))}),
    (_rows, {"field": lambda f, n: nn.Linear(n, n)}),
    (_flat, {"same": lambda f, n: nn.Linear(f * n, f * n)}),
    (lambda m, x: torch.asinh(x) + torch.sinc(x).clip(max=0.5), {}),
]  # fmt: skip

# -- interactions (B, F, N) -> (B, 1) --------------------------------------------------------


def _fm(m: Any, x: Tensor) -> Tensor:
    return m.out(x.sum(1).square() - x.square().sum(1))


def _cross(m: Any, x: Tensor) -> Tensor:
    x0 = y = x.flatten(1)
    for layer in m.layers:
        y = x0 * layer(y) + y
    return m.out(y)


def _cin(m: Any, x: Tensor) -> Tensor:
    h = torch.einsum("bhd,bmd->bhmd", x, x).flatten(1, 2)
    return m.out(torch.relu(m.conv(h)).sum(2))


def _first_of_all(m: Any, x: Tensor) -> Tensor:
    return m.out(torch.cat([x.amax(1), x.mean(1), x.std(1)], dim=1))


def _with(body: Body, **parts: Callable[[int, int], Any]) -> tuple[Body, Parts]:
    return body, parts


INTERACTIONS: list[tuple[Body, Parts]] = [
    _with(lambda m, x: m.net(x.flatten(1)), net=stacked.NET),
    _with(lambda m, x: m.net(x.reshape(x.shape[0], -1)), net=stacked.NET),
    _with(_fm, out=stacked.POOL),
    _with(_cross, layers=lambda f, n: nn.ModuleList(nn.Linear(f * n, f * n) for _ in range(2)), out=stacked.OUT),
    _with(_cin, conv=lambda f, n: nn.Conv1d(f * f, 3, 1), out=lambda f, n: nn.Linear(3, 1)),
    _with(_first_of_all, out=lambda f, n: nn.Linear(3 * n, 1)),
    _with(stacked.lists_in_forward, out=stacked.PAIRS),
    _with(stacked.combinations_in_forward, out=stacked.PAIRS),
    _with(stacked.gram_by_mask_attribute, upper=stacked.upper, out=stacked.PAIRS),
    _with(stacked.conv_all_fields, conv=lambda f, n: nn.Conv2d(1, 3, (f, 1)), out=lambda f, n: nn.Linear(3 * n, 1)),
    _with(stacked.conv_channels, conv=lambda f, n: nn.Conv2d(f, 4, 1), out=stacked.POOL),
    _with(stacked.heads_in_batch, **stacked.heads(), out=lambda f, n: nn.Linear(10, 1)),
    _with(stacked.heads_by_cat, **stacked.heads(), out=lambda f, n: nn.Linear(10, 1)),
    _with(stacked.filled_rows, out=lambda f, n: nn.Linear(2 * n, 1)),
    _with(stacked.mask_filled, out=lambda f, n: nn.Linear(1, 1)),
    _with(stacked.queries, query=lambda f, n: nn.Parameter(torch.randn(3, n)), out=lambda f, n: nn.Linear(3 * n, 1)),
    _with(features_of.named, weight=lambda f, n: nn.Parameter(torch.randn(f, 3)), out=lambda f, n: nn.Linear(3 * n, 1)),
    _with(features_of.arranged, net=stacked.NET),
    *(_with(stacked.tuple_pairs, row=stacked.rows(kind, 0), col=stacked.rows(kind, 1), out=stacked.PAIRS)
      for kind in (tuple, list, torch.tensor)),
]  # fmt: skip
HARD: list[tuple[Body, Parts]] = [
    _with(lambda m, x: m.out(x[:, 0] * x[:, 1]), out=stacked.POOL),
    _with(stacked.conv_neighbours, conv=lambda f, n: nn.Conv2d(1, 3, (3, 1), padding=(1, 0)),
          out=lambda f, n: nn.Linear(3 * (f // 2) * n, 1)),
    _with(lambda m, x: m.out(torch.cat([(x[:, i] * x[:, j]).sum(1, keepdim=True)
                                        for i, j in itertools.combinations(range(x.size(1)), 2)], 1)),
          out=stacked.PAIRS),
]  # fmt: skip
"""Interactions by the place of a feature, which have no native form."""

# -- the model -------------------------------------------------------------------------------


class Part(nn.Module):
    """A body with its parts."""

    def __init__(self, body: Body, parts: Parts, fields: int, width: int) -> None:
        super().__init__()
        self.features, self.width = fields, width
        for name, make in parts.items():
            value = make(fields, width)
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


class Drawn(nn.Module):
    """An architecture of a seed."""

    def __init__(self, seed: int, features: int, width: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.kind = draw.choice((*LISTS, *LISTS, *JOINTS))
        joint = self.kind in JOINTS
        self.tables: nn.Module = (JointTable if joint else ListOfTables)(features, width, self.kind)
        own = draw.choice(OWN) if not joint and draw.random() < 0.3 else None
        self.own = own[0] if own else None
        self.width = width
        for name, make in (own[1] if own else {}).items():
            setattr(self, name, make(features, width))
        self.numbers = draw.choice(("none", "none", "first", "last", "flat"))
        fields = features + (self.numbers in ("first", "last"))
        if self.numbers != "none":
            self.bottom = mlp([DENSE, 6, width if self.numbers != "flat" else 3])
        self.join = draw.choice(("stack", "stack", "cat of ones", "flat view"))
        blocks = draw.sample(range(len(BLOCKS)), draw.choice((0, 0, 1, 1, 2)))
        self.blocks = nn.ModuleList(Part(*BLOCKS[i], fields, width) for i in blocks)
        several = draw.sample(range(len(INTERACTIONS)), draw.choice((1, 1, 2, 3)))
        chosen = [INTERACTIONS[i] for i in several] + ([draw.choice(HARD)] if draw.random() < 0.12 else [])
        self.branches = nn.ModuleList(Part(*each, fields, width) for each in chosen)
        self.head = nn.Linear(len(chosen) + 3 * (self.numbers == "flat"), 1)
        self.answer = draw.choice(("logit", "sum", "probability", "dict"))

    def forward(self, *inputs: Tensor) -> Any:
        ids = inputs[-1]
        x = self._joined(ids, self.bottom(inputs[0]) if self.numbers in ("first", "last") else None)
        for block in self.blocks:
            x = block(x)
        rows = [branch(x) for branch in self.branches]
        if self.numbers == "flat":
            rows.append(self.bottom(inputs[0]))
        y = self.head(torch.tanh(torch.cat(rows, dim=1) / 256))
        if self.answer == "sum":
            return y.sum(-1)
        return {"logit": y} if self.answer == "dict" else torch.sigmoid(y) if self.answer == "probability" else y

    def _joined(self, ids: Tensor, number: Tensor | None) -> Tensor:
        found = self.tables(ids)
        if self.kind in JOINTS:
            if number is None:
                return found
            both = [number.unsqueeze(1), found]
            return torch.cat(both if self.numbers == "first" else both[::-1], dim=1)
        own = self.own
        if own is not None:
            found = [own(self, i, e, ids[:, i]) for i, e in enumerate(found)]
        if number is not None:
            found = [number, *found] if self.numbers == "first" else [*found, number]
        if self.join == "stack":
            return torch.stack(found, dim=1)
        if self.join == "cat of ones":
            return torch.cat([e.unsqueeze(1) for e in found], dim=1)
        return torch.cat(found, dim=1).view(ids.size(0), len(found), -1)


def variant(seed: int) -> Variant:
    """The architecture of a seed; with an oracle, where nothing of it belongs to one feature alone."""

    def build(features: int = FIELDS, width: int = WIDTH) -> Built:
        model = Drawn(seed, features, width)
        batch: Batch = only_ids(features) if model.numbers == "none" else dense_and_ids(features)
        return model, batch

    drawn = Drawn(seed, FIELDS, WIDTH)
    if drawn.own is not None or drawn.kind == "function":
        return Variant(f"seed {seed}", "random", build, None, "parts per feature, or no layers for its tables")
    tables = (lambda streams: ["tables.table"]) if drawn.kind in JOINTS else numbered("tables.items")
    return Variant(f"seed {seed}", "random", build, Oracle(by_size(build), tables))
