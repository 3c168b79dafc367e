"""Whether blocked time is the wire's or the neighbours': nothing arrives before everyone has posted.

All ranks of an emulated cluster read the same clock. Of every wait the time until the last rank of the exchange had
posted its part is the neighbours' lateness (unequal work, too few cores); only what comes behind it is the exchange.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from benchmarks.step.breakdown_labels import Flight
from benchmarks.step.breakdown_measure import RankTraces, TracedStep

Key = tuple[str, str, tuple[int, ...], int]


def late_seconds(ranks: Sequence[RankTraces], name: str) -> list[list[dict[str, float]]]:
    """Of every rank's traced steps of a variant: seconds blocked for ranks that were behind, by kind of exchange."""
    posted: dict[Key, list[float]] = {}
    for rank in ranks:
        unique = {_key(flight): flight for step in rank.variants[name].steps for flight in step.flights}
        for key, flight in unique.items():
            posted.setdefault(key, []).append(flight.started)
    return [[_of_step(step, posted) for step in rank.variants[name].steps] for rank in ranks]


def _of_step(step: TracedStep, posted: dict[Key, list[float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for flight in step.flights:
        for begin, end in _blocked(flight, step):
            late = min(max(posted[_key(flight)]), end) - begin
            found[flight.part] = found.get(flight.part, 0.0) + max(late, 0.0)
    return found


def _blocked(flight: Flight, step: TracedStep) -> Iterator[tuple[float, float]]:
    """What of a wait lies in a step."""
    if flight.waited is not None and flight.arrived is not None and not flight.beside:
        yield max(flight.waited, step.begun), min(flight.arrived, step.begun + step.seconds)


def _key(flight: Flight) -> Key:
    return flight.name, flight.phase, flight.ranks, flight.number
