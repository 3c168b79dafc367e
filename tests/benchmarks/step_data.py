"""Findings of a measurement that never took place, for the tests of what is made of them."""

from __future__ import annotations

from benchmarks.step.measure import Found
from benchmarks.step.parts import Change
from benchmarks.step.variants import BASE

NAMES = (BASE, "flat_fp32", "sptt_fp32")


def found(seconds: list[float], lane: int, losses: tuple[float, ...] = (0.7, 0.6, 0.5)) -> Found:
    return Found(
        losses=list(losses),
        changes={lane: Change(4.0, 1.0, 640)},
        seconds=seconds,
        cpu_seconds=[0.05] * len(seconds),
        link_bytes=[1.05e6, 3.15e6, 2.1e6],
        link_payload=[1e6, 3e6, 2e6],
        formula_bytes=1_000_000 if lane % 2 else 980_000,
    )


def ranks() -> list[dict[str, Found]]:
    """2 x 2: the base takes 1 s, the flat route 0.5 s, SPTT 0.25 s on its slowest rank, which differs."""
    result = []
    for rank in range(4):
        late = [0.25 if rank == repeat else 0.1 for repeat in range(3)]
        times = {BASE: [1.0, 1.0, 2.0], "flat_fp32": [0.5, 0.5, 1.0], "sptt_fp32": late}
        result.append({name: found(times[name], rank) for name in NAMES})
    return result
