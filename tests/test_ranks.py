"""The helper that other tests stand on: results in order, every traceback, nothing left running."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from tests._util.ranks import RanksFailed, run_ranks

pytestmark = pytest.mark.processes


def _sum_of_ranks(rank, world_size, offset):
    value = torch.tensor([rank + offset])
    dist.all_reduce(value)
    return rank, int(value), torch.get_num_threads(), os.environ["WHO"], os.environ.get("LOCAL_SIZE")


def _misbehave(rank, world_size):
    if rank == 0:
        raise ValueError("no luck")
    if rank == 1:
        os._exit(7)
    time.sleep(60)


def _die_or_answer(rank, world_size):
    if rank == 1:
        os._exit(7)
    return "alive"


def test_results_in_rank_order(monkeypatch):
    monkeypatch.setenv("LOCAL_SIZE", "64")
    results = run_ranks(2, _sum_of_ranks, 10, env=lambda rank: {"WHO": f"r{rank}"})
    assert results == [(0, 21, 1, "r0", None), (1, 21, 1, "r1", None)]


def test_every_failure_is_told_and_the_rest_is_killed():
    with pytest.raises(RanksFailed) as caught:
        run_ranks(3, _misbehave, grace=2)
    assert "ValueError: no luck" in caught.value.failures[0]
    assert "exit code 7" in caught.value.failures[1]
    assert "killed" in caught.value.failures[2]


def test_a_rank_may_die_on_purpose():
    assert run_ranks(2, _die_or_answer, may_die=[1]) == ["alive", None]
