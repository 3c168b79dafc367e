"""What counts as the same, and what is said of what is not."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from dmt_plugin.core.equality import Difference, differences, same, say_differences

NAN, INF = float("nan"), float("inf")
LARGEST = torch.finfo(torch.float32).max
Pair = collections.namedtuple("Pair", "a b")


class Opaque:
    def __init__(self, value: Any) -> None:
        self.value = value


@dataclass
class Compared:
    value: int


def values(*numbers: float, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.tensor(numbers, dtype=dtype)


@pytest.mark.parametrize(
    "make",
    [
        lambda: values(1.0, NAN, INF, -INF),
        lambda: values(1, 2),
        lambda: values(True, False),
        lambda: values(complex(1, NAN), 2j),
        lambda: values(1.0, 2.0, dtype=torch.bfloat16),
        lambda: torch.zeros(0, 3),
        lambda: values(0.0, 3.0).to_sparse(),
        lambda: values(1.0).requires_grad_(),
        lambda: {"a": [values(1.0), 3, "x", None, NAN], "b": Pair(1.5, torch.float32)},
        lambda: Opaque(values(NAN)),
        lambda: Compared(1),
    ],
)
def test_equal_to_another_of_its_kind(make):
    assert differences(make(), make()) == [] and same(make(), make())


def test_zeros_of_both_signs_are_equal():
    assert same(values(0.0), values(-0.0))


@pytest.mark.parametrize(
    ("first", "second", "where", "how"),
    [
        (values(NAN), values(0.0), "", "NaN or infinite in other places"),
        (values(INF), values(LARGEST), "", "NaN or infinite in other places"),
        (values(INF), values(-INF), "", "NaN or infinite in other places"),
        (values(1.0, NAN), values(1.5, NAN), "", "largest difference 0.5"),
        (values(1), values(1.0), "", "torch.int64, then torch.float32"),
        (values(1.0), values(1.0, dtype=torch.float64), "", "torch.float32, then torch.float64"),
        (values(1.0), values(1.0, 1.0), "", "shape (1,), then (2,)"),
        ((values(1.0), 2), (values(1.0), 3), "[1]", "2, then 3"),
        ({"x": [True]}, {"x": [1]}, "['x'][0]", "True, then 1"),
        ([values(1.0)], [None], "[0]", "a tensor, then None"),
        ([1], (1,), "", "1 values in a list, then 1 in a tuple"),
        ([1], [1, 2], "", "1 values in a list, then 2 in a list"),
        (Opaque(1), Opaque(2), "", "a value of type Opaque, then a value of type Opaque"),
        (Compared(1), Compared(2), "", "a value of type Compared, then a value of type Compared"),
    ],
)
def test_what_differs_and_where(first, second, where, how):
    (found,) = differences(first, second)
    assert (found.where, found.how) == (where, how)
    assert not same(first, second) and not same(second, first)


def test_in_a_few_words():
    assert say_differences([]) == "largest difference 0"
    numbers = [Difference("[0]", "largest difference 0.5", 0.5), Difference("[2]", "largest difference 2", 2.0)]
    assert say_differences(numbers) == "largest difference 2"
    assert say_differences([*numbers, Difference("[3]", "1, then 2")]) == "1, then 2"
