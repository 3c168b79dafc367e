"""Least squares within bounds: Gauss-Newton with damping (Levenberg, Marquardt), the same for the same input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

STEP = 1e-4
_ROUNDS = 40
_SETTLED = 1e-9

Vector = NDArray[np.float64]


def least_squares(
    errors: Callable[[Vector], Vector], start: Vector, low: Vector, high: Vector, step: float = STEP
) -> Vector:
    """The argument with the least sum of squared errors.

    Args:
        errors: of an argument.
        start: where to begin.
        low: the smallest that each entry may be.
        high: the largest.
        step: of the slopes; larger for errors that are not smooth.
    """
    at, damping = start, 1e-3
    residual = errors(at)
    for _ in range(_ROUNDS):
        slopes = slopes_of(errors, at, step)
        normal, gradient = slopes.T @ slopes, slopes.T @ residual
        # At a bound only what leads back inside is free.
        free = ~(((at <= low) & (gradient > 0)) | ((at >= high) & (gradient < 0)))
        before = residual @ residual
        while free.any() and damping < 1e8:
            matrix = normal[np.ix_(free, free)]
            move = np.zeros_like(at)
            move[free] = -np.linalg.solve(matrix + damping * np.diag(np.diag(matrix) + 1e-12), gradient[free])
            moved = np.clip(at + move, low, high)
            found = errors(moved)
            if found @ found < before:
                at, residual, damping = moved, found, max(damping / 10, 1e-9)
                break
            damping *= 10
        if before - residual @ residual < _SETTLED * before:
            break
    return at


def slopes_of(errors: Callable[[Vector], Vector], at: Vector, step: float = STEP) -> Vector:
    """By error and entry of the argument how the error grows with it; arguments as for :func:`least_squares`."""
    before = errors(at)
    return np.stack([(errors(at + step * axis) - before) / step for axis in np.eye(len(at))], axis=1)
