"""Fits the constants to some of the paper's cells, by least squares on the logarithm of model to paper.

Constants are fitted in logarithms, from fixed starts, by Gauss-Newton with damping (Levenberg, Marquardt); each stays
in a range within which it means what its name says. The same cells give the same constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from dmt_plugin.planner.paper.figures import Cell
from dmt_plugin.planner.paper.model import Constants, PaperModel

START = Constants(intensity=40.0, fixed_ms=10.0, flat=1.2, few=1.1)
BOUNDS = (Constants(1.0, 0.5, 1.0, 1.0), Constants(1000.0, 50.0, 3.0, 2.0))

_ROUNDS = 40
_STEP = 1e-4
_SETTLED = 1e-9

Vector = NDArray[np.float64]


def fit(model: PaperModel, cells: Sequence[Cell]) -> Constants:
    """The constants with the least sum of squared log errors on ``cells``.

    Args:
        model: the time model.
        cells: what is fitted; at least as many as there are constants.

    Raises:
        ValueError: fewer cells than constants.
    """
    if len(cells) < len(START.as_tuple()):
        raise ValueError(f"{len(cells)} cells do not determine {len(START.as_tuple())} constants")

    def errors(logs: Vector) -> Vector:
        found = model.predict(cells, _constants(logs))
        return np.array([math.log(found[cell] / cell.paper) for cell in cells])

    low, high = (np.log(np.array(bound.as_tuple())) for bound in BOUNDS)
    return _constants(_least_squares(errors, np.log(np.array(START.as_tuple())), low, high))


def _constants(logs: Vector) -> Constants:
    return Constants(*(float(value) for value in np.exp(logs)))


def _least_squares(errors: Callable[[Vector], Vector], start: Vector, low: Vector, high: Vector) -> Vector:
    at, damping = start, 1e-3
    residual = errors(at)
    for _ in range(_ROUNDS):
        slopes = np.stack([(errors(at + _STEP * axis) - residual) / _STEP for axis in np.eye(len(at))], axis=1)
        normal, gradient = slopes.T @ slopes, slopes.T @ residual
        # At a bound only what leads back inside is free.
        free = ~(((at <= low) & (gradient > 0)) | ((at >= high) & (gradient < 0)))
        before = residual @ residual
        while free.any() and damping < 1e8:
            matrix = normal[np.ix_(free, free)]
            step = np.zeros_like(at)
            step[free] = -np.linalg.solve(matrix + damping * np.diag(np.diag(matrix) + 1e-12), gradient[free])
            moved = np.clip(at + step, low, high)
            found = errors(moved)
            if found @ found < before:
                at, residual, damping = moved, found, max(damping / 10, 1e-9)
                break
            damping *= 10
        if before - residual @ residual < _SETTLED * before:
            break
    return at
