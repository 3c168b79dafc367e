"""What every rank of the step benchmark does before it begins: its cores, and how memory is kept."""

from __future__ import annotations

import os

import pytest

from benchmarks.step.allocator import keep_freed_memory
from benchmarks.step.cores import cores_of, stay_on_own_cores


@pytest.mark.parametrize(
    ("hosts", "cores", "expected"),
    [
        (4, [0, 1], [[0], [1], [0], [1]]),
        (2, [0, 1, 2, 3], [[0, 1], [2, 3]]),
        (2, [4, 6, 9], [[4], [6]]),
        (1, [2, 3], [[2, 3]]),
    ],
)
def test_hosts_have_cores_of_their_own(hosts: int, cores: list[int], expected: list[list[int]]) -> None:
    assert [cores_of(host, hosts, cores) for host in range(hosts)] == expected


def test_a_process_stays_where_it_is_put() -> None:
    before = os.sched_getaffinity(0)
    try:
        stay_on_own_cores(1, 2)
        assert os.sched_getaffinity(0) == set(cores_of(1, 2, sorted(before)))
    finally:
        os.sched_setaffinity(0, before)


def test_the_allocator_takes_the_settings() -> None:
    assert keep_freed_memory()
