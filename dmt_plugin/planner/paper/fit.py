"""Fits the constants to some of the paper's cells, by least squares on the logarithm of model to paper.

Constants are fitted in logarithms, from fixed starts (:mod:`dmt_plugin.planner.least_squares`); each stays in a range
within which it means what its name says. The same cells give the same constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dmt_plugin.planner.least_squares import Vector, least_squares
from dmt_plugin.planner.paper.figures import Cell
from dmt_plugin.planner.paper.model import Constants, PaperModel

START = Constants(intensity=40.0, fixed_ms=10.0, flat=1.2, few=1.1)
BOUNDS = (Constants(1.0, 0.5, 1.0, 1.0), Constants(1000.0, 50.0, 3.0, 2.0))


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
    return _constants(least_squares(errors, np.log(np.array(START.as_tuple())), low, high))


def _constants(logs: Vector) -> Constants:
    return Constants(*(float(value) for value in np.exp(logs)))
