"""Stochastic rounding: unbiased, the same wherever a row is, and without it small updates are lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dmt_plugin.core.counter_hash import key_of
from dmt_plugin.core.update_rule import Rule, WeightType
from dmt_plugin.nn.lookup.rounding import TORCH_TYPES, Place, random_bits, stochastically, type_of, written
from dmt_plugin.nn.lookup.updates import updated
from dmt_plugin.plan.tables import TableSpec, shards_of

SHORT: tuple[WeightType, ...] = ("bf16", "fp16")
WHOLE = Place("items.weight", 0, 1, range(7), 7)


def bits(rows: int = 4000, place: Place = WHOLE, key: int = 3) -> Tensor:
    return random_bits(key, torch.arange(rows), place)


def beside(value: float, dtype: torch.dtype) -> tuple[float, float]:
    """The numbers of a type on both sides of one that it does not have."""
    near = torch.tensor(value, dtype=dtype)
    towards = float("inf") if float(near) < value else -float("inf")
    other = torch.nextafter(near, torch.tensor(towards, dtype=dtype))
    return min(float(near), float(other)), max(float(near), float(other))


@pytest.mark.parametrize("value", [1.0012, -0.3337, 300.7, 3.31e-5, 7.1e-7, -4.2e-8], ids=str)
@pytest.mark.parametrize("name", SHORT)
def test_an_entry_becomes_one_of_its_neighbours_and_the_mean_is_right(name: WeightType, value: float) -> None:
    dtype = TORCH_TYPES[name]
    rows = torch.full((4000, 7), value)
    value = float(rows[0, 0])
    found = stochastically(rows, bits(), dtype).double()
    low, high = beside(value, dtype)
    assert set(found.unique().tolist()) == {low, high}
    share, exact = float((found == high).double().mean()), (value - low) / (high - low)
    assert abs(share - exact) < 4 * (exact * (1 - exact) / rows.numel()) ** 0.5 + 2.0**-16


@pytest.mark.parametrize("name", SHORT)
def test_numbers_of_the_type_and_what_is_not_finite_stay(name: WeightType) -> None:
    dtype = TORCH_TYPES[name]
    own = torch.cat([torch.randn(50, 7), torch.randn(50, 7) * 1e-6]).to(dtype)
    assert torch.equal(stochastically(own.float(), bits(100), dtype), own)
    odd = torch.tensor([[float("inf"), -float("inf"), float("nan"), 0.0, -0.0, 1.0, -1.0]])
    for drawn in (0, 2**16 - 1):
        found = stochastically(odd, torch.full((1, 7), drawn, dtype=torch.int32), dtype)
        assert torch.equal(found.view(torch.int16), odd.to(dtype).view(torch.int16))


def test_bits_of_an_entry_depend_on_its_place_in_the_parameter_alone() -> None:
    whole = bits(50)
    assert whole.min() >= 0 and whole.max() < 2**16
    parts = {
        "rows from 20": (Place("items.weight", 20, 1, range(7), 7), whole[20:]),
        "every third row": (Place("items.weight", 1, 3, range(7), 7), whole[1::3]),
        "columns 3 to 6": (Place("items.weight", 0, 1, range(3, 6), 7), whole[:, 3:6]),
        "the last column": (Place("items.weight", 0, 1, range(6, 7), 7), whole[:, 6:]),
    }
    for name, (place, expected) in parts.items():
        numbers = torch.arange(len(expected)).flip(0)
        own = random_bits(3, numbers * place.step + place.first_row, place)
        assert torch.equal(own, expected.flip(0)), name
    assert random_bits(3, torch.arange(0), WHOLE).shape == (0, 7)
    assert not torch.equal(whole, bits(50, key=4))
    columns = whole.double() - whole.double().mean(0)
    assert float((columns[:, 0] * columns[:, 1]).mean().abs()) < 0.25 * 2.0**32 / 12  # neighbours are not the same


def test_a_shard_knows_its_place() -> None:
    table = TableSpec("items[10:30]", 20, 8, "items.weight", 10)
    (shard,) = shards_of(table, 0, 1, None)
    assert Place.of(shard) == Place("items.weight", 10, 1, range(8), 8)


RULE = Rule("sgd", 1.0, dtype="bf16", stochastic_rounding=True)


@pytest.mark.parametrize("change", ["seed", "step", "parameter"])
def test_other_bits_for_another_seed_step_or_table(change: str) -> None:
    rows, numbers = torch.full((40, 7), 1.002), torch.arange(40)
    first = written(RULE, rows, numbers, WHOLE, 0, 1)
    assert torch.equal(first, written(RULE, rows, numbers, WHOLE, 0, 1))  # twice the same
    place = replace(WHOLE, parameter="users.weight") if change == "parameter" else WHOLE
    other = written(RULE, rows, numbers, place, int(change == "seed"), 1 + (change == "step"))
    assert 0.2 < float((first != other).float().mean()) < 0.8


def test_bits_are_those_of_all_versions() -> None:
    """A run that goes on with a newer version has the bits it would have had."""
    expected = [55402, 8203, 56772, 49792, 10596, 27578, 33711]
    assert random_bits(key_of(0, "items.weight", 1), torch.tensor([5]), WHOLE).tolist() == [expected]


def after_small_updates(rule: Rule, steps: int = 400) -> Tensor:
    """64 rows of 1.5, each updated by a twentieth of a step of the type at a time."""
    numbers, step = torch.arange(64), torch.finfo(TORCH_TYPES[rule.dtype]).eps
    table = torch.full((64, 7), 1.5, dtype=TORCH_TYPES[rule.dtype])
    for k in range(1, steps + 1):
        rows = updated(rule, step / 20, k, table.float(), torch.ones(64, 7), {})
        table = written(rule, rows, numbers, WHOLE, 0, k)
    return table.float()


@pytest.mark.parametrize("name", SHORT)
def test_small_updates_are_not_lost(name: WeightType) -> None:
    rule = Rule("sgd", 1.0, dtype=name, stochastic_rounding=True)
    step = torch.finfo(TORCH_TYPES[name]).eps
    moved = (1.5 - after_small_updates(rule)) / step  # 20 steps of the type, each entry with a spread of 4.4
    assert abs(float(moved.mean()) - 20) < 1
    assert 3 < float(moved.std()) < 6
    nearest = after_small_updates(replace(rule, stochastic_rounding=False))
    assert torch.equal(nearest, torch.full_like(nearest, 1.5)), "to nearest, all of them are lost"


def test_names_of_types() -> None:
    assert [type_of(dtype) for dtype in TORCH_TYPES.values()] == list(TORCH_TYPES)
    assert type_of(torch.float64) is None
