"""Tunes the flat model before anything is compared with it: one ladder per setting, climbed until nothing gets better.

1. A trial trains the flat model pass by pass and scores the validation part after each; it stops once a pass makes the
   log loss worse, so the number of passes is tuned with every other setting and costs nothing of its own. Where seeds
   differ by more than settings do, a trial is the mean over several.
2. Around the best trial so far, one step up and down each ladder is tried. A better one becomes the new middle; the
   search ends when no neighbour is better, so the result is never at the edge of what was tried unless it is at the
   end of a ladder, which `at_end` tells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from benchmarks import quality_runs as runs

SEED = 20_000
LADDERS = {
    "lr_tables": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    "lr_dense": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "init_std": (0.0002, 0.001, 0.005, 0.02, 0.1, 0.3),
}
_LEAST = 1e-6
"""Log loss that counts as better."""


def tune(
    data: runs.Data, base: runs.Tuning, most_epochs: int, seeds: int = 1
) -> tuple[runs.Tuning, list[dict[str, Any]]]:
    """The settings with the least validation log loss of the flat model.

    Args:
        data: training and validation part are used, the test part is not.
        base: where the search begins; values off the ladders move to the nearest rung.
        most_epochs: passes over the training rows to try at most.
        seeds: trainings per trial.

    Returns:
        The settings, and every trial in the order it was made.
    """
    place = {key: _nearest(ladder, getattr(base, key)) for key, ladder in LADDERS.items()}
    tried: dict[tuple[int, ...], dict[str, Any]] = {}
    with tqdm(desc=f"{data.name}: tuning the flat model", unit="trial") as bar:

        def trial(at: dict[str, int]) -> dict[str, Any]:
            key = tuple(at.values())
            if key not in tried:
                values = {name: LADDERS[name][rung] for name, rung in at.items()}
                tried[key] = _trial(data, dataclasses.replace(base, **values, epochs=most_epochs), seeds)
                bar.update()
                bar.set_postfix(best=min(t["logloss"] for t in tried.values()))
            return tried[key]

        best = trial(place)
        moved = True
        while moved:
            moved = False
            for beside in _neighbours(place):
                found = trial(beside)
                if found["logloss"] < best["logloss"] - _LEAST:
                    place, best, moved = beside, found, True
                    break
    return runs.Tuning(**{f.name: best[f.name] for f in dataclasses.fields(runs.Tuning)}), list(tried.values())


def at_end(tuning: runs.Tuning, most_epochs: int) -> list[str]:
    """Settings that stand at the end of what the search may try: further out might be better still."""
    ends = [key for key, ladder in LADDERS.items() if getattr(tuning, key) in (ladder[0], ladder[-1])]
    return ends + (["epochs"] if tuning.epochs == most_epochs else [])


def _trial(data: runs.Data, setting: runs.Tuning, seeds: int = 1) -> dict[str, Any]:
    """The best number of passes of one setting, with its mean scores on the validation part."""
    trainings = []
    for seed in range(SEED, SEED + seeds):
        model = runs.flat_model(data, setting, seed)
        trainings.append((model, runs.passes(model, data, setting, seed)))
    found: list[dict[str, Any]] = []
    for epoch in range(1, setting.epochs + 1):
        scores = []
        for model, passes in trainings:
            next(passes)
            scores.append(runs.score(model, data, runs.VALIDATION))
        mean = {key: sum(score[key] for score in scores) / seeds for key in scores[0]}
        found.append({**dataclasses.asdict(dataclasses.replace(setting, epochs=epoch)), **mean})
        if len(found) > 1 and found[-1]["logloss"] >= found[-2]["logloss"]:
            break
    return min(found, key=lambda entry: entry["logloss"])


def _neighbours(place: dict[str, int]) -> Iterator[dict[str, int]]:
    for key, ladder in LADDERS.items():
        for rung in (place[key] - 1, place[key] + 1):
            if 0 <= rung < len(ladder):
                yield {**place, key: rung}


def _nearest(ladder: tuple[float, ...], value: float) -> int:
    return min(range(len(ladder)), key=lambda rung: abs(ladder[rung] - value))
