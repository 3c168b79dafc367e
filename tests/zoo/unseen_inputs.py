"""Third round: how ids come to be, and where vectors are joined: buckets of numbers, ids as floats, ids by other
lookups, vectors masked by their ids, two joins of the same vectors, numbers between vectors, pooled towers.

Written as a user would write them, without a look at what the compiler knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.spec import (
    DENSE,
    FEATURES,
    WIDTH,
    Built,
    Variant,
    dense_and_ids,
    dense_of,
    ids_of,
    mlp,
    only_ids,
)
from tests.zoo.unseen_contexts import Plain

Body = Callable[..., Any]


class Tables(Plain):
    """Tables and a forward of its own; ``make`` adds parts."""

    def vectors(self, ids: Tensor) -> list[Tensor]:
        return [t(ids[:, i]) for i, t in enumerate(self.tables)]

    def forward(self, *args: Tensor) -> Any:
        return self.body(self, *args)


def net(m: Any, f: int, n: int) -> None:
    m.net = mlp([f * n, 16, 1])


def pooled(m: Any, f: int, n: int) -> None:
    m.out = nn.Linear(n, 1)


def buckets(m: Any, f: int, n: int) -> None:
    m.numeric = nn.ModuleList(nn.Embedding(6, n) for _ in range(DENSE))
    m.register_buffer("edges", torch.tensor([-1.0, -0.3, 0.0, 0.3, 1.0]))
    m.net = mlp([(f + DENSE) * n, 16, 1])


def bucketized(m: Any, dense: Tensor, ids: Tensor) -> Tensor:
    places = torch.bucketize(dense, m.edges)
    numbers = [t(places[:, i]) for i, t in enumerate(m.numeric)]
    return m.net(torch.cat(numbers + m.vectors(ids), 1))


def searched(m: Any, dense: Tensor, ids: Tensor) -> Tensor:
    numbers = [t(torch.searchsorted(m.edges, dense[:, i].contiguous())) for i, t in enumerate(m.numeric)]
    return m.net(torch.cat(numbers + m.vectors(ids), 1))


def one_table(m: Any, x: Tensor) -> Tensor:
    ids, dense = x[:, : m.features].long(), x[:, m.features :]
    return m.net(torch.cat([*m.vectors(ids), dense], 1))


def table_net(m: Any, f: int, n: int) -> None:
    m.net = mlp([f * n + DENSE, 16, 1])


def quantised(m: Any, ids: Tensor) -> Tensor:
    parts = m.vectors(ids)
    code = (parts[0] @ m.codes.weight[:4].t()).argmax(1) if m.tied else m.pick(parts[0]).argmax(1)
    return m.net(torch.cat([*parts[1:], m.codes(code)], 1))


def picker(tied: bool) -> Callable[..., None]:
    def make(m: Any, f: int, n: int) -> None:
        m.tied, m.codes, m.pick = tied, nn.Embedding(4, n), nn.Linear(n, 4)
        m.net = mlp([f * n, 16, 1])

    return make


def masked(m: Any, ids: Tensor) -> Tensor:
    parts = [v * (ids[:, i] > 2).float().unsqueeze(1) for i, v in enumerate(m.vectors(ids))]
    return m.net(torch.cat(parts, 1))


def masked_stack(m: Any, ids: Tensor) -> Tensor:
    x = torch.stack(m.vectors(ids), 1) * (ids > 2).unsqueeze(2)
    return m.net(x.flatten(1))


def clamped(m: Any, ids: Tensor) -> Tensor:
    parts = [
        t(torch.where(ids[:, i] >= 5, torch.zeros_like(ids[:, i]), ids[:, i]).clamp(min=0))
        for i, t in enumerate(m.tables)
    ]
    return m.net(torch.cat(parts, 1))


def crossed(m: Any, ids: Tensor) -> Tensor:
    extra = m.cross((ids[:, 0] * 31 + ids[:, 1]) % 17)
    return m.net(torch.cat([*m.vectors(ids)[1:], extra], 1))


def crossing(m: Any, f: int, n: int) -> None:
    m.cross = nn.Embedding(17, n)
    m.net = mlp([f * n, 16, 1])


def both_joins(m: Any, ids: Tensor) -> Tensor:
    parts = m.vectors(ids)
    x, flat = torch.stack(parts, 1), torch.cat(parts, 1)
    fm = 0.5 * (x.sum(1) ** 2 - (x**2).sum(1)).sum(1, keepdim=True)
    return m.net(flat) + fm


def sum_of_list(m: Any, ids: Tensor) -> Tensor:
    return m.out(sum(m.vectors(ids)))


def running_sum(m: Any, ids: Tensor) -> Tensor:
    parts = m.vectors(ids)
    total = parts[0]
    for p in parts[1:]:
        total = total + p
    return m.out(total) + m.net(torch.cat(parts, 1))


def pooled_net(m: Any, f: int, n: int) -> None:
    net(m, f, n)
    pooled(m, f, n)


def between(m: Any, dense: Tensor, ids: Tensor) -> Tensor:
    parts = m.vectors(ids)
    x = torch.cat([parts[0], dense, *parts[1:]], 1)
    return m.net(x) + x[:, m.width : m.width + DENSE].sum(1, keepdim=True)


def between_only(m: Any, dense: Tensor, ids: Tensor) -> Tensor:
    parts = m.vectors(ids)
    return m.net(torch.cat([parts[0], dense, *parts[1:]], 1))


def dense_first(m: Any, dense: Tensor, ids: Tensor) -> Tensor:
    x = torch.cat([dense, *m.vectors(ids)], 1)
    return m.net(x) + x[:, :DENSE].sum(1, keepdim=True)


def two_pools(m: Any, ids: Tensor) -> Tensor:
    parts = m.vectors(ids)
    u, v = torch.stack(parts[:2], 1).sum(1), torch.stack(parts[2:], 1).sum(1)
    return (u * v).sum(1)


def two_pools_even(m: Any, ids: Tensor) -> Tensor:
    parts = m.vectors(ids)
    u, v = torch.stack(parts[:3], 1).mean(1), torch.stack(parts[3:], 1).mean(1)
    return (u * v).sum(1)


def nothing(m: Any, f: int, n: int) -> None:
    pass


def dense_query(m: Any, dense: Tensor, ids: Tensor) -> Tensor:
    x = torch.stack(m.vectors(ids), 1)
    q = m.query(dense)
    w = torch.softmax((x @ q.unsqueeze(2)).squeeze(2), 1)
    return m.out((w.unsqueeze(2) * x).sum(1) + q)


def query(m: Any, f: int, n: int) -> None:
    m.query, m.out = nn.Linear(DENSE, n), nn.Linear(n, 1)


def shared_projection(m: Any, dense: Tensor, ids: Tensor) -> Tensor:
    x = torch.stack(m.vectors(ids), 1)
    return m.out(torch.tanh(m.proj(x)).sum(1) + m.proj(m.query(dense)))


def query_proj(m: Any, f: int, n: int) -> None:
    query(m, f, n)
    m.proj = nn.Linear(n, n)


def list_pairs(m: Any, ids: Tensor) -> Tensor:
    parts = m.vectors(ids)
    dots = [(parts[i] * parts[j]).sum(1, keepdim=True) for i in range(m.features) for j in range(i)]
    return m.pairs(torch.cat(dots, 1))


def pairs(m: Any, f: int, n: int) -> None:
    m.pairs = nn.Linear(f * (f - 1) // 2, 1)


def list_pairs_deep(m: Any, ids: Tensor) -> Tensor:
    return list_pairs(m, ids) + m.net(torch.cat(m.vectors(ids), 1))


def pairs_net(m: Any, f: int, n: int) -> None:
    pairs(m, f, n)
    net(m, f, n)


def penalty(m: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    x = torch.cat(m.vectors(ids), 1)
    return m.net(x), x.square().mean()


def weights_penalty(m: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    return m.net(torch.cat(m.vectors(ids), 1)), sum(p.square().sum() for p in m.parameters())


def dropped(m: Any, ids: Tensor) -> Tensor:
    x = m.drop(torch.stack(m.vectors(ids), 1))
    return m.net(x.flatten(1))


def drop_net(m: Any, f: int, n: int) -> None:
    net(m, f, n)
    m.drop = nn.Dropout(0.3)


def squeezed(m: Any, ids: Tensor) -> Tensor:
    parts = [t(ids[:, i : i + 1]).squeeze(1) for i, t in enumerate(m.tables)]
    return m.net(torch.cat(parts, 1))


def cat_of_ones(m: Any, ids: Tensor) -> Tensor:
    parts = [t(ids[:, i : i + 1]) for i, t in enumerate(m.tables)]
    return m.net(torch.cat(parts, 1).flatten(1))


def transposed_columns(m: Any, ids: Tensor) -> Tensor:
    parts = [t(c) for t, c in zip(m.tables, ids.t(), strict=True)]
    return m.net(torch.hstack(parts))


def in_torch_stack_flat(m: Any, ids: Tensor) -> Tensor:
    return m.net(torch.stack(m.vectors(ids)).transpose(0, 1).reshape(ids.size(0), -1))


def width_last(m: Any, ids: Tensor) -> Tensor:
    x = torch.stack(m.vectors(ids), 2)
    return m.net(x.flatten(1))


def preallocated(m: Any, ids: Tensor) -> Tensor:
    x = torch.cat([v.unsqueeze(1) for v in m.vectors(ids)], 1)
    x = torch.einsum("bfn,fg->bgn", x, m.mix)
    return m.net(x.reshape(-1, m.features * m.width))


def mix(m: Any, f: int, n: int) -> None:
    net(m, f, n)
    m.mix = nn.Parameter(torch.eye(f) + 0.1)


def floats(features: int) -> Any:
    def batch(n: int, seed: int = 0) -> tuple[Tensor]:
        return (torch.cat([ids_of(n, features, seed).float(), dense_of(n, seed)], 1),)

    return batch


def _v(name: str, make: Any, body: Any, batch: Any = only_ids) -> Variant:
    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return Tables(features, width, make, body), batch(features)

    return Variant(f"i_{name}", name, build)


VARIANTS = [
    _v("bucketize", buckets, bucketized, dense_and_ids),
    _v("searchsorted", buckets, searched, dense_and_ids),
    _v("one_table", table_net, one_table, floats),
    _v("quantised", picker(False), quantised),
    _v("quantised_tied", picker(True), quantised),
    _v("masked", net, masked),
    _v("masked_stack", net, masked_stack),
    _v("clamped", net, clamped),
    _v("crossed", crossing, crossed),
    _v("both_joins", net, both_joins),
    _v("sum_of_list", pooled, sum_of_list),
    _v("running_sum", pooled_net, running_sum),
    _v("between", table_net, between, dense_and_ids),
    _v("between_only", table_net, between_only, dense_and_ids),
    _v("dense_first", table_net, dense_first, dense_and_ids),
    _v("two_pools", nothing, two_pools),
    _v("two_pools_even", nothing, two_pools_even),
    _v("dense_query", query, dense_query, dense_and_ids),
    _v("shared_projection", query_proj, shared_projection, dense_and_ids),
    _v("list_pairs", pairs, list_pairs),
    _v("list_pairs_deep", pairs_net, list_pairs_deep),
    _v("penalty", net, penalty),
    _v("weights_penalty", net, weights_penalty),
    _v("dropped", drop_net, dropped),
    _v("squeezed", net, squeezed),
    _v("cat_of_ones", net, cat_of_ones),
    _v("transposed", net, transposed_columns),
    _v("stack0", net, in_torch_stack_flat),
    _v("width_last", net, width_last),
    _v("mix", mix, preallocated),
]
