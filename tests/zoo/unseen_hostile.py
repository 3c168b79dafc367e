"""Second round: operations of every kind on the stacked vectors, numbers that coincide, lists that are almost
enumerations, and what :mod:`tests.zoo.unseen_contexts` has.

Written as a user would write them, without a look at what the compiler knows.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.spec import (
    FEATURES,
    WIDTH,
    Built,
    Oracle,
    Variant,
    by_size,
    mlp,
    numbered,
    only_ids,
)
from tests.zoo.unseen_contexts import (
    Plain,
    _net,
    _set,
    autocast,
    checkpointed,
    counting,
    f_dropout,
    frozen,
    hook,
    net,
    no_grad,
    old_weight_normed,
    reversal,
    spectral,
    weight_normed,
)


def fixed_view(m: Any, x: Tensor) -> Tensor:
    h = x.flatten(1).view(-1, 4, m.features * m.width // 4)
    return m.out(torch.tanh(h).sum(1))


def two_views(m: Any, x: Tensor) -> Tensor:
    h = x.flatten(1).view(x.size(0), m.width // 2, m.features * 2)
    return m.out(h.mean(2))


def swapped(m: Any, x: Tensor) -> Tensor:
    h = x.reshape(x.size(0), m.width, m.features)
    return m.out(torch.bmm(h, h.transpose(1, 2)).flatten(1))


def near_pairs(m: Any, x: Tensor) -> Tensor:
    return m.out((x[:, m.i] * x[:, m.j]).sum(2))


def loops(m: Any, x: Tensor) -> Tensor:
    pairs = [(x[:, i] * x[:, j]).sum(1, keepdim=True) for i, j in itertools.combinations(range(x.size(1)), 2)]
    return m.out(torch.cat(pairs, 1))


def flat_triangle(m: Any, x: Tensor) -> Tensor:
    dots = torch.bmm(x, x.transpose(1, 2)).view(-1, m.features * m.features)
    return m.out(dots[:, m.flat])


def pooled_out(m: Any, x: Tensor) -> dict[str, Tensor]:
    v = x.sum(1)
    return {"logit": m.out(v), "vector": v}


def scale_init(m: Any, x: Tensor) -> Tensor:
    a = torch.softmax(x @ x.transpose(1, 2) * m.scale, -1)
    return m.out((a @ x).flatten(1))


def sdpa(m: Any, x: Tensor) -> Tensor:
    return m.out(F.scaled_dot_product_attention(m.q(x), m.k(x), x).flatten(1))


def lstm(m: Any, x: Tensor) -> Tensor:
    _, (h, _) = m.rnn(x)
    return m.out(h[-1])


def lstm_residual(m: Any, x: Tensor) -> Tensor:
    y, _ = m.rnn(x)
    return m.out((x + y).flatten(1))


def conv2d(m: Any, x: Tensor) -> Tensor:
    return m.out(torch.relu(m.conv(x.unsqueeze(1))).flatten(1))


def unflatten(m: Any, x: Tensor) -> Tensor:
    return m.out(m.un(torch.relu(m.first(x.flatten(1)))).sum(1))


def glu(m: Any, x: Tensor) -> Tensor:
    return m.out(F.glu(m.up(x.flatten(1)), dim=1))


def layer_norm_shape(m: Any, x: Tensor) -> Tensor:
    return m.out(F.layer_norm(x, x.shape[1:]).flatten(1))


def layer_norm_numbers(m: Any, x: Tensor) -> Tensor:
    return m.out(F.layer_norm(x, (m.width,)).flatten(1))


def zeros_state(m: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(x.size(0), m.width)
    for v in x.unbind(1):
        h = m.cell(v, h)
    return m.out(h)


def zeros_long(m: Any, x: Tensor) -> Tensor:
    acc = torch.zeros(x.size(0), m.width)
    acc = acc + x.sum(1)
    return m.out(acc)


def sinusoid(m: Any, x: Tensor) -> Tensor:
    return m.out((x + m.pos).flatten(1))


def sinusoid_live(m: Any, x: Tensor) -> Tensor:
    p = torch.arange(x.size(1)).unsqueeze(1) * torch.exp(torch.arange(0, x.size(2)) * -0.1)
    return m.out((x + torch.sin(p)).flatten(1))


def pad(m: Any, x: Tensor) -> Tensor:
    return m.out(F.pad(x, (0, 0, 1, 1)).flatten(1))


def roll(m: Any, x: Tensor) -> Tensor:
    return m.out((x * x.roll(1, 1)).flatten(1))


def topk(m: Any, x: Tensor) -> Tensor:
    return m.out(x.topk(2, dim=1).values.flatten(1))


def cdist(m: Any, x: Tensor) -> Tensor:
    d = torch.cdist(x, x)
    return m.out(d.flatten(1))


def mean_by_number(m: Any, x: Tensor) -> Tensor:
    return m.out(x.sum(1) / m.features)


def mean_twice(m: Any, x: Tensor) -> Tensor:
    return m.out(x.sum(1) * (2.0 / (m.features * (m.features - 1))))


def one_minus_eye(m: Any, x: Tensor) -> Tensor:
    return m.out((torch.bmm(x, x.mT) * m.mask).flatten(1))


def expand_number(m: Any, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True).expand(-1, m.features, -1)
    return m.out(torch.cat([x, mean], 2).flatten(1))


def repeat_number(m: Any, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True).repeat(1, m.features, 1)
    return m.out(torch.cat([x, mean], 2).flatten(1))


def group_norm(m: Any, x: Tensor) -> Tensor:
    return m.out(m.gn(x).flatten(1))


def prelu(m: Any, x: Tensor) -> Tensor:
    return m.out(m.act(x.flatten(1)))


def bilinear(m: Any, x: Tensor) -> Tensor:
    return m.b(x.flatten(1), x.sum(1))


def in_place(m: Any, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1:] = x[:, :-1]
    return m.out((y + x).flatten(1))


def sorted_pool(m: Any, x: Tensor) -> Tensor:
    return m.out(x.sort(dim=1).values.flatten(1))


def max_pool(m: Any, x: Tensor) -> Tensor:
    return m.out(torch.cat([x.max(1).values, x.amax(1), x.logsumexp(1), x.std(1), x.norm(dim=1)], 1))


def cosine_pairs(m: Any, x: Tensor) -> Tensor:
    n = F.normalize(x, dim=-1)
    s = n @ n.mT
    i, j = torch.triu_indices(m.features, m.features, offset=1)
    return m.out(s[..., i, j])


def shape_numbers(m: Any, x: Tensor) -> Tensor:
    if x.shape[1] != m.features or x.ndim != 3:
        raise ValueError("wrong")
    return m.out(x.sum(1) / math.sqrt(x.shape[1]))


def mha_weights(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y, w = m.mha(x, x, x)
    return m.out(y.flatten(1)), w.mean()


def mha_seq_first(m: Any, x: Tensor) -> Tensor:
    y = x.transpose(0, 1)
    y, _ = m.mha(y, y, y, need_weights=False)
    return m.out(y.transpose(0, 1).flatten(1))


OUT = {"out": lambda f, n: nn.Linear(f * n, 1)}
POOL = {"out": lambda f, n: nn.Linear(n, 1)}
ADJACENT = {
    "i": lambda f, n: torch.arange(f - 1), "j": lambda f, n: torch.arange(1, f),
    "out": lambda f, n: nn.Linear(f - 1, 1),
}  # fmt: skip
WITH_SELF = {
    "i": lambda f, n: torch.triu_indices(f, f)[0], "j": lambda f, n: torch.triu_indices(f, f)[1],
    "out": lambda f, n: nn.Linear(f * (f + 1) // 2, 1),
}  # fmt: skip
CROSS = {
    "i": lambda f, n: torch.tensor([i for i in range(f // 2) for j in range(f // 2, f)]),
    "j": lambda f, n: torch.tensor([j for i in range(f // 2) for j in range(f // 2, f)]),
    "out": lambda f, n: nn.Linear((f // 2) * (f - f // 2), 1),
}  # fmt: skip
TRI_FLAT = {
    "flat": lambda f, n: (torch.triu_indices(f, f, 1)[0] * f + torch.triu_indices(f, f, 1)[1]),
    "out": lambda f, n: nn.Linear(f * (f - 1) // 2, 1),
}  # fmt: skip


def _p(name: str, make: Any, body: Any) -> Variant:
    make = make if callable(make) else _set(**make)

    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return Plain(features, width, make, body), only_ids(features)

    return Variant(
        f"h_{name}", name, build, Oracle(by_size(build), numbered("tables"), skipped=("mask", "i", "j", "flat", "pos"))
    )


FIRST = {
    "first": lambda f, n: nn.Linear(f * n, 12),
    "task": lambda f, n: nn.Linear(12, 1),
    "domain": lambda f, n: nn.Linear(12, 2),
}

VARIANTS = [
    _p("no_grad", {"gate": lambda f, n: nn.Linear(f * n, f), "net": lambda f, n: mlp([f * n, 16, 1])}, no_grad),
    _p("reversal", FIRST, reversal),
    _p("hook", {k: FIRST[k] for k in ("first", "task")}, hook),
    _p("checkpoint", {k: FIRST[k] for k in ("first", "task")}, checkpointed),
    _p("counting", {"calls": lambda f, n: 0, "net": lambda f, n: mlp([f * n, 16, 1])}, counting),
    _p("autocast", _net, autocast),
    _p("f_dropout", _net, f_dropout),
    _p("weight_norm", {"net": weight_normed}, net),
    _p("spectral_norm", {"net": spectral}, net),
    _p("weight_norm_old", {"net": old_weight_normed}, net),
    _p("frozen", {"net": frozen}, net),
    _p("fixed_view", {"out": lambda f, n: nn.Linear(f * n // 4, 1)}, fixed_view),
    _p("two_views", {"out": lambda f, n: nn.Linear(n // 2, 1)}, two_views),
    _p("swapped", {"out": lambda f, n: nn.Linear(n * n, 1)}, swapped),
    _p("adjacent", ADJACENT, near_pairs),
    _p("with_self", WITH_SELF, near_pairs),
    _p("cross_pairs", CROSS, near_pairs),
    _p("loops", {"out": lambda f, n: nn.Linear(f * (f - 1) // 2, 1)}, loops),
    _p("flat_triangle", TRI_FLAT, flat_triangle),
    _p("pooled_out", POOL, pooled_out),
    _p("scale_init", OUT | {"scale": lambda f, n: n**-0.5}, scale_init),
    _p("sdpa", OUT | {"q": lambda f, n: nn.Linear(n, n), "k": lambda f, n: nn.Linear(n, n)}, sdpa),
    _p("lstm", {"rnn": lambda f, n: nn.LSTM(n, 7, batch_first=True), "out": lambda f, n: nn.Linear(7, 1)}, lstm),
    _p("lstm_residual", OUT | {"rnn": lambda f, n: nn.LSTM(n, n, batch_first=True)}, lstm_residual),
    _p("conv2d", {"conv": lambda f, n: nn.Conv2d(1, 3, (f, 1)), "out": lambda f, n: nn.Linear(3 * n, 1)}, conv2d),
    _p(
        "conv2d_pad",
        {"conv": lambda f, n: nn.Conv2d(1, 3, 3, padding=1), "out": lambda f, n: nn.Linear(3 * f * n, 1)},
        conv2d,
    ),
    _p(
        "unflatten",
        POOL | {"first": lambda f, n: nn.Linear(f * n, f * n), "un": lambda f, n: nn.Unflatten(1, (f, n))},
        unflatten,
    ),
    _p("glu", {"up": lambda f, n: nn.Linear(f * n, 2 * f * n), "out": lambda f, n: nn.Linear(f * n, 1)}, glu),
    _p("layer_norm_shape", OUT, layer_norm_shape),
    _p("layer_norm_numbers", OUT, layer_norm_numbers),
    _p("zeros_state", POOL | {"cell": lambda f, n: nn.GRUCell(n, n)}, zeros_state),
    _p("zeros_acc", POOL, zeros_long),
    _p("sinusoid", OUT | {"pos": lambda f, n: torch.sin(torch.arange(f * n).float()).view(1, f, n)}, sinusoid),
    _p("sinusoid_live", OUT, sinusoid_live),
    _p("pad", {"out": lambda f, n: nn.Linear((f + 2) * n, 1)}, pad),
    _p("roll", OUT, roll),
    _p("topk", {"out": lambda f, n: nn.Linear(2 * n, 1)}, topk),
    _p("cdist", {"out": lambda f, n: nn.Linear(f * f, 1)}, cdist),
    _p("mean_by_number", POOL, mean_by_number),
    _p("mean_twice", POOL, mean_twice),
    _p(
        "one_minus_eye", {"mask": lambda f, n: 1 - torch.eye(f), "out": lambda f, n: nn.Linear(f * f, 1)}, one_minus_eye
    ),
    _p("expand_number", {"out": lambda f, n: nn.Linear(2 * f * n, 1)}, expand_number),
    _p("repeat_number", {"out": lambda f, n: nn.Linear(2 * f * n, 1)}, repeat_number),
    _p("group_norm", OUT | {"gn": lambda f, n: nn.GroupNorm(2, f)}, group_norm),
    _p("prelu", OUT | {"act": lambda f, n: nn.PReLU(f * n)}, prelu),
    _p("bilinear", {"b": lambda f, n: nn.Bilinear(f * n, n, 1)}, bilinear),
    _p("in_place", OUT, in_place),
    _p("sorted_pool", OUT, sorted_pool),
    _p("max_pool", {"out": lambda f, n: nn.Linear(5 * n, 1)}, max_pool),
    _p("cosine_pairs", {"out": lambda f, n: nn.Linear(f * (f - 1) // 2, 1)}, cosine_pairs),
    _p("shape_numbers", POOL, shape_numbers),
    _p("mha_weights", OUT | {"mha": lambda f, n: nn.MultiheadAttention(n, 2, batch_first=True)}, mha_weights),
    _p("mha_seq_first", OUT | {"mha": lambda f, n: nn.MultiheadAttention(n, 2)}, mha_seq_first),
]
