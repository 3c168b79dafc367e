"""Interactions of fields as papers of the last years write them, one table per field.

Written as a user would write them, without a look at what the compiler knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.spec import FEATURES, WIDTH, Built, Oracle, Variant, by_size, ids_of, mlp, numbered, rows_of


class Fields(nn.Module):
    """One table per field, stacked ``(B, F, N)``."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows_of(i), width) for i in range(features))

    def forward(self, ids: Tensor) -> Tensor:
        return torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)


class Base(nn.Module):
    """A model on stacked fields."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.emb = Fields(features, width)


class DeepCrossing(Base):
    """Residual blocks on the flattened fields."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        d = features * width
        self.blocks = nn.ModuleList(mlp([d, 12, d]) for _ in range(2))
        self.out = nn.Linear(d, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids).flatten(start_dim=1)
        for block in self.blocks:
            x = F.relu(block(x) + x)
        return self.out(x)


class NFM(Base):
    """Bi-interaction pooling."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        self.norm = nn.BatchNorm1d(width)
        self.net = mlp([width, 16, 1])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        pooled = 0.5 * (x.sum(dim=1).pow(2) - x.pow(2).sum(dim=1))
        return self.net(self.norm(pooled)).squeeze(-1)


class Heads(nn.Module):
    """Multi-head attention by view and permute."""

    def __init__(self, width: int, heads: int, head: int, scale: bool) -> None:
        super().__init__()
        self.heads, self.head, self.scale = heads, head, scale
        self.q = nn.Linear(width, heads * head, bias=False)
        self.k = nn.Linear(width, heads * head, bias=False)
        self.v = nn.Linear(width, heads * head, bias=False)
        self.res = nn.Linear(width, heads * head, bias=False)

    def split(self, x: Tensor) -> Tensor:
        b, f, _ = x.shape
        return x.view(b, f, self.heads, self.head).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.q(x)), self.split(self.k(x)), self.split(self.v(x))
        scores = torch.matmul(q, k.transpose(-2, -1))
        if self.scale:
            scores = scores / math.sqrt(self.head)
        y = torch.matmul(F.softmax(scores, dim=-1), v)
        y = y.permute(0, 2, 1, 3).contiguous().view(x.shape[0], x.shape[1], self.heads * self.head)
        return F.relu(y + self.res(x))


class AutoIntPlus(Base):
    """AutoInt with its own attention and a deep part beside it."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        self.layers = nn.ModuleList([Heads(width, 2, 5, True), Heads(10, 2, 5, True)])
        self.fc = nn.Linear(features * 10, 1)
        self.deep = mlp([features * width, 16, 1])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        y = x
        for layer in self.layers:
            y = layer(y)
        return self.fc(y.flatten(1)) + self.deep(x.flatten(1))


class DCNMix(Base):
    """Low-rank experts in every cross layer, gated, with einsum."""

    def __init__(self, features: int, width: int, experts: int = 3, rank: int = 4, layers: int = 2) -> None:
        super().__init__(features, width)
        d = features * width
        self.u = nn.Parameter(torch.randn(layers, experts, d, rank) * 0.1)
        self.v = nn.Parameter(torch.randn(layers, experts, d, rank) * 0.1)
        self.c = nn.Parameter(torch.randn(layers, experts, rank, rank) * 0.1)
        self.bias = nn.Parameter(torch.zeros(layers, d))
        self.gate = nn.ModuleList(nn.Linear(d, experts, bias=False) for _ in range(layers))
        self.out = nn.Linear(d, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x0 = self.emb(ids).flatten(1)
        x = x0
        for i, gate in enumerate(self.gate):
            low = torch.tanh(torch.einsum("bd,edr->ber", x, self.v[i]))
            low = torch.tanh(torch.einsum("ber,ers->bes", low, self.c[i]))
            high = torch.einsum("bes,eds->bed", low, self.u[i]) + self.bias[i]
            x = torch.einsum("be,bed->bd", gate(x).softmax(-1), x0.unsqueeze(1) * high) + x
        return self.out(x)


class EDCN(Base):
    """Bridges and regulation between the cross and the deep part."""

    def __init__(self, features: int, width: int, layers: int = 2) -> None:
        super().__init__(features, width)
        d = features * width
        self.features = features
        self.cross = nn.ModuleList(nn.Linear(d, 1, bias=False) for _ in range(layers))
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(d)) for _ in range(layers))
        self.dense = nn.ModuleList(nn.Linear(d, d) for _ in range(layers))
        self.g_cross = nn.Parameter(torch.ones(layers, features))
        self.g_deep = nn.Parameter(torch.ones(layers, features))
        self.out = nn.Linear(3 * d, 1)

    def regulate(self, x: Tensor, g: Tensor) -> Tensor:
        fields = x.view(x.size(0), self.features, -1)
        return (fields * torch.softmax(g / 0.7, dim=-1).view(1, self.features, 1)).view(x.size(0), -1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids).view(ids.size(0), -1)
        x0 = x
        c, d = self.regulate(x, self.g_cross[0]), self.regulate(x, self.g_deep[0])
        for i in range(len(self.cross)):
            c = x0 * self.cross[i](c) + self.bias[i] + c
            d = torch.relu(self.dense[i](d))
            bridge = c * d
            if i + 1 < len(self.cross):
                c, d = self.regulate(bridge, self.g_cross[i + 1]), self.regulate(bridge, self.g_deep[i + 1])
        return self.out(torch.cat([c, d, bridge], dim=-1))


class FwFM(Base):
    """A weight for every pair, from the upper triangle."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        self.weight = nn.Parameter(torch.randn(features, features) * 0.1)
        self.register_buffer("mask", torch.triu(torch.ones(features, features), 1))
        self.linear = nn.Linear(features * width, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        dots = torch.bmm(x, x.transpose(1, 2))
        return (dots * (self.weight * self.mask)).sum(dim=(1, 2)).unsqueeze(1) + self.linear(x.flatten(1))


class FwFMBool(FwFM):
    """The same by picking the entries of the triangle."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        self.pairs = nn.Linear(features * (features - 1) // 2, 1)
        self.register_buffer("mask", torch.triu(torch.ones(features, features), 1).bool())

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        dots = torch.matmul(x, x.transpose(1, 2))
        return self.pairs(torch.masked_select(dots, self.mask).view(x.shape[0], -1)) + self.linear(x.flatten(1))


class FmFM(Base):
    """A matrix for every pair."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        p, q = torch.triu_indices(features, features, 1).unbind()
        self.register_buffer("p", p)
        self.register_buffer("q", q)
        self.matrix = nn.Parameter(torch.randn(len(p), width, width) * 0.2)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        left = torch.matmul(x[:, self.p].unsqueeze(2), self.matrix).squeeze(2)
        return (left * x[:, self.q]).sum(dim=(1, 2))


class FiGNN(Base):
    """Fields are nodes of a graph; edges from an attention over pairs of nodes; GRU updates."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        self.features = features
        self.edge = nn.Linear(2 * width, 1, bias=False)
        self.w_in = nn.Parameter(torch.randn(features, width, width) * 0.2)
        self.w_out = nn.Parameter(torch.randn(features, width, width) * 0.2)
        self.cell = nn.GRUCell(width, width)
        self.score = nn.Linear(width, 1)
        self.weight = nn.Sequential(nn.Linear(features * width, features), nn.Sigmoid())

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        b, f, d = x.shape
        left = x.unsqueeze(2).expand(b, f, f, d)
        right = x.unsqueeze(1).expand(b, f, f, d)
        alpha = F.leaky_relu(self.edge(torch.cat([left, right], dim=-1)).squeeze(-1))
        alpha = alpha.masked_fill(torch.eye(f, dtype=torch.bool, device=x.device), float("-inf")).softmax(-1)
        h = x
        for _ in range(2):
            sent = torch.matmul(self.w_out, h.unsqueeze(-1)).squeeze(-1)
            a = torch.matmul(self.w_in, torch.bmm(alpha, sent).unsqueeze(-1)).squeeze(-1)
            h = self.cell(a.reshape(-1, d), h.reshape(-1, d)).view(b, f, d) + x
        return (self.score(h).squeeze(2) * self.weight(h.flatten(1))).sum(dim=1)


class GDCN(Base):
    """Gated cross layers."""

    def __init__(self, features: int, width: int, layers: int = 3) -> None:
        super().__init__(features, width)
        d = features * width
        self.w = nn.ModuleList(nn.Linear(d, d, bias=False) for _ in range(layers))
        self.g = nn.ModuleList(nn.Linear(d, d, bias=False) for _ in range(layers))
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(d)) for _ in range(layers))
        self.out = nn.Linear(d, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x0 = x = self.emb(ids).flatten(1)
        for w, g, b in zip(self.w, self.g, self.b, strict=True):
            x = x0 * (w(x) + b) * torch.sigmoid(g(x)) + x
        return self.out(x)


class FinalNet(Base):
    """Factorized interaction blocks, a field gate in front, two streams."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        d = features * width
        self.gate = nn.Linear(features * width, features * width)
        self.h1, self.h2 = nn.Linear(d, 12), nn.Linear(d, 12)
        self.norm = nn.BatchNorm1d(12)
        self.out1, self.out2 = nn.Linear(12, 1), nn.Linear(d, 1)

    def forward(self, ids: Tensor) -> Tensor:
        e = self.emb(ids)
        flat = e.flatten(1)
        gated = flat * (2.0 * torch.sigmoid(self.gate(flat)))
        first = self.h1(gated) * self.h2(gated)
        return self.out1(self.norm(first)) + self.out2(flat)


class AFN(Base):
    """Logarithmic neurons."""

    def __init__(self, features: int, width: int, neurons: int = 7) -> None:
        super().__init__(features, width)
        self.width, self.neurons = width, neurons
        self.log_norm = nn.BatchNorm1d(width)
        self.transform = nn.Linear(features, neurons, bias=False)
        self.exp_norm = nn.BatchNorm1d(width)
        self.net = mlp([neurons * width, 16, 1])

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.clamp(torch.abs(self.emb(ids)), min=1e-4).transpose(1, 2)
        x = self.exp_norm(torch.exp(self.transform(self.log_norm(torch.log(x)))))
        return self.net(x.reshape(-1, self.neurons * self.width))


class SENet(Base):
    """Squeeze and excitation of the fields, then bilinear pairs."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        self.excite = nn.Sequential(
            nn.Linear(features, max(1, features // 3), bias=False), nn.ReLU(),
            nn.Linear(max(1, features // 3), features, bias=False), nn.ReLU(),
        )  # fmt: skip
        self.bilinear = nn.Linear(width, width, bias=False)
        self.net = mlp([features * (features - 1) * width, 16, 1])

    def pairs(self, x: Tensor) -> Tensor:
        i, j = torch.triu_indices(x.size(1), x.size(1), 1)
        return (self.bilinear(x)[:, i] * x[:, j]).flatten(1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        weights = self.excite(x.mean(dim=-1))
        return self.net(torch.cat([self.pairs(x), self.pairs(x * weights.unsqueeze(-1))], dim=1))


class InterHAt(Base):
    """Attentional aggregation of growing order."""

    def __init__(self, features: int, width: int, order: int = 3) -> None:
        super().__init__(features, width)
        self.mha = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.ffn = mlp([width, 16, width])
        self.context = nn.ModuleList(nn.Linear(width, width) for _ in range(order))
        self.query = nn.ParameterList(nn.Parameter(torch.randn(width) * 0.3) for _ in range(order))
        self.final = nn.Linear(width, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        y, _ = self.mha(x, x, x, need_weights=False)
        x1 = self.norm(self.ffn(y + x) + y)
        x, orders = x1, []
        for context, query in zip(self.context, self.query, strict=True):
            weights = torch.softmax(torch.relu(context(x)) @ query, dim=1)
            u = torch.einsum("bf,bfd->bd", weights, x)
            orders.append(u)
            x = x1 * u[:, None, :] + x
        u = torch.stack(orders, 1)
        return self.final((u * torch.softmax(u.mean(-1, keepdim=True), dim=1)).sum(1))


class NormedFields(Base):
    """BatchNorm over the fields, LayerNorm over both axes, a weight per field."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        self.bn = nn.BatchNorm1d(features)
        self.ln = nn.LayerNorm([features, width])
        self.scale = nn.Parameter(torch.ones(1, features, 1))
        self.conv = nn.Conv1d(features, 4, kernel_size=1)
        self.out = nn.Linear(4 * width, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.ln(self.bn(self.emb(ids))) * self.scale
        return self.out(F.relu(self.conv(x)).flatten(1))


def _of(kind: type[Base]) -> Callable[..., Built]:
    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return kind(features, width), lambda n, seed=0: (ids_of(n, features, seed),)

    return build


def _variant(name: str, kind: type[Base], *, skipped: tuple[str, ...] = ()) -> Variant:
    build = _of(kind)
    return Variant(name, kind.__name__, build, Oracle(by_size(build), numbered("emb.tables"), skipped=skipped))


VARIANTS = [
    _variant("u_deep_crossing", DeepCrossing),
    _variant("u_nfm", NFM),
    _variant("u_autoint_plus", AutoIntPlus),
    _variant("u_dcn_mix", DCNMix),
    _variant("u_edcn", EDCN),
    _variant("u_fwfm_mask", FwFM, skipped=("mask",)),
    _variant("u_fwfm_bool", FwFMBool, skipped=("mask", "weight")),
    _variant("u_fmfm", FmFM, skipped=("p", "q")),
    _variant("u_fignn", FiGNN),
    _variant("u_gdcn", GDCN),
    _variant("u_finalnet", FinalNet),
    _variant("u_afn", AFN),
    _variant("u_senet", SENet),
    _variant("u_interhat", InterHAt),
    _variant("u_normed_fields", NormedFields),
]
