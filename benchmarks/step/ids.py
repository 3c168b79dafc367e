"""Ids of the benchmark's batches: uniform ones, in which rows hardly repeat, ones distributed as real ones, real ones.

``kaggle``: the 26 categorical fields of the Criteo Kaggle data set by their published cardinalities. The rank of a row
by frequency follows Zipf's law, one exponent per field, fitted to the number of distinct rows of real batches. A table
holds at most ``CAP`` rows: an id beyond that is taken modulo its rows, which moves rare rows only.

``flights``: the 21 categorical columns of the flights of 2013 (:mod:`examples.flights`), of flights drawn at random.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from examples import flights

CARDINALITIES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652,
    2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
EXPONENTS = (
    1.86, 1.3, 1.0, 1.06, 2.4, 2.6, 0.9, 2.14, 2.6, 1.08, 0.96, 1.02, 0.94, 2.58, 1.08, 1.04, 2.6, 1.2, 1.46, 0.2,
    1.02, 2.6, 2.6, 1.14, 2.44, 1.22,
)  # fmt: skip
CAP = 50_000
TABLE_LR = {"uniform": 500.0, "kaggle": 30.0, "flights": 30.0}
"""Learning rate of the tables, by kind of ids. Where ids hardly repeat a row is met by few samples of a batch, and what
a step does to it is to stand out of its rounding; a row that half a batch needs gets the gradients of all of them."""
_HEAD = 20_000
"""Ranks whose probability is summed one by one; behind them the sum is an integral to 1e-9 of a rank's share."""


def rows_of(kind: str, feature: int, rows: int) -> int:
    """Rows of a feature's table.

    Args:
        kind: ``"uniform"``, ``"kaggle"`` or ``"flights"``.
        feature: its number.
        rows: of each table with uniform ids.
    """
    if kind == "flights":
        return _flights()[1][feature]
    return rows if kind == "uniform" else min(CARDINALITIES[feature % 26], CAP)


def draw(kind: str, features: int, rows: int, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Ids of all features.

    Args:
        kind: as for :func:`rows_of`.
        features: how many.
        rows: of each table with uniform ids.
        shape: samples ``B`` and ids of each bag ``K``.
        generator: of the random numbers.

    Returns:
        ``(B, F * K)`` int64, the ids of a feature's bag side by side.
    """
    if kind == "flights":
        real = _flights()[0]
        drawn = torch.randint(0, len(real), shape, generator=generator)
        return real[drawn][:, :, :features].transpose(1, 2).reshape(shape[0], -1)
    columns = [_draw(kind, i, rows, shape[0] * shape[1], generator).view(shape) for i in range(features)]
    return torch.cat(columns, dim=1)


@functools.cache
def _flights() -> tuple[Tensor, tuple[int, ...]]:
    """Ids ``(flights, 21)`` int64, and the rows of the tables."""
    data = flights.load("build/demo/flights.npz")
    return torch.from_numpy(data.sparse).long(), data.table_sizes


def _draw(kind: str, feature: int, rows: int, count: int, generator: torch.Generator) -> Tensor:
    own = rows_of(kind, feature, rows)
    if kind == "uniform":
        return torch.randint(0, own, (count,), generator=generator)
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    ranks = _zipf(CARDINALITIES[feature % 26], EXPONENTS[feature % 26], uniform)
    return ranks % own


def _zipf(size: int, exponent: float, uniform: Tensor) -> Tensor:
    """Ranks ``0 .. size - 1`` whose probability falls as ``(rank + 1) ** -exponent``, by inversion."""
    head, tail = _weights(size, exponent)
    at = uniform * (head[-1] + tail)
    ranks = torch.searchsorted(head, at)
    beyond = at > head[-1]
    if bool(beyond.any()):
        ranks[beyond] = _in_tail(size, exponent, at[beyond] - head[-1])
    return ranks.clamp_(max=size - 1)


@functools.cache
def _weights(size: int, exponent: float) -> tuple[Tensor, float]:
    """Running sums over the first ranks, and the sum over the rest."""
    count = min(size, _HEAD)
    head = torch.arange(1, count + 1, dtype=torch.float64).pow(-exponent).cumsum(0)
    return head, _integral(count + 0.5, size + 0.5, exponent) if size > count else 0.0


def _integral(first: float, last: float, exponent: float) -> float:
    ends = torch.tensor([first, last], dtype=torch.float64)
    if exponent == 1.0:
        return float(ends.log().diff())
    return float(ends.pow(1 - exponent).diff() / (1 - exponent))


def _in_tail(size: int, exponent: float, rest: Tensor) -> Tensor:
    """Ranks behind the head, by how much of the tail's sum lies before them."""
    first = min(size, _HEAD) + 0.5
    if exponent == 1.0:
        found = first * rest.exp()
    else:
        found = (first ** (1 - exponent) + (1 - exponent) * rest).pow(1 / (1 - exponent))
    return (found + 0.5).floor().long() - 1
