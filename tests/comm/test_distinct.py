"""Rows that are asked for once per host (or rank), over many topologies, against a single process."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests._util.distinct import DistinctProgram, whole_tables
from tests._util.routing import Case, assert_matches
from tests._util.simulated import SimulatedWorld
from tests.comm.test_simulated import random_case

ROUTES = ("hierarchical", "flat")


def run(case: Case, route: str, seed: int = 0, **options: Any) -> list[Any]:
    return SimulatedWorld(case.topology).run(lambda wire: DistinctProgram(case, wire, route, seed, **options).step())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", ["1x1", "1x3", "3x1", "2x2", "4x2", "3x4", "8x8"])
def test_equals_a_single_process(shape: str, route: str) -> None:
    hosts, lanes = map(int, shape.split("x"))
    for seed in range(2 if hosts * lanes < 20 else 1):
        case = random_case(hosts, lanes, features=min(hosts * lanes + 3, 24), seed=seed)
        assert_matches(case, whole_tables(run(case, route, seed)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(0, 10**6), st.sampled_from(ROUTES))
def test_any_case(hosts: int, lanes: int, features: int, seed: int, route: str) -> None:
    case = random_case(hosts, lanes, features, seed)
    assert_matches(case, whole_tables(run(case, route, seed)))
