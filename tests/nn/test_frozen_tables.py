"""Tables that are frozen, from the start or for the time being, on both backends: nothing of them moves.

What a table does while it is frozen is nothing, so that training with gaps is training on the steps between the gaps.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmt_plugin.core.errors import DMTError
from dmt_plugin.core.update_rule import FROZEN, Rule
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from tests.nn.test_lookup import SITES, make_routed, make_weights

RULES = {
    "momentum": Rule("sgd", 0.1, momentum=0.9),
    "adam": Rule("adam", 0.1, weight_decay=0.1, decoupled=True),
    "decay": Rule("adagrad", 0.1, weight_decay=0.1),
    "bf16": Rule("adagrad", 0.1, dtype="bf16", stochastic_rounding=True),
    "rowwise_adagrad": Rule("rowwise_adagrad", 0.1, eps=1e-3),
}
BACKENDS = [("torch", name) for name in RULES] + [("fbgemm", "rowwise_adagrad")]


def make(backend: str, rule: Rule, frozen: tuple[str, ...] = ()) -> ShardedLookup:
    still = replace(FROZEN, dtype=rule.dtype)
    rules = {name: still if name in frozen else rule for name in ("a", "b", "m")}
    return ShardedLookup(SITES, make_weights(), backend=backend, rules=rules)


def step(lookup: ShardedLookup, number: int, parts: int = 1) -> Tensor:
    """One step, of several micro-batches perhaps; gives the rows of the last."""
    out = torch.empty(0)
    for part in range(parts):
        lookup.hold_gradients(lookup.holds or part + 1 < parts)
        out = lookup(make_routed(6, seed=10 * number + part))
        cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(number))
        if out.requires_grad:
            (out * cotangent).sum().backward()
    lookup.step()
    lookup.zero_grad()
    return out.detach()


def all_of(lookup: ShardedLookup, table: str) -> list[Tensor]:
    state = lookup.optimizer_state(table)
    return [lookup.table_weight(table).clone(), *(state[key].clone() for key in sorted(state))]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("backend", "name"), BACKENDS)
def test_frozen_from_the_start(backend: str, name: str) -> None:
    lookup, other = make(backend, RULES[name], ("a", "m")), make(backend, RULES[name])
    begin = {table: lookup.table_weight(table).clone() for table in "abm"}
    for number in range(3):
        step(lookup, number)
        step(other, number)
    for table in ("a", "m"):
        assert lookup.optimizer_state(table) == {} and torch.equal(lookup.table_weight(table), begin[table])
        assert lookup.rates[table] == 0.0
    assert same(all_of(lookup, "b"), all_of(other, "b")) and not torch.equal(lookup.table_weight("b"), begin["b"])
    assert set(lookup.steps) == ({"b"} if name in ("adam", "bf16") else set())


@pytest.mark.parametrize(
    ("backend", "rule"), [("torch", "rowwise_adagrad"), ("fbgemm", "rowwise_adagrad"), ("torch", "bf16")]
)
def test_only_frozen_tables_give_rows_without_a_graph(backend: str, rule: str) -> None:
    lookup = make(backend, RULES[rule], ("a", "b", "m"))
    assert not lookup(make_routed(6)).requires_grad
    lookup.watch_gradients(True)
    assert not lookup(make_routed(6)).requires_grad and bool(lookup.finite)
    lookup.hold_gradients(True)
    assert not lookup(make_routed(6)).requires_grad and not lookup.holds


MODES: dict[str, dict[str, Any]] = {"in backward": {}, "delayed": {"watch": True}, "held": {"parts": 2}}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("backend", "name"), BACKENDS)
def test_frozen_for_some_steps(backend: str, name: str, mode: str) -> None:
    """Table a shares its TBE with b, and stands still in steps 1 and 2; b goes on as if nothing were."""
    parts = MODES[mode].get("parts", 1)
    lookup, other = make(backend, RULES[name]), make(backend, RULES[name])
    for one in (lookup, other):
        one.watch_gradients(MODES[mode].get("watch", False))
    without_gap = make(backend, RULES[name])
    for number in range(5):
        if number == 1:
            lookup.freeze(["a", "of another rank"])
            before = all_of(lookup, "a")
        if number == 3:
            assert same(all_of(lookup, "a"), before), "a frozen table, or what is kept for it, has moved"
            lookup.freeze([])
        lookup.set_lr(lambda rule: rule.lr)
        out, expected = step(lookup, number, parts), step(other, number, parts)
        assert out.shape == expected.shape and (number != 1 or torch.equal(out, expected))
        if number not in (1, 2):
            step(without_gap, number, parts)
    assert same(all_of(lookup, "b"), all_of(other, "b")) and same(all_of(lookup, "m"), all_of(other, "m"))
    assert same(all_of(lookup, "a"), all_of(without_gap, "a")) and not same(all_of(lookup, "a"), all_of(other, "a"))
    assert lookup.steps == (without_gap.steps | {t: other.steps[t] for t in "bm"} if name in ("adam", "bf16") else {})


@pytest.mark.parametrize(
    ("backend", "rule"), [("torch", "rowwise_adagrad"), ("fbgemm", "rowwise_adagrad"), ("torch", "bf16")]
)
def test_a_table_that_is_frozen_between_forward_and_step_is_not_updated(backend: str, rule: str) -> None:
    lookup = make(backend, RULES[rule])
    lookup.watch_gradients(True)
    before = all_of(lookup, "a")
    lookup(make_routed(6)).sum().backward()
    lookup.freeze(["a"])
    lookup.step()
    assert same(all_of(lookup, "a"), before)


def test_where_updates_are_in_the_backward_pass_that_is_too_late() -> None:
    lookup = make("fbgemm", RULES["rowwise_adagrad"])
    out = lookup(make_routed(6))
    lookup.freeze(["a"])
    with pytest.raises(DMTError, match=r"between the forward and the backward pass.*engine\.freeze_tables"):
        out.sum().backward()
