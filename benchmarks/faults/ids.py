"""Cases of ids: batches of simulated ranks, some of which have ids that cannot be read or looked up.

1. Features of any form are drawn, with tables anywhere on up to eight ranks; rows travel per sample, or once.
2. Right batches, in any integer type and with empty bags, empty batches and weights of any floating type, must give the
   outputs and tables of one process.
3. Where one or several features of one or several ranks are spoilt, every rank must raise the same ``IdRangeError``,
   which names the first such rank and its first such feature. The right batch that follows must be computed as if
   nothing had been.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults.judge import Outcome, Wrong, attempt, expect, settled
from dmt_plugin.comm.input_dist.ids import (
    FeatureIds,
    ids_from_bag_2d,
    ids_from_bag_offsets,
    ids_from_column,
    ids_from_embedding,
)
from dmt_plugin.core.errors import DMTError, IdRangeError
from tests._util.distinct import DistinctProgram, whole_tables
from tests._util.routing import Case, Feature, RankProgram, assert_matches, make_ids, random_case
from tests._util.simulated import SimulatedWorld

Draw = random.Random
Batch = list[FeatureIds]
SHAPES = ((1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (2, 3), (4, 2))
WAIT_S = 20


def run(draw: Draw, room: Path, shared: Path) -> Outcome:
    """One case."""
    hosts, lanes = draw.choice(SHAPES)
    spoilt = draw.random() < 0.55
    case = random_case(hosts, lanes, draw.randint(1, 6), draw.randrange(10**9))
    if spoilt:
        case = dataclasses.replace(case, batches=tuple(draw.randint(1, 4) for _ in case.batches))
    once = draw.random() < 0.4
    route = draw.choice(["hierarchical", "flat"])
    program = _program(case, route, once, draw.randrange(10**6))
    batches = [make_ids(case, rank) for rank in range(hosts * lanes)]
    if not spoilt:
        what = "right" if draw.random() < 0.3 else "right, of other types"
        if what != "right":
            batches = [[_retyped(draw, ids) for ids in batch] for batch in batches]
        results, error = attempt(
            lambda: SimulatedWorld(case.topology, WAIT_S).run(lambda wire: program(wire).step(batches[wire.rank])),
            IdRangeError,
        )
        if results is not None:
            _check(case, results, once)
        return settled("taken", what, error)
    culprits = sorted(draw.sample(range(hosts * lanes), draw.choice([1, 1, min(2, hosts * lanes)])))
    first, what = "", ""
    for rank in culprits:
        for i in sorted(draw.sample(range(len(case.features)), draw.choice([1, 1, min(2, len(case.features))]))):
            name = draw.choice([name for name, fault in FAULTS.items() if fault.fits(case.features[i], i)])
            batches[rank][i] = FAULTS[name].spoil(draw, batches[rank][i], case.features[i])
            first, what = first or f"rank {rank}: feature '{case.features[i].name}' has", what or name
    error = _spoilt(case, program, batches, once, first)
    return settled("refused", what, error)


def _program(case: Case, route: str, once: bool, seed: int) -> Callable[[Any], Any]:
    if once:
        return lambda wire: DistinctProgram(case, wire, route, seed)
    return lambda wire: RankProgram(case, wire, route)


def _check(case: Case, results: list[Any], once: bool) -> None:
    try:
        assert_matches(case, whole_tables(results) if once else results)
    except AssertionError as error:
        raise Wrong(f"another result than in one process: {error}") from error


def _spoilt(case: Case, program: Any, batches: list[Batch], once: bool, first: str) -> DMTError | None:
    """The error that all ranks raise.

    Raises:
        Wrong: they do not, or what follows is wrong.
    """

    def both(wire: Any) -> tuple[DMTError | None, Any]:
        one = program(wire)
        _, error = attempt(lambda: one.forward(batches[wire.rank]), IdRangeError)
        return error, one.step()

    results = SimulatedWorld(case.topology, WAIT_S).run(both)
    errors = [error for error, _ in results]
    texts = {str(error) for error in errors}
    expect(len(texts) == 1, "not the same on all ranks", texts)
    expect(errors[0] is None or first in texts.pop(), f"not {first!r} is named", errors[0])
    _check(case, [again for _, again in results], once)
    return errors[0]


# -- right ones ----------------------------------------------------------------------------


def _retyped(draw: Draw, ids: FeatureIds) -> FeatureIds:
    """The same ids in another type, or as bags of varying length that are all alike, in memory of another order."""
    values = ids.values.to(draw.choice([torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8]))
    if draw.random() < 0.3:
        values = torch.stack([values, values], dim=1)[:, 0]
    lengths = ids.lengths
    if lengths is not None:
        lengths = lengths.to(draw.choice([torch.int64, torch.int32]))
    weights = ids.weights
    if weights is not None:
        weights = weights.to(draw.choice([torch.float32, torch.float64, torch.bfloat16, torch.float16]))
    return dataclasses.replace(ids, values=values, lengths=lengths, weights=weights)


# -- wrong ones ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Spoil:
    """A fault: where it can be, and how it is made."""

    spoil: Callable[[Draw, FeatureIds, Feature], FeatureIds]
    fits: Callable[[Feature, int], bool] = lambda feature, number: True


def _bags(ids: FeatureIds) -> tuple[list[int], int]:
    lengths = [ids.hotness or 0] * ids.batch_size if ids.lengths is None else ids.lengths.tolist()
    return lengths, sum(lengths)


def _outside(draw: Draw, ids: FeatureIds, feature: Feature) -> FeatureIds:
    bad = draw.choice([-1, feature.rows, feature.rows + 1, 2**31, 2**32, 2**40, -(2**63), 2**63 - 1])
    values, lengths = ids.values.clone(), ids.lengths
    weights = ids.weights
    if not len(values):  # bags that are all empty: the first gets an id
        values = torch.zeros(1, dtype=torch.int64)
        weights = None if weights is None else torch.ones(1)
        lengths = torch.tensor([1] + [0] * (ids.batch_size - 1))
    values[draw.randrange(len(values))] = bad
    return dataclasses.replace(ids, values=values, lengths=lengths, weights=weights)


def _type(draw: Draw, ids: FeatureIds, feature: Feature) -> FeatureIds:
    kind = draw.choice([torch.float32, torch.float64, torch.bool, torch.complex64, torch.bfloat16])
    return dataclasses.replace(ids, values=ids.values.to(kind))


def _lengths(draw: Draw, ids: FeatureIds, feature: Feature) -> FeatureIds:
    assert ids.lengths is not None
    lengths = ids.lengths.clone()
    place = draw.randrange(len(lengths))
    how = draw.choice(["more", "less", "negative", "huge"])
    if how == "negative" and len(lengths) > 1:  # they add up to what they should
        other = (place + 1) % len(lengths)
        lengths[other] += lengths[place] + 1
        lengths[place] = -1
    else:
        lengths[place] += {"more": 1, "less": -1, "negative": -7, "huge": 2**62}[how]
    return dataclasses.replace(ids, lengths=lengths)


def _samples(draw: Draw, ids: FeatureIds, feature: Feature) -> FeatureIds:
    more = draw.choice([1, 2])
    if ids.lengths is not None:
        lengths = torch.cat([ids.lengths, torch.zeros(more, dtype=torch.int64)])
        return dataclasses.replace(ids, lengths=lengths, batch_size=draw.choice([ids.batch_size, len(lengths)]))
    values = torch.cat([ids.values, ids.values.new_zeros(more * (ids.hotness or 0))])
    weights = None if ids.weights is None else torch.ones(len(values))
    return dataclasses.replace(ids, values=values, weights=weights, batch_size=ids.batch_size + more)


def _hotness(draw: Draw, ids: FeatureIds, feature: Feature) -> FeatureIds:
    wider = (ids.hotness or 0) + draw.choice([1, 2])
    values = torch.zeros(wider * ids.batch_size, dtype=torch.int64)
    return dataclasses.replace(
        ids, values=values, hotness=wider, weights=None if ids.weights is None else torch.ones(len(values))
    )


def _weights(draw: Draw, ids: FeatureIds, feature: Feature) -> FeatureIds:
    count = len(ids.values)
    if not feature.weighted:
        return dataclasses.replace(ids, weights=torch.ones(count))
    found: Any = draw.choice(
        [None, torch.ones(count + 1), torch.ones(count, dtype=torch.int64), torch.ones(count, requires_grad=True)]
    )
    return dataclasses.replace(ids, weights=found)


def _offsets(draw: Draw, ids: FeatureIds, feature: Feature) -> FeatureIds:
    lengths, count = _bags(ids)
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    place = draw.randrange(len(starts))
    how = draw.choice(["first", "beyond", "negative", "float", "two dimensions"])
    values = ids.values.clamp(0, feature.rows - 1)
    offsets = torch.tensor(starts)
    if how == "first":
        offsets[0] = draw.choice([1, -1, 5])
    elif how == "beyond":
        offsets[place] = count + draw.choice([1, 99, 2**40])
    elif how == "negative":
        offsets[place] = -draw.choice([1, 2, 2**40])
    elif how == "float":
        offsets = offsets.float()
    else:
        offsets = offsets[None]
    padding = draw.choice([None, 0, 1])
    return ids_from_bag_offsets(values, offsets, False, ids.weights, padding)


def _form(draw: Draw, ids: FeatureIds, feature: Feature) -> FeatureIds:
    values = ids.values
    return draw.choice(
        [
            lambda: ids_from_embedding(values.reshape(-1, 1, 1)),
            lambda: ids_from_embedding(torch.zeros(ids.batch_size, 2, dtype=torch.int64)),
            lambda: ids_from_column(torch.zeros(ids.batch_size, 2, dtype=torch.int64), 2),
            lambda: ids_from_bag_2d(values),
            lambda: ids_from_bag_2d(values[None], torch.ones(len(values) + 1)),
        ]
    )()


FAULTS = {
    "id outside its table": Spoil(_outside),
    "type of ids": Spoil(_type),
    "lengths of bags": Spoil(_lengths, lambda feature, number: feature.hotness is None),
    "number of samples": Spoil(_samples, lambda feature, number: number > 0),
    "ids per sample": Spoil(_hotness, lambda feature, number: feature.hotness is not None),
    "weights": Spoil(_weights),
    "offsets": Spoil(_offsets, lambda feature, number: feature.hotness is None),
    "form of ids": Spoil(_form),
}
