"""Rows by rule: their distribution, and the same bits for any rows and columns of a table."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dmt_plugin.tables.counter import ENTRIES, PAIRS
from dmt_plugin.tables.rules import Rectangle, Step, TableRule

ROWS, DIM = 3000, 37
WHOLE = Rectangle.whole(ROWS, DIM)


def rule(*steps: tuple[str, tuple[float, ...]]) -> TableRule:
    return TableRule(ROWS, DIM, tuple(Step(what, numbers, WHOLE) for what, numbers in steps))


def made(
    of: TableRule,
    seed: int = 0,
    name: str = "t.weight",
    rows: range | Tensor | None = None,
    columns: range = range(DIM),
) -> Tensor:
    rows = range(of.rows) if rows is None else rows
    out = torch.full((len(rows), len(columns)), math.nan)
    of.write(seed, name, rows, columns, out)
    return out


NORMAL = rule(("normal", (0.5, 2.0)))
UNIFORM = rule(("uniform", (-1.0, 3.0)))
TRUNCATED = rule(("uniform", (-0.9, 0.9)), ("erfinv", ()), ("mul", (math.sqrt(2),)), ("clamp_max", (1.0,)))
SPOTTED = TableRule(
    ROWS,
    DIM,
    (
        Step("normal", (0.0, 1.0), WHOLE),
        Step("constant", (0.0,), Rectangle(7, 8, 1, 0, DIM)),
        Step("mul", (3.0,), Rectangle(10, 2000, 5, 3, 20)),
        Step("row", tuple(float(i) for i in range(DIM)), Rectangle(9, 10, 1, 0, DIM)),
        Step("uniform", (5.0, 6.0), Rectangle(50, 60, 1, 0, DIM)),
    ),
)


def test_distributions():
    n = ROWS * DIM
    normal = (made(NORMAL).double() - 0.5) / 2
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        assert float((normal**power).mean()) == pytest.approx(moment, abs=4 * math.sqrt(96 / n))
    below = torch.sort(normal.flatten()).values
    expected = 0.5 * (1 + torch.erf(below / math.sqrt(2)))
    assert float((expected - (torch.arange(n) + 0.5) / n).abs().max()) < 1.95 / math.sqrt(n)  # Kolmogorov, 0.1 %
    uniform = torch.sort(made(UNIFORM).double().flatten()).values
    assert float(uniform[0]) >= -1 and float(uniform[-1]) < 3
    assert float(((uniform + 1) / 4 - (torch.arange(n) + 0.5) / n).abs().max()) < 1.95 / math.sqrt(n)
    cut = made(TRUNCATED)
    assert float(cut.max()) == 1.0 and float(cut.min()) > -1.65 and float(cut.mean()) < 0


def test_neighbours_draws_names_and_seeds_are_independent():
    first = made(NORMAL) - 0.5
    others = [first[1:] * first[:-1], first[:, 1:] * first[:, :-1], first[:, ::2][:, :18] * first[:, 1::2]]
    others += [first * (made(NORMAL, name="u.weight") - 0.5), first * (made(NORMAL, seed=1) - 0.5)]
    twice = TableRule(ROWS, DIM, (*NORMAL.steps, Step("normal", (0.5, 2.0), Rectangle(0, ROWS, 1, 0, 20))))
    others.append(((made(twice) - 0.5) * first)[:, :20])
    for product in others:
        assert abs(float(product.mean())) < 4 * 4 / math.sqrt(product.numel())


@pytest.mark.parametrize("of", [NORMAL, UNIFORM, TRUNCATED, SPOTTED], ids=["normal", "uniform", "truncated", "spotted"])
def test_any_rows_and_columns_have_the_same_bits(of):
    whole = made(of)
    assert whole.isfinite().all() and torch.equal(whole, made(of))
    ids = torch.randint(0, ROWS, (500,), generator=torch.Generator().manual_seed(0))
    for rows, columns in (
        (range(1000, 2001), range(DIM)), (range(3, ROWS, 7), range(DIM)), (range(ROWS), range(17, 30)),
        (range(ROWS), range(18, 37)), (range(11, 900, 4), range(5, 6)), (range(7, 8), range(DIM)),
        (range(0), range(DIM)),
    ):  # fmt: skip
        found = made(of, rows=rows, columns=columns)
        assert torch.equal(found, whole[rows.start : rows.stop : rows.step, columns.start : columns.stop])
    assert torch.equal(made(of, rows=ids, columns=range(2, 31)), whole[ids, 2:31])
    aside = torch.zeros(2 * ROWS, 2 * DIM)
    of.write(0, "t.weight", range(ROWS), range(DIM), aside[::2, ::2])
    assert torch.equal(aside[::2, ::2], whole) and not aside[1::2].any()


def test_rows_wider_than_a_block():
    wide = TableRule(3, 2 * ENTRIES + 5, (Step("normal", (0.0, 1.0), Rectangle.whole(3, 2 * ENTRIES + 5)),))
    whole = made(wide, columns=range(wide.dim))
    assert whole.isfinite().all() and abs(float(whole.mean())) < 0.02
    part = made(wide, rows=range(1, 3), columns=range(PAIRS - 3, wide.dim - 1))
    assert torch.equal(part, whole[1:, PAIRS - 3 : -1])


def test_bits_do_not_depend_on_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = made(TRUNCATED), made(NORMAL)
        torch.set_num_threads(3)
        assert all(torch.equal(a, b) for a, b in zip(one, (made(TRUNCATED), made(NORMAL)), strict=True))
    finally:
        torch.set_num_threads(before)


def test_parts_are_what_they_were_made_of():
    plain, spotted = made(rule(("normal", (0.0, 1.0)))), made(SPOTTED)
    assert not spotted[7].any() and torch.equal(spotted[9], torch.arange(DIM).float())
    assert torch.equal(spotted[10:2000:5, 3:20][10:], plain[10:2000:5, 3:20][10:] * 3)
    assert torch.equal(spotted[2000:], plain[2000:]) and ((spotted[50:60] >= 5) & (spotted[50:60] < 6)).all()


def test_rules_are_data():
    assert TableRule.from_dict(SPOTTED.to_dict()) == SPOTTED
    assert str(SPOTTED).startswith("normal(0, 1), constant(0) in row 7, mul(3) in rows 10:2000")
    assert SPOTTED.complete and not TableRule(3, 2, ()).complete
    assert SPOTTED.then(Step("constant", (1.0,), WHOLE)).steps == (Step("constant", (1.0,), WHOLE),)
