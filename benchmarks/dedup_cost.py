"""What sorting, merging, spreading and summing distinct rows takes per id, in CPU time of one thread.

    python -m benchmarks.dedup_cost

1. Ids of the step benchmark's 26 fields (:mod:`benchmarks.step.ids`), 2 ranks per host, rows of 64 entries.
2. Of one rank: its distinct codes; those of both ranks merged; rows spread to the ranks and expanded to the samples;
   backward, gradients summed per rank and per host. What the exchanges themselves take is not in it, nor what lookup
   and update save because they see fewer rows.
3. Median and quartiles over repeats, per id of the rank's batch. ``comm.link`` is judged by this figure
   (:data:`dmt_plugin.passes.placement.dedup_choice.PROCESSING_S`).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from torch import Tensor

from benchmarks.step.ids import draw, rows_of

FEATURES, LANES, WIDTH = 26, 2, 64


def codes_of(kind: str, samples: int, seed: int) -> Tensor:
    """The codes of all ids of one rank's batch, tables one behind the other."""
    generator = torch.Generator().manual_seed(seed)
    ids = draw(kind, FEATURES, 10_000, (samples, 1), generator)
    first = torch.tensor([0, *(rows_of(kind, i, 10_000) for i in range(FEATURES - 1))]).cumsum(0)
    return (ids + first).t().reshape(-1).int()


def one_step(own: Tensor, other: Tensor, rows: Tensor, gradients: Tensor) -> float:
    """Seconds of CPU time of what one rank does beside sending.

    Args:
        own: its codes ``(n,)``.
        other: the distinct codes of the other rank of its host.
        rows: at least as many rows as the host needs, ``(R, N)``.
        gradients: by id, ``(n, N)``.
    """
    started = time.thread_time()
    distinct, inverse = torch.unique(own, return_inverse=True)
    mine = distinct[: len(distinct) // LANES]
    merged, place = torch.unique(torch.cat([mine, other[: len(other) // LANES]]), return_inverse=True)
    spread = rows[: len(merged)].index_select(0, place)
    arrived = rows[: len(distinct)]
    expanded = arrived.index_select(0, inverse)
    summed = torch.zeros(len(distinct), WIDTH).index_add_(0, inverse, gradients)
    torch.zeros(len(merged), WIDTH).index_add_(0, place, summed.new_zeros(len(spread), WIDTH))
    del expanded
    return time.thread_time() - started


def measure(kind: str, samples: int, repeats: int) -> tuple[int, list[float]]:
    """Ids of a rank's batch, and microseconds per id of each repeat."""
    found = []
    for repeat in range(repeats + 2):
        own = codes_of(kind, samples, 2 * repeat)
        other = torch.unique(codes_of(kind, samples, 2 * repeat + 1))
        rows, gradients = torch.randn(2 * len(own), WIDTH), torch.randn(len(own), WIDTH)
        found.append(one_step(own, other, rows, gradients) / len(own) * 1e6)
    return len(own), found[2:]


def main() -> None:
    """Prints a line per kind of ids and batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    for kind in ("kaggle", "uniform"):
        for samples in (512, 2048):
            ids, found = measure(kind, samples, repeats)
            low, middle, high = statistics.quantiles(found, n=4)
            said = f"{middle:.3f} us per id, quartiles {low:.3f} to {high:.3f}"
            sys.stdout.write(f"{kind}, {samples} samples, {ids} ids: {said}\n")


if __name__ == "__main__":
    main()
