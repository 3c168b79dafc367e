"""The zoo itself: every variant runs, its data do not depend on chance, its oracle can be built; and refusals."""

from __future__ import annotations

import pytest
import torch
import torch.utils._pytree as pytree

from tests.zoo.catalogue import CATALOGUE
from tests.zoo.checks import build, run
from tests.zoo.negative import NEGATIVES, Negative, says, verdict


@pytest.mark.parametrize("name", list(CATALOGUE))
def test_a_variant_runs_and_repeats_itself(name: str) -> None:
    variant = CATALOGUE[name]
    for sizes in ({}, {"features": 8, "width": 8}):
        results = []
        for _ in range(2):
            model, batch = build(variant, **sizes)
            results.append(run(model.eval(), batch, 5, 1))
        assert results[0] and all(torch.equal(a, b) for a, b in zip(*results, strict=True))
        assert all(t.isfinite().all() for t in results[0])
        model, batch = build(variant, **sizes)
        first, second = (pytree.tree_leaves(run(model.eval(), batch, n, 1)) for n in (5, 9))
        assert [a.shape[1:] for a in first] == [b.shape[1:] for b in second]


@pytest.mark.parametrize("name", [v.name for v in CATALOGUE.values() if v.oracle is not None])
def test_an_oracle_can_be_built(name: str) -> None:
    oracle = CATALOGUE[name].oracle
    assert oracle is not None
    model, batch = oracle.build(8, 4, 6)
    modules = dict(model.named_modules())
    assert all(path in modules for path in (*oracle.tables(8), *oracle.copied))
    assert run(model.eval(), batch, 5, 1)


def test_a_variant_without_an_oracle_says_why() -> None:
    assert all((v.oracle is None) == bool(v.why_no_oracle) for v in CATALOGUE.values())


@pytest.mark.parametrize("case", NEGATIVES, ids=lambda case: case.name)
def test_a_model_that_cannot_be_kept_is_named(case: Negative) -> None:
    assert verdict(case, says(case)) == "as expected"


def test_every_case_of_the_negative_zoo_has_an_answer_of_its_own() -> None:
    answers = [(case.code, case.place, case.reason) for case in NEGATIVES]
    assert len(set(answers)) == len(answers) and len({case.name for case in NEGATIVES}) == len(NEGATIVES)
