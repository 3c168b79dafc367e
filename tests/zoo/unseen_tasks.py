"""Several tasks, gates, and ways to hand batches in and results out.

Written as a user would write them, without a look at what the compiler knows.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

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
    by_size,
    dense_of,
    generator,
    ids_of,
    mlp,
    numbered,
    only_ids,
    rows_of,
)


def _tables(features: int, width: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Embedding(rows_of(i), width) for i in range(features))


def _joined(tables: nn.ModuleList, ids: Tensor) -> Tensor:
    return torch.cat([table(ids[:, i]) for i, table in enumerate(tables)], dim=1)


class MMoE(nn.Module):
    """Experts in a list, a gate per task, einsum."""

    def __init__(self, features: int, width: int, tasks: int = 2, experts: int = 3) -> None:
        super().__init__()
        d = features * width
        self.tables = _tables(features, width)
        self.experts = nn.ModuleList(mlp([d, 12, 8], last=True) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(d, experts) for _ in range(tasks))
        self.towers = nn.ModuleList(mlp([8, 6, 1]) for _ in range(tasks))

    def forward(self, ids: Tensor) -> list[Tensor]:
        x = _joined(self.tables, ids)
        experts = torch.stack([e(x) for e in self.experts], dim=1)
        results = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            mixed = torch.einsum("be,bed->bd", F.softmax(gate(x), dim=-1), experts)
            results.append(torch.sigmoid(tower(mixed)).squeeze(1))
        return results


class MMoEParameters(nn.Module):
    """Experts and gates as raw parameters."""

    def __init__(self, features: int, width: int, tasks: int = 2, experts: int = 3) -> None:
        super().__init__()
        d = features * width
        self.tables = _tables(features, width)
        self.experts = nn.Parameter(torch.rand(d, 8, experts) * 0.1)
        self.experts_bias = nn.Parameter(torch.rand(8, experts) * 0.1)
        self.gates = nn.ParameterList(nn.Parameter(torch.rand(d, experts) * 0.1) for _ in range(tasks))
        self.towers = nn.ModuleList(nn.Linear(8, 1) for _ in range(tasks))

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        x = _joined(self.tables, ids)
        experts = F.relu(torch.einsum("ij,jkl->ikl", x, self.experts) + self.experts_bias)
        out = []
        for gate, tower in zip(self.gates, self.towers, strict=True):
            weights = torch.softmax(torch.einsum("ab,bc->ac", x, gate), dim=-1).unsqueeze(1)
            out.append(tower((experts * weights.expand_as(experts)).sum(2)))
        return tuple(out)


class PLE(nn.Module):
    """Two levels of shared and own experts."""

    def __init__(self, features: int, width: int, tasks: int = 2, levels: int = 2) -> None:
        super().__init__()
        d = features * width
        self.tables = _tables(features, width)
        self.tasks, self.levels = tasks, levels
        sizes = [d, *[8] * levels]
        self.shared = nn.ModuleList(nn.ModuleList(mlp([a, 8], last=True) for _ in range(2)) for a in sizes[:-1])
        self.own = nn.ModuleList(
            nn.ModuleList(nn.ModuleList(mlp([a, 8], last=True) for _ in range(2)) for _ in range(tasks))
            for a in sizes[:-1]
        )
        self.gates = nn.ModuleList(
            nn.ModuleList(nn.Linear(a, 2 + 2 if k < tasks else 2 + 2 * tasks) for k in range(tasks + 1))
            for a in sizes[:-1]
        )
        self.heads = nn.ModuleDict({name: nn.Linear(8, 1) for name in ("click", "buy")})

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        x = _joined(self.tables, ids)
        states = [x] * (self.tasks + 1)
        for level in range(self.levels):
            shared = [e(states[-1]) for e in self.shared[level]]
            own = [[e(states[k]) for e in self.own[level][k]] for k in range(self.tasks)]
            new = []
            for k, gate in enumerate(self.gates[level]):
                pool = shared + own[k] if k < self.tasks else [*shared, *itertools.chain(*own)]
                weights = gate(states[k]).softmax(dim=1)
                new.append(torch.bmm(weights.unsqueeze(1), torch.stack(pool, 1)).squeeze(1))
            states = new
        return {name: head(states[k]).squeeze(-1) for k, (name, head) in enumerate(self.heads.items())}


class PEPNet(nn.Module):
    """Gates from a prior (domain) that does not backpropagate into the fields it scales."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        d = features * width
        self.tables = _tables(features, width)
        self.domain = nn.Embedding(3, 4)
        self.ep = nn.Sequential(nn.Linear(4 + d, 12), nn.ReLU(), nn.Linear(12, d), nn.Sigmoid())
        self.layers = nn.ModuleList([nn.Linear(d, 12), nn.Linear(12, 6)])
        self.gates = nn.ModuleList(
            nn.Sequential(nn.Linear(4 + d, 8), nn.ReLU(), nn.Linear(8, w), nn.Sigmoid()) for w in (12, 6)
        )
        self.out = nn.Linear(6, 1)

    def forward(self, ids: Tensor, domain: Tensor) -> Tensor:
        x = _joined(self.tables, ids)
        prior = self.domain(domain)
        x = x * 2 * self.ep(torch.cat([prior, x.detach()], dim=-1))
        h = x
        for layer, gate in zip(self.layers, self.gates, strict=True):
            h = F.relu(layer(h)) * (2 * gate(torch.cat([prior, x.detach()], dim=-1)))
        return self.out(h)


@dataclass
class Result:
    """What a model returns."""

    loss: Tensor
    logits: Tensor


class WithLoss(nn.Module):
    """Batch as one dict with labels; returns a dataclass of loss and logits."""

    def __init__(self, features: int, width: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.names = [f"f{i}" for i in range(features)]
        self.tables = nn.ModuleDict({name: nn.Embedding(rows_of(i), width) for i, name in enumerate(self.names)})
        self.net = mlp([features * width, 16, 1])

    def forward(self, batch: dict[str, Tensor]) -> Any:
        x = torch.cat([self.tables[name](batch[name]) for name in sorted(self.names, reverse=True)], dim=-1)
        logits = self.net(x).squeeze(-1)
        loss = F.binary_cross_entropy_with_logits(logits, batch["label"])
        if self.how == "dataclass":
            return Result(loss, logits)
        if self.how == "tuple":
            return loss, (loss.detach(), logits.detach(), batch["label"])
        return {"loss": loss, "logits": logits, "label": batch["label"]}


class Regularised(nn.Module):
    """Returns the joined vectors' norm as a second loss."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.tables = _tables(features, width)
        self.net = mlp([features * width, 16, 1])

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        vectors = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        x = torch.cat(vectors, 1)
        penalty = sum(v.pow(2).sum() for v in vectors) / x.shape[0]
        return self.net(x), 1e-3 * penalty


class KeywordOnly(nn.Module):
    """Columns are keyword arguments, one optional, and numbers are normalised in forward."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.tables = _tables(features, width)
        self.bn = nn.BatchNorm1d(DENSE)
        self.net = mlp([DENSE + features * width, 16, 1], norm=True, dropout=0.1)

    def forward(self, *, sparse: dict[str, Tensor], dense: Tensor | None = None) -> Tensor:
        parts = [table(sparse[str(i)]) for i, table in enumerate(self.tables)]
        if dense is not None:
            parts = [self.bn(torch.log1p(dense.abs())), *parts]
        return self.net(torch.cat(parts, dim=1))


class MaskNet(nn.Module):
    """Instance-guided masks on the normed fields, blocks in parallel."""

    def __init__(self, features: int, width: int, blocks: int = 2) -> None:
        super().__init__()
        d = features * width
        self.tables = _tables(features, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(features))
        self.masks = nn.ModuleList(mlp([d, 2 * d, d]) for _ in range(blocks))
        self.hidden = nn.ModuleList(nn.Sequential(nn.Linear(d, 8), nn.LayerNorm(8), nn.ReLU()) for _ in range(blocks))
        self.net = mlp([8 * blocks, 8, 1])

    def forward(self, ids: Tensor) -> Tensor:
        e = torch.stack([t(ids[:, i]) for i, t in enumerate(self.tables)], 1)
        normed = torch.cat([norm(e[:, i]) for i, norm in enumerate(self.norms)], dim=1)
        flat = e.flatten(1)
        outs = [h(m(flat) * normed) for m, h in zip(self.masks, self.hidden, strict=True)]
        return self.net(torch.cat(outs, 1))


class Hierarchical(nn.Module):
    """Wukong-like: factorization blocks and linear compression over the axis of fields, residual, LayerNorm."""

    def __init__(self, features: int, width: int, keep: int = 4) -> None:
        super().__init__()
        self.tables = _tables(features, width)
        self.compress = nn.Parameter(torch.randn(keep, features) * 0.3)
        self.project = nn.Parameter(torch.randn(features, 3) * 0.3)
        self.fm = mlp([features * 3, 10, keep * width])
        self.residual = nn.Linear(features, 2 * keep, bias=False)
        self.norm = nn.LayerNorm(width)
        self.keep, self.width = keep, width
        self.out = nn.Linear(2 * keep * width, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.stack([t(ids[:, i]) for i, t in enumerate(self.tables)], 1)
        lcb = torch.einsum("kf,bfd->bkd", self.compress, x)
        fmb = torch.bmm(x, x.transpose(1, 2) @ self.project)
        fmb = self.fm(fmb.flatten(1)).view(-1, self.keep, self.width)
        rest = self.residual(x.transpose(1, 2)).transpose(1, 2)
        return self.out(self.norm(torch.cat([fmb, lcb], 1) + rest).flatten(1))


class TripleCIN(nn.Module):
    """The outer product of the fields as an einsum, compressed by a convolution, sums of maps."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.tables = _tables(features, width)
        self.first = nn.Conv1d(features * features, 5, 1)
        self.second = nn.Conv1d(5 * features, 3, 1)
        self.out = nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x0 = torch.stack([t(ids[:, i]) for i, t in enumerate(self.tables)], 1)
        b, _, d = x0.shape
        h1 = F.relu(self.first(torch.einsum("bhd,bmd->bhmd", x0, x0).reshape(b, -1, d)))
        h2 = F.relu(self.second(torch.einsum("bhd,bmd->bhmd", h1, x0).reshape(b, -1, d)))
        return self.out(torch.cat([h1, h2], dim=1).sum(-1))


def _ids(kind: type[nn.Module], *args: object) -> Any:
    return lambda features=FEATURES, width=WIDTH: (kind(features, width, *args), only_ids(features))


def domains(features: int = FEATURES, width: int = WIDTH) -> Built:
    """Ids and a domain."""

    def batch(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        return ids_of(n, features, seed), torch.randint(0, 3, (n,), generator=generator(seed, 77))

    return PEPNet(features, width), batch


def labelled(how: str) -> Any:
    """A dict of columns and labels."""

    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        def batch(n: int, seed: int = 0) -> tuple[dict[str, Tensor]]:
            ids = ids_of(n, features, seed)
            label = torch.randint(0, 2, (n,), generator=generator(seed, 5)).float()
            return ({f"f{i}": ids[:, i] for i in range(features)} | {"label": label},)

        return WithLoss(features, width, how), batch

    return build


def keywords(features: int = FEATURES, width: int = WIDTH) -> Built:
    """Keywords only."""

    def batch(n: int, seed: int = 0) -> Any:
        ids = ids_of(n, features, seed)
        return (), {"sparse": {str(i): ids[:, i] for i in range(features)}, "dense": dense_of(n, seed)}

    return KeywordOnly(features, width), batch


def _plain(name: str, build: Any, **more: Any) -> Variant:
    return Variant(name, name, build, Oracle(by_size(build), numbered("tables"), **more))


VARIANTS = [
    _plain("u_mmoe", _ids(MMoE)),
    _plain("u_mmoe_raw", _ids(MMoEParameters)),
    _plain("u_ple", _ids(PLE), skipped=("gates.1.2",)),
    _plain("u_pepnet", domains),
    Variant("u_loss_dataclass", "loss", labelled("dataclass")),
    Variant("u_loss_tuple", "loss", labelled("tuple")),
    Variant("u_loss_dict", "loss", labelled("dict")),
    Variant("u_regularised", "loss", _ids(Regularised)),
    Variant("u_keywords", "keywords", keywords),
    Variant("u_masknet", "MaskNet", _ids(MaskNet)),
    _plain("u_wukong", _ids(Hierarchical)),
    _plain("u_cin_einsum", _ids(TripleCIN)),
]
