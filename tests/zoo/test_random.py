"""Random architectures: none is wrong, none crashes, and most are native."""

from __future__ import annotations

import logging

import pytest

from tests.zoo.random_survey import Outcome, shares, survey


def require(found: list[Outcome]) -> None:
    bad = [o for o in found if o.verdict in ("wrong", "crash", "refused")]
    assert not bad, bad[:3]
    assert shares(found)["captured"] >= 0.9 and shares(found)["native"] >= 0.7, shares(found)


@pytest.mark.parametrize("first", range(0, 100, 25))
def test_random_architectures(first: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    require(survey(range(first, first + 25), quick=True))


@pytest.mark.campaign
@pytest.mark.parametrize("first", range(100, 600, 50))
def test_many_random_architectures(first: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    require(survey(range(first, first + 50)))
