"""Lists of vectors that enumerate pairs become pairs gathered by index; anything else stays as it is."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.core.errors import TransformError
from tests.passes.flat import ROWS, Flat, found, ids, only, towers

Pairs = list[tuple[int, int]]


def upper(n: int) -> Pairs:
    return list(itertools.combinations(range(n), 2))


def lower(n: int) -> Pairs:
    return [(i, j) for i in range(n) for j in range(i)]


def both_ways(n: int) -> Pairs:
    return [(i, j) for i in range(n) for j in range(n) if i != j]


def ring(n: int) -> Pairs:
    return [(i, (i + 1) % n) for i in range(n)] + [(i, (i + 2) % n) for i in range(n)]


def products(
    pairs: Callable[[int], Pairs],
    join: Callable[[list[Tensor]], Tensor],
    view: Callable[[Tensor], Tensor] = lambda s: s,
) -> Any:
    def forward(streams: list[Tensor], model: Any) -> Tensor:
        streams = [view(s) for s in streams]
        rows = join([streams[i] for i, _ in pairs(len(streams))])
        columns = join([streams[j] for _, j in pairs(len(streams))])
        return (rows * columns).sum(2)

    return forward


def stacked(streams: list[Tensor]) -> Tensor:
    return torch.stack(streams, dim=1)


def joined(streams: list[Tensor]) -> Tensor:
    return torch.cat(tensors=streams, dim=-2)


def columns_of(model: Any, index: Tensor) -> list[Tensor]:
    return [table(index[:, f : f + 1]) for f, table in enumerate(model.tables)]


def and_the_sum(streams: list[Tensor], model: Any) -> Tensor:
    """Another join holds the vectors in another order than the model looks them up."""
    shuffled = [streams[2], streams[0], streams[3], streams[1]]
    whole = torch.stack(shuffled, 1)
    rows = torch.stack([shuffled[i] for i, _ in upper(4)], 1)
    columns = torch.stack([shuffled[j] for _, j in upper(4)], 1)
    return torch.cat([(rows * columns).sum(2), whole.sum(1)], 1)


def oracle(model: nn.Module, forward: Any, index: Tensor, streams: int, dim: int) -> Tensor:
    """The user's own forward on the vectors that the towers give, under the layers of the result."""
    read: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda m, a, result: read.append(result))
        for name, module in model.named_modules()
        if name.startswith("dmt_towers") and name.count(".") == 2
    ]
    found = model(index)
    for hook in hooks:
        hook.remove()
    vectors = list(torch.cat(read, 1).view(-1, streams, dim).unbind(1))
    assert torch.equal(found, model.get_submodule("top")(forward(vectors, model)))
    return found


@pytest.mark.parametrize("pairs", [upper, lower, both_ways])
@pytest.mark.parametrize("join", [stacked, joined], ids=["stack", "cat"])
@pytest.mark.parametrize(("c", "p", "dim"), [(1, 0, 2), (1, 1, 4), (2, 0, 4), (0, 1, 4)])
def test_products_of_pairs_are_made_anew(pairs: Any, join: Any, c: int, p: int, dim: int) -> None:
    torch.manual_seed(0)
    forward = products(pairs, join, (lambda s: s.unsqueeze(1)) if join is joined else (lambda s: s))
    model = towers(Flat(forward), ids(4, 5), towers={"c": c, "p": p, "dim": dim})
    assert [(g.kind, g.form) for g in model.plan.groups] == [("tower", "native")]
    streams = 4 * c + 2 * p
    assert model.get_parameter("top.weight").shape[1] == len(pairs(streams))
    oracle(model, forward, ids(4, 7, 1), streams, dim)


def test_lists_of_columns() -> None:
    def cat(streams: list[Tensor]) -> Tensor:
        return torch.cat(streams, 1)

    ctx = found(Flat(products(upper, cat), look=columns_of), ids(4, 5))
    assert [(g.kind, g.form, len(g.joins)) for g in ctx.facts.groups] == [("tower", "native", 1)]


def test_the_order_is_that_of_the_join_that_holds_all() -> None:
    ctx = found(Flat(and_the_sum), ids(4, 5))
    (group,) = ctx.facts.groups
    assert [x.table for x in group.lookups] == [f"tables.{f}" for f in (2, 0, 3, 1)] and len(group.joins) == 2


def test_the_graph_computes_the_same() -> None:
    torch.manual_seed(0)
    flat = Flat(and_the_sum)
    reference = copy.deepcopy(flat)
    ctx = found(flat, ids(4, 5))
    index = ids(4, 7, 1)
    assert torch.equal(ctx.gm(index), reference(index))


def test_without_tower_modules_nothing_is_rewritten() -> None:
    for module in ("none", "preserve"):
        ctx = found(Flat(products(upper, stacked)), ids(4, 5), towers={"module": module})
        assert next(r for r in ctx.results if r.name == "pick_pairs").changed == 0


def no_pairs(streams: list[Tensor], model: Any) -> Tensor:
    return products(ring, stacked)(streams, model)


def one_list(streams: list[Tensor], model: Any) -> Tensor:
    return torch.stack([streams[i] for i, _ in upper(4)], 1).sum(2)


def missing_pair(streams: list[Tensor], model: Any) -> Tensor:
    return products(lambda n: upper(n)[:-1], stacked)(streams, model)


def other_dimension(streams: list[Tensor], model: Any) -> Tensor:
    return products(upper, lambda s: torch.stack(s, 2).transpose(1, 2))(streams, model)


def used_apart(streams: list[Tensor], model: Any) -> Tensor:
    return products(upper, stacked)(streams, model) * streams[0].sum(1, keepdim=True)


@pytest.mark.parametrize("join", [no_pairs, one_list, missing_pair, other_dimension, used_apart])
def test_what_enumerates_nothing_is_left_alone(join: Any) -> None:
    ctx = found(Flat(join), ids(4, 5), transform={"on_unsupported": "decoder"})
    assert next(r for r in ctx.results if r.name == "pick_pairs").changed == 0
    assert {g.form for g in ctx.facts.groups if g.kind == "tower"} == {"decoder"}


def test_a_vector_that_depends_on_the_products() -> None:
    class Chained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(ROWS, 4) for _ in range(4))
            self.top = nn.Linear(6, 1)

        def forward(self, index: Tensor) -> Tensor:
            v = [t(index[:, f]) for f, t in enumerate(list(self.tables)[:3])]
            rows = torch.stack([v[0], v[0], v[0], v[1], v[1], v[2]], 1)
            v.append(self.tables[3](rows.sum(2).argmax(1) + index[:, 0] * 0))
            columns = torch.stack([v[1], v[2], v[3], v[2], v[3], v[3]], 1)
            return self.top((rows * columns).sum(2))

    ctx = found(Chained(), ids(3, 5), transform={"on_unsupported": "decoder"})
    assert next(r for r in ctx.results if r.name == "pick_pairs").changed == 0


def test_a_list_with_repeats_is_still_refused() -> None:
    with pytest.raises(TransformError) as caught:
        towers(Flat(no_pairs), ids(4, 5))
    assert "more than once" in only(caught.value.findings, "DMT302").reason
