"""Tables cut up in different ways are compared as wholes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.step.parts import Change, Held, Part, added, changes, distance

START = [torch.zeros(8, 4), torch.ones(8, 4)]


def trained() -> list[Tensor]:
    return [table + torch.randn(8, 4, generator=torch.Generator().manual_seed(i)) for i, table in enumerate(START)]


def whole() -> dict[int, Change]:
    first, second = trained()
    return added([changes({0: first}, START), changes({1: second}, START)])


def by_rows(tables: list[Tensor]) -> list[Held]:
    return [{i: [Part(table[row : row + 4], row, 0)] for i, table in enumerate(tables)} for row in (0, 4)]


def by_columns(tables: list[Tensor]) -> list[Held]:
    blocks = [{i: [Part(t[:, c : c + 1], 0, c) for c in (2 * rank, 2 * rank + 1)] for i, t in enumerate(tables)}
              for rank in (0, 1)]  # fmt: skip
    return [*blocks]


@pytest.mark.parametrize("cut", [by_rows, by_columns])
def test_parts_add_up(cut: object) -> None:
    total = added(changes(held, START) for held in cut(trained()))  # type: ignore[operator]
    assert {feature: change.entries for feature, change in total.items()} == {0: 32, 1: 32}
    assert all(distance(total[feature], expected) < 1e-6 for feature, expected in whole().items())


@pytest.mark.parametrize("cut", [by_rows, by_columns])
def test_what_shows(cut: object) -> None:
    def far(tables: list[Tensor], leave_out: bool = False) -> float:
        held = cut(tables)[: 1 if leave_out else None]  # type: ignore[operator]
        return distance(added(changes(one, START) for one in held)[0], whole()[0])

    first, second = trained()
    assert far([first.roll(1, 0), second]) > 0.05, "a row further down"
    assert far([first.roll(1, 1), second]) > 0.05, "a column further on"
    assert far([1.01 * first, second]) > 0.009, "a scale"
    assert far([START[0], second]) == float("inf"), "not trained"
    assert far([first, second], leave_out=True) == float("inf"), "a part that nobody holds"
    assert distance(None, whole()[0]) == float("inf")
