"""The step by hand that the engine is measured against computes the same."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch

from benchmarks import overhead
from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env


def trained(rank: int, world: int) -> list[str]:
    ours, by_hand = overhead.sides("one host", rank)
    engine = inspect.getclosurevars(ours).nonlocals["engine"]
    assert isinstance(by_hand, overhead.ByHand)
    for number in range(2):
        inputs = overhead.batch(rank, number)
        ours(inputs)
        by_hand(inputs)
    found = dict(engine.module.named_parameters())
    pairs = {n: (p, found[n]) for n, p in by_hand.model.named_parameters() if n in found}
    held = engine.dmt.lookup
    for f in range(overhead.FEATURES):
        name, own = f"tables.{f}", f"t{f}"
        if name in held.tables and own in by_hand.lookup.tables:
            pairs[name] = held.table_weight(name), by_hand.lookup.table_weight(own)
    assert len(pairs) > 10
    return [n for n, (a, b) in pairs.items() if not torch.allclose(a, b, rtol=0, atol=1e-6)]


@pytest.mark.processes
def test_both_sides_take_the_same_steps() -> None:
    assert run_ranks(2, trained, env=partial(launcher_env, "1x2")) == [[], []]
