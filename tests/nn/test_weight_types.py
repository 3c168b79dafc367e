"""Tables in bf16 and fp16: what they give, how they are updated, and which backend may hold them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmt_plugin.core.update_rule import RULES, Rule, WeightType
from dmt_plugin.nn.lookup.fbgemm_rules import why_not
from dmt_plugin.nn.lookup.rounding import TORCH_TYPES, Place, written
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from tests.nn.test_lookup import SITES, make_routed, make_weights, reference

SHORT: tuple[WeightType, ...] = ("bf16", "fp16")
CPU = torch.device("cpu")
STEPS = 5


def rule(name: Any, dtype: WeightType, stochastic: bool = True) -> Rule:
    return Rule(name, 0.1, eps=1e-3, dtype=dtype, stochastic_rounding=stochastic)


def lookup_of(of_tables: Rule, backend: str = "torch", weights: dict[str, Tensor] | None = None) -> ShardedLookup:
    weights = make_weights() if weights is None else weights
    return ShardedLookup(SITES, weights, backend=backend, rules=dict.fromkeys(weights, of_tables))


def train(lookup: ShardedLookup, step: int) -> Tensor:
    out = lookup(make_routed(6, seed=step))
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(step)).mul(64).round().div(64)
    (out * cotangent).sum().backward()
    return out.detach()


@pytest.mark.parametrize("dtype", SHORT)
@pytest.mark.parametrize("name", RULES)
def test_five_steps_are_those_of_fp32_each_rounded_once(name: str, dtype: WeightType) -> None:
    """An fp32 table of the same values makes each update; what it has then, rounded, is the table, bit for bit."""
    lookup = lookup_of(rule(name, dtype))
    exact = lookup_of(replace(lookup.rules["a"], dtype="fp32", stochastic_rounding=False))
    kept = {name: lookup.table_weight(name).clone() for name in lookup.tables}
    assert all(values.dtype == TORCH_TYPES[dtype] for values in kept.values())
    assert all(torch.equal(values, make_weights()[name].to(values.dtype)) for name, values in kept.items())
    for step in range(1, STEPS + 1):
        for table, values in kept.items():
            exact.load_table(table, values.float())
        before = {table: exact.table_weight(table).clone() for table in kept}
        assert torch.equal(train(lookup, step), train(exact, step))
        lookup.step()
        exact.step()
        lookup.zero_grad()
        exact.zero_grad()
        for table in kept:
            now = exact.table_weight(table)
            place = Place(table, 0, 1, range(now.shape[1]), now.shape[1])
            rows = written(lookup.rules[table], now, torch.arange(len(now)), place, 0, step)
            changed = (now != before[table]).any(1)
            kept[table] = torch.where(changed.unsqueeze(1), rows, kept[table])
            assert torch.equal(lookup.table_weight(table), kept[table])
            own = lookup.optimizer_state(table)
            assert all(value.dtype == torch.float32 for value in own.values())
            assert all(torch.equal(own[key], state) for key, state in exact.optimizer_state(table).items())
    assert any(not torch.equal(values, make_weights()[table].to(values.dtype)) for table, values in kept.items())


@pytest.mark.parametrize("backend", ["torch", "fbgemm"])
def test_a_table_takes_half_the_memory(backend: str) -> None:
    sizes = {}
    for dtype in ("fp32", "fp16"):
        lookup = lookup_of(rule("adagrad", dtype, False), backend)  # type: ignore[arg-type]
        assert lookup.backend_of("b") == backend
        sizes[dtype] = sum(lookup.table_weight(table).untyped_storage().nbytes() for table in ("b",))
        assert lookup.optimizer_state("b")["sum"].dtype == torch.float32
    assert sizes["fp16"] * 2 == sizes["fp32"]


@pytest.mark.parametrize("dtype", SHORT)
def test_rows_are_pooled_in_fp32(dtype: WeightType) -> None:
    lookup, routed = lookup_of(rule("sgd", dtype)), make_routed(6)
    wide = {name: values.to(TORCH_TYPES[dtype]).float() for name, values in make_weights().items()}
    with torch.no_grad():
        out = lookup(routed)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, reference(SITES, wide, routed), rtol=1e-6, atol=1e-6)
    lookup.row_dtype = torch.bfloat16
    with torch.no_grad():
        assert torch.equal(lookup(routed), out.bfloat16())
    assert not lookup.holds


@pytest.mark.parametrize("name", ["sgd", "adagrad", "rowwise_adagrad"])
def test_fbgemm_rounds_fp16_to_nearest_as_the_reference_does(name: str) -> None:
    own, other = (lookup_of(rule(name, "fp16", False), backend) for backend in ("torch", "fbgemm"))
    assert {other.backend_of(table) for table in other.tables} == {"fbgemm"}
    for step in range(STEPS):
        torch.testing.assert_close(train(own, step), train(other, step), rtol=2e-2, atol=2e-2)
        for lookup in (own, other):
            lookup.step()
            lookup.zero_grad()
    for table in own.tables:
        torch.testing.assert_close(own.table_weight(table), other.table_weight(table), rtol=4e-3, atol=8e-3)


@pytest.mark.parametrize(
    ("dtype", "stochastic", "key"),
    [
        ("bf16", True, "dmt.lookup.dtype"),
        ("bf16", False, "dmt.lookup.dtype"),
        ("fp16", True, "dmt.lookup.stochastic_rounding"),
    ],
)
def test_what_fbgemm_does_not_do_goes_to_torch_or_is_refused_by_its_key(
    dtype: WeightType, stochastic: bool, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    of_tables = rule("sgd", dtype, stochastic)
    assert why_not(of_tables, CPU).startswith(f"{key}: ")
    with pytest.raises(ValueError, match=key):
        lookup_of(of_tables, "fbgemm")
    with caplog.at_level(logging.INFO, logger="dmt_plugin"):
        assert {lookup_of(of_tables, "auto").backend_of(table) for table in "abm"} == {"torch"}
    assert key in caplog.text


def test_gradients_of_several_passes_make_one_update() -> None:
    both, apart = (lookup_of(rule("adam", "bf16")) for _ in range(2))
    train(both, 0)
    assert both.holds
    both.zero_grad()
    assert not both.holds
    for lookup, batches in ((both, (1, 2)), (apart, (2, 1))):
        for batch in batches:
            train(lookup, batch)
        lookup.step()
        lookup.zero_grad()
    assert both.steps == dict.fromkeys(both.tables, 1) == apart.steps
    off = [float((both.table_weight(t).float() - apart.table_weight(t).float()).abs().max()) for t in both.tables]
    assert max(off) <= 2.0**-7  # added up in another order


def test_a_stochastically_rounding_rule_counts_its_steps() -> None:
    """So that a run that goes on has the bits it would have had."""
    whole, first, second = (lookup_of(rule("sgd", "bf16")) for _ in range(3))
    for step in range(4):
        for lookup in (whole, first if step < 2 else second):
            train(lookup, step)
            lookup.step()
            lookup.zero_grad()
        if step == 1:
            for table in first.tables:
                second.load_table(table, first.table_weight(table))
            second.set_steps(first.steps)
    assert whole.steps == second.steps == dict.fromkeys(whole.tables, 4)
    assert all(torch.equal(whole.table_weight(table), second.table_weight(table)) for table in whole.tables)
    assert lookup_of(rule("sgd", "bf16", False)).steps == {}
