"""Cases of killed ranks: runs of :mod:`benchmarks.kill_resume`, each of which goes on from what the one before left.

Cases in turn: four kills, one each in a save, a load, a load on another topology (which reshards) and a step; and one
kill in a save that is written behind the steps. So ten cases have 25 kills, five in each.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

from benchmarks.faults.judge import Outcome, expect
from benchmarks.kill_resume import soak

_IN_TURN = ("save", "load", "reshard", "step")


def run(draw: random.Random, room: Path, shared: Path) -> Outcome:
    """One case."""
    return _case(draw, behind=False)


def run_behind(draw: random.Random, room: Path, shared: Path) -> Outcome:
    """One kill while a checkpoint is written behind the steps."""
    return _case(draw, behind=True)


def _case(draw: random.Random, behind: bool) -> Outcome:
    found = soak(1 if behind else len(_IN_TURN), draw.randrange(10**6), draw.choice([0, 1, 2]), behind)
    expect(found["problems"] == [], "a run that was killed does not go on as it must", found["problems"])
    aimed = ["asynchronous save"] if behind else list(_IN_TURN)
    slowest = max(run["seconds"] for run in found["runs"])
    figures = {f"kills in {name}": float(n) for name, n in Counter(aimed).items()}
    return Outcome("taken", "taken", "killed", {"kills": float(len(aimed)), **figures, "slowest end (s)": slowest})
