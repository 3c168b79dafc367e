"""The model against the paper: constants fitted on some cells, errors on these and on the others, and a null model.

Three sets of cells are fitted, each by itself:

* ``five``: Fig. 13's four times, which have a unit, and one speed-up on two hosts;
* ``64 ranks``: Figs. 12 and 13, every cell of 64 ranks, and the same speed-up on two hosts;
* ``all``: every cell. Nothing is held out.

The null model knows no hardware: what it says of a cell is the mean of the fitted cells of the same figure at the same
number of ranks, or compression ratio; where none was fitted the mean of the figure's; else of all fitted speed-ups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from dmt_plugin.planner.paper.figures import Cell, cells, flat_efficiency, printed, sum_efficiency
from dmt_plugin.planner.paper.fit import fit
from dmt_plugin.planner.paper.model import MEMORY_SHARE, PEAK_SHARE, PaperModel
from dmt_plugin.planner.paper.settings import WIRE, ModelSize
from dmt_plugin.planner.time.devices import DEVICES, PEER_EFFICIENCY


def _anchor(cell: Cell) -> bool:
    """The one cell on few hosts without which ``Constants.few`` is free."""
    return (cell.figure, cell.model, cell.device, cell.ranks) == (10, "DLRM", "H100", 16)


SETS: Mapping[str, Callable[[Cell], bool]] = {
    "five": lambda cell: cell.figure == 13 or _anchor(cell),
    "64 ranks": lambda cell: cell.ranks == 64 or _anchor(cell),
    "all": lambda cell: True,
}
"""By name which cells are fitted."""


@dataclass(frozen=True)
class Errors:
    """Relative errors of some cells, in absolute value.

    Attributes:
        cells: how many.
        mean: mean error.
        worst: largest error.
        within_10: share of cells within 10 %; the others alike.
        within_15: 15 %.
        within_20: 20 %.
    """

    cells: int
    mean: float
    worst: float
    within_10: float
    within_15: float
    within_20: float

    @classmethod
    def of(cls, found: Mapping[Cell, float]) -> Errors | None:
        """Of what a model says of some cells; None for no cell."""
        off = [abs(value / cell.paper - 1) for cell, value in found.items()]
        if not off:
            return None
        shares = (sum(error <= limit for error in off) / len(off) for limit in (0.10, 0.15, 0.20))
        return cls(len(off), sum(off) / len(off), max(off), *shares)


def evaluate(sizes: Mapping[str, ModelSize]) -> dict[str, Any]:
    """All that ``dmt plan --paper`` shows, as plain data.

    Args:
        sizes: by the paper's name, what each model computes and sends.

    Returns:
        ``sources`` of what is not fitted; ``mflops`` by model; ``sets`` by name with ``constants``, ``errors`` of the
        model (``fitted``, ``held_out``, ``all``, ``figure_10``), of the ``null_model`` likewise, of the model
        ``without_few``, and ``winners``; ``cells``, each with ``paper`` and, by name of the set, what the model says,
        its error, and whether the cell was fitted.
    """
    model, every = PaperModel(sizes), cells()
    rows = [{"cell": cell.label, "figure": cell.figure, "paper": cell.paper, "sets": {}} for cell in every]
    sets: dict[str, Any] = {}
    for name, chosen in SETS.items():
        fitted = [cell for cell in every if chosen(cell)]
        constants = fit(model, fitted)
        found, plain = (model.predict(every, c) for c in (constants, replace(constants, few=1.0)))
        sets[name] = {
            "constants": asdict(constants),
            "errors": _errors(found, fitted),
            "winners": _winners(found),
            "null_model": {"errors": _errors(null_model(fitted, every), fitted)},
            "without_few": {"errors": _errors(plain, fitted), "winners": _winners(plain)},
        }
        for row, cell in zip(rows, every, strict=True):
            error = found[cell] / cell.paper - 1
            row["sets"][name] = {"model": found[cell], "error": error, "fitted": chosen(cell)}  # type: ignore[index]
    return {"sources": _sources(), "mflops": _mflops(sizes), "sets": sets, "cells": rows}


def null_model(fitted: Sequence[Cell], every: Sequence[Cell]) -> dict[Cell, float]:
    """What the means of fitted speed-ups say of every speed-up; it has nothing to say of milliseconds."""
    known = [cell for cell in fitted if cell.part is None]

    def alike(cell: Cell) -> list[Cell]:
        figure = [other for other in known if other.figure == cell.figure]
        own = [other for other in figure if (other.ranks, other.ratio) == (cell.ranks, cell.ratio)]
        return own or figure or known

    return {
        cell: sum(other.paper for other in near) / len(near)
        for cell in every
        if cell.part is None and (near := alike(cell))
    }


def _sources() -> dict[str, Any]:
    curves = {"flat exchange": flat_efficiency(), "dense sums": sum_efficiency(), "peer exchange": PEER_EFFICIENCY}
    return {
        "figures": printed()["source"],
        "devices": [asdict(device) for device in DEVICES.values()],
        "curves": {name: asdict(curve) for name, curve in curves.items()},
        "assumed": {"share of peak": PEAK_SHARE, "share of memory rate": MEMORY_SHARE, "wire format": WIRE},
    }


def _errors(found: Mapping[Cell, float], fitted: Sequence[Cell]) -> dict[str, Any]:
    own = set(fitted)
    parts = {
        "fitted": {cell: value for cell, value in found.items() if cell in own},
        "held_out": {cell: value for cell, value in found.items() if cell not in own},
        "all": dict(found),
        "figure_10": {cell: value for cell, value in found.items() if cell.figure == 10},
    }
    return {name: None if (errors := Errors.of(part)) is None else asdict(errors) for name, part in parts.items()}


def _winners(found: Mapping[Cell, float]) -> dict[str, Any]:
    """Whether towers or the baseline are faster, in Fig. 10; and how its logarithms correlate with the paper's."""
    own = {cell: value for cell, value in found.items() if cell.figure == 10}
    wrong = [cell.label for cell, value in own.items() if (value > 1) != (cell.paper > 1)]
    pairs = [(math.log(cell.paper), math.log(value)) for cell, value in own.items()]
    return {"cells": len(own), "right": len(own) - len(wrong), "wrong": wrong, "log_correlation": _correlation(pairs)}


def _correlation(pairs: Sequence[tuple[float, float]]) -> float:
    xs, ys = zip(*pairs, strict=True)
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    both = sum((a - x) * (b - y) for a, b in pairs)
    return both / math.sqrt(sum((a - x) ** 2 for a in xs) * sum((b - y) ** 2 for b in ys))


def _mflops(sizes: Mapping[str, ModelSize]) -> dict[str, Any]:
    found = {}
    for name, paper in printed()["mflops"].items():
        own = sizes[name].mflops
        found[name] = {"paper": paper, "model": own, "error": own / paper - 1}
    return found
