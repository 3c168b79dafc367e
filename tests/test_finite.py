"""Every kind of entry that is not finite is found, in every type and place; large finite ones are finite."""

from __future__ import annotations

import pytest
import torch

from dmt_plugin.core.finite import all_finite, bounds_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", [0, 1234, -1])
def test_what_is_not_finite_is_found(dtype: torch.dtype, bad: float, place: int) -> None:
    values = torch.randn(37, 41).to(dtype)
    empty = torch.zeros(0, 3)
    assert all_finite(bounds_of([values, empty]), CPU)
    values.view(-1)[place] = bad
    assert not all_finite(bounds_of([empty, torch.ones(3), values]), CPU)
    assert not all_finite(bounds_of([values.t()]), CPU)


def test_large_entries_are_finite_and_nothing_is() -> None:
    assert all_finite(bounds_of([torch.full((1000,), torch.finfo(torch.float32).max)]), CPU)
    assert all_finite(bounds_of([torch.full((3,), 1e200, dtype=torch.float64), torch.ones(2)]), CPU)
    assert all_finite([], CPU)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_may_make_an_infinite_sum_counts_as_infinite(sign: int) -> None:
    most = torch.finfo(torch.float32).max
    for part, fits in ((0.24, True), (0.26, False)):
        values = torch.tensor([0.0, sign * part * most])
        assert bool(all_finite(bounds_of([values]), CPU, summands=4)) == fits
        assert bool(torch.stack([values] * 4).sum(0).isfinite().all()) == fits
    assert not all_finite(bounds_of([torch.tensor([float("nan")])]), CPU, summands=4)


def test_types_are_judged_each_by_its_own() -> None:
    mixed = [torch.ones(3), torch.full((3,), 1e200, dtype=torch.float64), torch.ones(3).bfloat16()]
    assert all_finite(bounds_of(mixed), CPU)
    for number in range(3):
        bad = [x.clone() for x in mixed]
        bad[number][1] = float("nan")
        assert not all_finite(bounds_of(bad), CPU)
