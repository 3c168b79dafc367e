"""Tables in a stack are looked up and trained as tables by themselves are, also while some of them are frozen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmt_plugin.comm.batch_layout import BatchLayout
from dmt_plugin.comm.distinct.requests import BlockRequests, GroupRequests, Requests, RowCounts
from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from dmt_plugin.nn.lookup.site import LookupSite
from dmt_plugin.nn.lookup.stacks import Stack

ROWS = {"a": 7, "b": 1, "c": 5}
DIM = 6


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(rows, DIM, generator=generator) for name, rows in ROWS.items()}


def requests(asked: Tensor) -> Requests:
    """In blocks of any sizes: what is looked up does not depend on them."""
    sizes = [asked.numel() // 3, 0, asked.numel() - asked.numel() // 3]
    blocks = tuple(BlockRequests(RowCounts((size,), ()), None, None, ()) for size in sizes)
    return Requests(0, (GroupRequests(asked, 0, blocks),))


class Alone:
    """Every table by itself, with the ids of a stack."""

    def __init__(self, backend: str, rule: Rule) -> None:
        sites = [LookupSite(name, name, i, rows, DIM, "sum", False) for i, (name, rows) in enumerate(ROWS.items())]
        self.lookup = ShardedLookup(sites, weights(), backend=backend, rules=dict.fromkeys(ROWS, rule))

    def look_up(self, asked: Tensor) -> Tensor:
        values, lengths, first = [], [], 0
        for rows in ROWS.values():
            keep = (asked >= first) & (asked < first + rows)
            values.append(asked[keep] - first)
            lengths.append(keep.long())
            first += rows
        layout = BatchLayout(len(asked), ((len(asked),),))
        pooled = self.lookup(RoutedIds(tuple(values), tuple(lengths), (None,) * 3, layout))
        return pooled.view(len(asked), 3, DIM).sum(1)


@pytest.mark.parametrize("delay", [False, True])
@pytest.mark.parametrize(
    ("backend", "rule"),
    [
        ("torch", Rule("adam", 0.1, weight_decay=0.1)),
        ("torch", Rule("sgd", 0.5, dtype="bf16", stochastic_rounding=True)),
        ("fbgemm", Rule("adagrad", 0.1, 0.01)),
        ("fbgemm", Rule("sgd", 0.5)),
    ],
    ids=str,
)
def test_a_stack_is_its_tables(backend: str, rule: Rule, delay: bool) -> None:
    stack = Stack("rows0", DIM, tuple(ROWS.items()))
    stacked = ShardedLookup([], weights(), backend=backend, rules=dict.fromkeys(ROWS, rule), stacks=[stack])
    alone = Alone(backend, rule)
    assert stacked.tables == alone.lookup.tables and stacked.shapes == alone.lookup.shapes
    assert {stacked.backend_of(name) for name in ROWS} == {backend}
    for lookup in (stacked, alone.lookup):
        lookup.watch_gradients(delay)
        lookup.grad_scale = 0.5
    frozen = [(), ("b",), ("a", "c"), tuple(ROWS), ()]
    for step, still in enumerate(frozen):
        before = {name: stacked.table_weight(name).clone() for name in ROWS}
        generator = torch.Generator().manual_seed(step)
        asked = torch.randint(0, sum(ROWS.values()), (9,), generator=generator, dtype=torch.int32)
        gradient = torch.randn(9, DIM, generator=generator)
        for lookup in (stacked, alone.lookup):
            lookup.freeze(still)
        (blocks,), other = stacked.look_up_distinct(requests(asked)), alone.look_up(asked)
        assert [len(block) for block in blocks] == [3, 0, 6]
        once = torch.cat(blocks)
        assert torch.equal(once, other)
        for rows in (once, other):
            if rows.requires_grad:
                rows.backward(gradient)
        for lookup in (stacked, alone.lookup):
            lookup.step()
            lookup.zero_grad()
        for name in ROWS:
            torch.testing.assert_close(stacked.table_weight(name), alone.lookup.table_weight(name))
            states = alone.lookup.optimizer_state(name)
            assert stacked.optimizer_state(name).keys() == states.keys()
            for key, state in states.items():
                torch.testing.assert_close(stacked.optimizer_state(name)[key], state)
            moved = not torch.equal(before[name], stacked.table_weight(name))
            assert moved <= (name not in still), f"{name} is frozen in step {step}"
        assert stacked.steps == alone.lookup.steps
    counted = stacked.asked_by_table(requests(torch.tensor([0, 1, 7, 8, 12, 12])))
    assert counted == {"a": 2, "b": 1, "c": 3}


def test_rules_of_a_stack_are_one() -> None:
    rules = {**dict.fromkeys(ROWS, Rule("sgd", 0.5)), "b": Rule("sgd", 0.1)}
    with pytest.raises(ValueError, match="several update rules"):
        ShardedLookup([], weights(), backend="torch", rules=rules, stacks=[Stack("rows0", DIM, tuple(ROWS.items()))])
