"""Tables that fields share by offsets: taken apart where that is certain, and nowhere else."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.compiler import transform
from dmt_plugin.nn.graph_ops import field_streams
from tests.passes.flat import found

SPTT = {"towers": {"module": "none"}}
SIZES = (3, 5, 2, 4)
OFFSETS = (0, 3, 8, 10)


class Joint(nn.Module):
    """``head(rows(self, ids))`` over one table of all fields."""

    def __init__(self, rows: Any, offsets: Any = OFFSETS, features: int = 16, total: int = 14, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(total, 4, **options)
        self.first = nn.Embedding(total, 1)
        self.register_buffer("offsets", torch.tensor(offsets), persistent=False)
        self.learned = nn.Parameter(torch.tensor(offsets).float())
        self.head = nn.Linear(features, 1)
        self.rows = rows

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rows(self, ids).flatten(1))


def batch(n: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randint(0, size, (n,), generator=generator) for size in SIZES], dim=1)


def joint(model: Any, ids: Tensor) -> Tensor:
    return model.table(ids + model.offsets)


SPELLINGS = {
    "buffer": joint,
    "other order": lambda m, x: m.table(m.offsets.unsqueeze(0) + x),
    "torch.add": lambda m, x: m.table(torch.add(x, m.offsets[None, :])),
    "new_tensor": lambda m, x: m.table(x + x.new_tensor(OFFSETS).unsqueeze(0)),
    "moved to the device": lambda m, x: m.table(x + m.offsets.to(x.device)),
    "function": lambda m, x: nn.functional.embedding(x + m.offsets, m.table.weight),
    "in place": lambda m, x: m.table(x.clone().add_(m.offsets)),
}


def _attended(x: Tensor, m: Any) -> Tensor:
    return m.attention(x, x, x, need_weights=False)[0]


USED_AGAIN = {
    "one operation after another": lambda x, m: torch.cat([x.tanh() * 3, x.sigmoid(), x.softmax(2) * 7], 1),
    "a product with itself": lambda x, m: torch.cat([x * x * 3, x.exp()], 1),
    "matmul": lambda x, m: torch.cat([torch.matmul(x, x.transpose(1, 2)) * 3, x.exp()], 1),
    "bmm": lambda x, m: torch.cat([torch.bmm(x, x) * 3, x.exp()], 1),
    "matmul with itself": lambda x, m: torch.cat([torch.matmul(x, x) * 3, x.exp()], 1),
    "einsum": lambda x, m: torch.cat([torch.einsum("bhd,bmd->bhm", x, x) * 3, x.exp()], 1),
    "attention": lambda x, m: torch.cat([_attended(x, m) * 3, x.exp()], 1),
    "a size": lambda x, m: torch.cat([x.exp() * x.size(1), x.new_ones(x.shape), x.tanh() * 3], 1),
}


@pytest.mark.parametrize("way", USED_AGAIN)
def test_gradients_of_fields_that_are_picked_besides_round_alike(way: str) -> None:
    """A sum of three and more gradients depends on its order."""

    def rows(m: Any, ids: Tensor) -> Tensor:
        x = joint(m, ids)
        again = USED_AGAIN[way](x, m).flatten(1)
        return torch.cat([again, x[:, 0] * x[:, 1], x[:, 2] * x[:, 0], x[:, 3].exp()], 1)

    torch.manual_seed(0)
    flat = Joint(rows, features=16 * (3 if way in ("one operation after another", "a size") else 2) + 12)
    flat.attention = nn.MultiheadAttention(4, 2, batch_first=True)
    towers = transform(copy.deepcopy(flat), batch(), {"dmt": SPTT}, "2x1")
    for seed in range(20):
        gradients = []
        for model in (flat, towers):
            model.zero_grad()
            model(batch(40, seed)).square().sum().backward()
            gradients.append(
                [p.grad for p in (model.get_parameter("table.weight"), model.get_parameter("head.weight"))]
            )
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)), seed


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_each_field_has_its_range_of_rows(spelling: str) -> None:
    ctx = found(Joint(SPELLINGS[spelling]), batch(), **SPTT)
    assert [(x.table, x.first_row, x.rows) for x in ctx.facts.lookups] == [
        ("table[0:3]", 0, 3), ("table[3:8]", 3, 5), ("table[8:10]", 8, 2), ("table[10:14]", 10, 4),
    ]  # fmt: skip
    assert {x.weight for x in ctx.facts.lookups} == {"table.weight"} and [g.kind for g in ctx.facts.groups] == ["tower"]


def test_fields_are_named_by_the_input_and_shared_with_first_order_weights() -> None:
    def both(model: Any, ids: Tensor) -> Tensor:
        return torch.cat([joint(model, ids), model.first(ids + model.offsets)], dim=2)

    ctx = found(Joint(both, features=20), batch(), **SPTT)
    assert [x.feature for x in ctx.facts.lookups] == [f"ids[{i}]" for i in range(4)] * 2


@pytest.mark.parametrize(
    ("offsets", "rows"),
    [
        ((0, 3, 3, 10), joint),
        ((1, 3, 8, 10), joint),
        ((0, 8, 3, 10), joint),
        ((0, 3, 8, 14), joint),
        (OFFSETS, lambda m, x: m.table(x)),
        (OFFSETS, lambda m, x: m.table(x * m.offsets)),
        (OFFSETS, lambda m, x: m.table(x + m.learned.long())),
        (OFFSETS, lambda m, x: m.table(x + m.offsets + x[:, :1] * 0)),
        (OFFSETS, lambda m, x: m.table(x + x)),
    ],
    ids=[
        "equal", "not from 0", "falling", "outside the table", "none", "product", "trained", "computed twice",
        "of the batch",
    ],
)  # fmt: skip
def test_what_is_not_certainly_joint_stays_one_table(offsets: Any, rows: Any) -> None:
    ctx = found(Joint(rows, offsets, total=14 if 14 in offsets else 40), batch(), **SPTT)
    assert not [n for n in ctx.gm.graph.nodes if n.target is field_streams]
    assert [(x.table, x.pooling) for x in ctx.facts.lookups] == [("table", "none")]


def test_a_picked_field_gets_its_stream() -> None:
    def picked(model: Any, ids: Tensor) -> Tensor:
        rows = joint(model, ids)
        return torch.cat([rows[:, 1], rows[:, -1, :], rows.select(1, 0), rows.sum(1)], dim=1)

    ctx = found(Joint(picked), batch(), **SPTT)
    names = [x.node for x in ctx.facts.lookups]
    join = next(n for n in ctx.gm.graph.nodes if n.target is torch.cat)
    assert [names.index(n) for n in join.args[0][:3]] == [1, 3, 0]  # type: ignore[index]


def test_overlapping_reads_use_the_whole_table() -> None:
    """A field of its own range, and the same table by raw row numbers: one table, so one tower."""

    def twice(model: Any, ids: Tensor) -> Tensor:
        return torch.cat([joint(model, ids).flatten(1), model.table(ids[:, 0])], dim=1)

    ctx = found(Joint(twice, features=20), batch(), **SPTT)
    assert {(x.table, x.first_row, x.rows) for x in ctx.facts.lookups} == {("table", 0, 14)}


@pytest.mark.parametrize("padding", [None, 3, 9])
def test_values_and_gradients_stay(padding: int | None) -> None:
    torch.manual_seed(0)
    flat = Joint(joint, padding_idx=padding)
    model = transform(flat, (batch(),), {"dmt": SPTT}, "2x1")
    assert set(model.state_dict()) == set(flat.state_dict())
    assert model.never_run == ["first.weight", "learned"]
    grads = []
    for one in (flat, model):
        one.zero_grad()
        one(batch(9, 1)).square().sum().backward()
        grads.append(flat.table.weight.grad.clone())  # type: ignore[union-attr]
    assert torch.equal(*grads)
    assert torch.equal(flat(batch(9, 1)), model(batch(9, 1)))


def in_a_loop(model: Any, ids: Tensor) -> Tensor:
    return torch.stack([model.table(ids[:, i] + model.offsets[i]) for i in range(4)], dim=1)


LOOPS = {
    "buffer": in_a_loop,
    "numbers": lambda m, x: torch.stack([m.table(x[:, i] + OFFSETS[i]) for i in range(4)], dim=1),
    "none for the first": lambda m, x: torch.stack(
        [m.table(x[:, 0]), *(m.table(OFFSETS[i] + x[:, i]) for i in range(1, 4))], dim=1
    ),
}


@pytest.mark.parametrize("spelling", LOOPS)
def test_fields_in_a_loop_have_their_ranges(spelling: str) -> None:
    ctx = found(Joint(LOOPS[spelling]), batch(), **SPTT)
    assert [(x.table, x.first_row, x.rows) for x in ctx.facts.lookups] == [
        ("table[0:3]", 0, 3), ("table[3:8]", 3, 5), ("table[8:10]", 8, 2), ("table[10:14]", 10, 4),
    ]  # fmt: skip
    assert len({x.feature for x in ctx.facts.lookups}) == 4


@pytest.mark.parametrize(
    "rows",
    [
        lambda m, x: torch.stack([m.table(x[:, 0]), m.table(x[:, 1] + 1)] * 2, dim=1),
        lambda m, x: torch.stack([m.table(x[:, i] + OFFSETS[i] + 1) for i in range(4)], dim=1),
        lambda m, x: torch.stack([m.table(x[:, i] + x[:, 3]) for i in range(4)], dim=1),
        lambda m, x: torch.stack(
            [*(m.table(x[:, i] + OFFSETS[i]) for i in range(3)), m.table(x).sum(1)], dim=1
        ),
    ],
    ids=["a shift", "not from 0", "of the batch", "a sequence as well"],
)  # fmt: skip
def test_a_table_of_several_columns_stays_one(rows: Any) -> None:
    ctx = found(Joint(rows, total=40), batch(), **SPTT)
    assert {(x.table, x.first_row, x.rows) for x in ctx.facts.lookups} == {("table", 0, 40)}
