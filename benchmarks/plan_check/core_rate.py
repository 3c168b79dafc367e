"""How many FLOP/s a core does in products as large as a dense part's, with all cores busy: a user's own number."""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time

import torch

_SIZES = (512, 512, 1024)
_REPEATS = 40


def flops_of_a_core() -> float:
    """Median over the cores, of the median of products on each."""
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        return statistics.median(pool.map(_one, range(os.cpu_count() or 1)))


def _one(number: int) -> float:
    torch.set_num_threads(1)
    rows, inner, columns = _SIZES
    left, right = torch.randn(rows, inner), torch.randn(inner, columns)
    found = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        left @ right
        found.append(2 * rows * inner * columns / (time.perf_counter() - begun))
    return statistics.median(found)
