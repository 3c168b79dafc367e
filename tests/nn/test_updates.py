"""The update rules against torch's own optimizers, and where torch has none, against formulas written row by row.

torch's dense optimizers do the same where every row has a gradient in every step; ``SparseAdam`` also where not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmt_plugin.core.update_rule import RULES, Rule
from dmt_plugin.nn.lookup.updates import new_states, updated

ROWS, DIM, STEPS = 5, 3, 5
CPU = torch.device("cpu")

TORCHS: dict[str, tuple[Rule, Callable[[list[Tensor]], torch.optim.Optimizer]]] = {
    "sgd": (Rule("sgd", 0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (Rule("sgd", 0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "nesterov": (
        Rule("sgd", 0.1, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    ),
    "sgd decay": (Rule("sgd", 0.1, weight_decay=0.2), lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.2)),
    "adagrad": (Rule("adagrad", 0.1, eps=1e-3), lambda p: torch.optim.Adagrad(p, lr=0.1, eps=1e-3)),
    "adagrad begins": (
        Rule("adagrad", 0.1, initial_accumulator_value=0.7, weight_decay=0.2),
        lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.7, weight_decay=0.2, eps=1e-8),
    ),
    "adam": (
        Rule("adam", 0.1, eps=1e-3, betas=(0.8, 0.95)),
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.95), eps=1e-3),
    ),
    "adam decay": (Rule("adam", 0.1, weight_decay=0.2), lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.2)),
    "adamw": (
        Rule("adam", 0.1, weight_decay=0.2, decoupled=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.2),
    ),
}


def gradients() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(ROWS, DIM, generator=generator) for _ in range(STEPS)]


def start() -> Tensor:
    return torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(0))


def after(rule: Rule, seen: Callable[[int], list[int]] = lambda step: list(range(ROWS))) -> Tensor:
    """The table after five steps, in each of which the rows that ``seen`` names have gradients."""
    table, states = start(), new_states(rule, ROWS, DIM, CPU)
    for step, gradient in enumerate(gradients()):
        rows = seen(step)
        kept = {key: state[rows] for key, state in states.items()}
        table[rows] = updated(rule, rule.lr, step + 1, table[rows], gradient[rows].clone(), kept)
        for key, state in states.items():
            state[rows] = kept[key]
    return table


@pytest.mark.parametrize("name", TORCHS)
def test_torchs_own(name: str) -> None:
    rule, make = TORCHS[name]
    table = start().requires_grad_()
    optimizer = make([table])
    for gradient in gradients():
        table.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(after(rule), table.detach(), rtol=1e-5, atol=1e-6)


def some(step: int) -> list[int]:
    return [row for row in range(ROWS) if (row + step) % 3]


def test_rows_that_are_not_looked_up_keep_still_as_in_sparse_adam() -> None:
    table = start().requires_grad_()
    optimizer = torch.optim.SparseAdam([table], lr=0.1, eps=1e-12)
    for step, gradient in enumerate(gradients()):
        rows = torch.tensor(some(step))
        table.grad = torch.sparse_coo_tensor(rows[None], gradient[rows], table.shape)
        optimizer.step()
    torch.testing.assert_close(after(Rule("adam", 0.1, eps=1e-12), some), table.detach(), rtol=1e-5, atol=1e-6)


DECAYING = [
    replace(rule, weight_decay=0.3, decoupled=decoupled)
    for rule in [Rule("sgd", 0.1, momentum=0.9), *(Rule(name, 0.1) for name in RULES if name != "sgd")]
    for decoupled in (False, True)
]


@pytest.mark.parametrize("rule", DECAYING, ids=str)
def test_a_row_that_is_never_looked_up_is_as_it_was(rule: Rule) -> None:
    def but_the_third(step: int) -> list[int]:
        return [row for row in some(step) if row != 3]

    now = after(rule, but_the_third)
    assert torch.equal(now[3], start()[3]) and not torch.equal(now, start())


def by_hand(rule: Rule) -> Tensor:
    """Row by row in double precision."""
    table = start().double()
    for row in range(ROWS):
        w, first, second = table[row], torch.zeros(DIM).double(), 0.0
        spread = torch.zeros(DIM).double()
        total = rule.initial_accumulator_value
        for step, gradient in enumerate(gradients(), 1):
            g = gradient[row].double()
            if rule.clip_value is not None:
                g = torch.maximum(torch.minimum(g, torch.tensor(rule.clip_value)), torch.tensor(-rule.clip_value))
            if rule.clip_norm is not None and g.norm() > rule.clip_norm:
                g = g / g.norm() * rule.clip_norm
            if rule.name == "sgd":
                w = w - rule.lr * g
            elif rule.name == "rowwise_adagrad":
                w_decayed = w * (1 - rule.lr * rule.weight_decay) if rule.decoupled else w
                g = g if rule.decoupled else g + rule.weight_decay * w
                total += float(g.square().mean())
                w = w_decayed - rule.lr * g / (math.sqrt(total) + rule.eps)
            else:
                b1, b2 = rule.betas
                first = b1 * first + (1 - b1) * g
                mean = first / (1 - b1**step)
                if rule.name == "partial_rowwise_adam":
                    second = b2 * second + (1 - b2) * float(g.square().mean())
                    w = w - rule.lr * mean / (math.sqrt(second / (1 - b2**step)) + rule.eps)
                else:
                    spread = b2 * spread + (1 - b2) * g.square()
                    direction = mean / ((spread / (1 - b2**step)).sqrt() + rule.eps) + rule.weight_decay * w
                    ratio = float(w.norm() / direction.norm())
                    w = w - rule.lr * min(max(ratio, rule.trust_ratio[0]), rule.trust_ratio[1]) * direction
        table[row] = w
    return table.float()


HAND = [
    Rule("rowwise_adagrad", 0.1, eps=1e-2),
    Rule("rowwise_adagrad", 0.1, initial_accumulator_value=0.7, weight_decay=0.2),
    Rule("rowwise_adagrad", 0.1, weight_decay=0.2, decoupled=True),
    Rule("partial_rowwise_adam", 0.1, eps=1e-2, betas=(0.7, 0.9)),
    Rule("lamb", 0.1, betas=(0.7, 0.9), weight_decay=0.2, eps=1e-3),
    Rule("lamb", 0.1, trust_ratio=(0.9, 1.1)),
    Rule("sgd", 0.1, clip_value=0.5),
    Rule("sgd", 0.1, clip_norm=0.8),
    Rule("partial_rowwise_adam", 0.1, clip_norm=0.8, clip_value=0.5),
]


@pytest.mark.parametrize("rule", HAND, ids=str)
def test_formulas_by_hand(rule: Rule) -> None:
    torch.testing.assert_close(after(rule), by_hand(rule), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", [*(rule for rule, _ in TORCHS.values()), *HAND], ids=str)
def test_every_option_matters(rule: Rule) -> None:
    """Each comparison above could fail for each option: without it the table would be another one."""
    plain = Rule(rule.name, rule.lr)
    for option, value in vars(rule).items():
        if option in ("name", "lr") or value == getattr(plain, option):
            continue
        without: dict[str, Any] = {option: getattr(plain, option)}
        off = float((after(replace(rule, **without)) - after(rule)).abs().max())
        assert off > 1e-4, f"{option} = {value} changes nothing"


def test_a_zero_row_has_the_trust_ratio_one() -> None:
    rule = Rule("lamb", 0.1)
    zero, kept = torch.zeros(1, DIM), new_states(rule, 1, DIM, CPU)
    now = updated(rule, 0.1, 1, zero, torch.ones(1, DIM), kept)
    torch.testing.assert_close(now, torch.full((1, DIM), -0.1), rtol=1e-5, atol=1e-6)
