"""Input distribution, lookup and output distribution over many topologies, against a single process."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_plugin.comm.input_dist.ids import ids_from_bag_offsets
from dmt_plugin.core.errors import DMTError, IdRangeError
from tests._util.routing import Case, Feature, RankProgram, assert_matches, make_ids, random_case
from tests._util.simulated import SimulatedWorld

ROUTES = ("hierarchical", "flat")


def step(case: Case, route: str, wire: Any) -> Any:
    return RankProgram(case, wire, route).step()


def balanced_case(hosts: int, lanes: int, batch: int = 2) -> Case:
    """Every rank owns one table, everything has the same size: only values can tell a mix-up."""
    owners = [(h, j) for h in range(hosts) for j in range(lanes)]
    features = [Feature(f"f{h}{j}", 11, 2, h, ((f"t{h}{j}", j, 4),)) for h, j in owners]
    return Case(hosts, lanes, (batch,) * len(owners), tuple(features))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", ["1x1", "1x3", "3x1", "2x2", "4x2", "3x4", "8x8"])
def test_placed_equals_single_process(shape: str, route: str) -> None:
    hosts, lanes = map(int, shape.split("x"))
    for seed in range(2 if hosts * lanes < 20 else 1):
        case = random_case(hosts, lanes, features=min(hosts * lanes + 3, 24), seed=seed)
        world = SimulatedWorld(case.topology)
        assert_matches(case, world.run(partial(step, case, route)))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(0, 10**6), st.sampled_from(ROUTES))
def test_any_case(hosts: int, lanes: int, features: int, seed: int, route: str) -> None:
    case = random_case(hosts, lanes, features, seed)
    world = SimulatedWorld(case.topology)
    assert_matches(case, world.run(lambda wire: RankProgram(case, wire, route).step()))


def test_128_ranks() -> None:
    case = random_case(16, 8, features=40, seed=3, max_batch=2)
    world = SimulatedWorld(case.topology)
    assert_matches(case, world.run(lambda wire: RankProgram(case, wire).step()))


def test_empty_batches_everywhere() -> None:
    for route in ROUTES:
        case = random_case(2, 2, 6, seed=5, max_batch=0)
        assert_matches(case, SimulatedWorld(case.topology).run(partial(step, case, route)))


def test_groups_of_one_exchange_nothing() -> None:
    case = random_case(1, 1, 4, seed=1)

    def program(wire):  # type: ignore[no-untyped-def]
        RankProgram(case, wire).step()
        return wire.collectives, wire.traffic.totals().messages

    assert SimulatedWorld(case.topology).run(program) == [(0, 0)]


def test_mutated_groups_and_orders_are_seen() -> None:
    case = balanced_case(2, 2)
    good = partial(step, case, "hierarchical")
    assert_matches(case, SimulatedWorld(case.topology).run(good))
    swapped = {"peers": "lanes", "lanes": "peers", "world": "world"}
    for mutation in ({"regroup": swapped.get}, {"reorder": lambda blocks: blocks[::-1]}):
        with pytest.raises(AssertionError):
            assert_matches(case, SimulatedWorld(case.topology, 10, **mutation).run(good))


def test_mutated_row_order_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows sorted by (host, lane), the paper's printed key, instead of (lane, host)."""
    case = balanced_case(2, 2)
    original = RankProgram.forward

    def misordered(self, ids=None):  # type: ignore[no-untyped-def]
        pool = self.lookup.forward

        def forward(routed):  # type: ignore[no-untyped-def]
            rows = pool(routed)
            batch = case.batches[0]
            return rows.view(2, 2, batch, -1).transpose(0, 1).reshape(rows.shape)

        monkeypatch.setattr(self.lookup, "forward", forward)
        return original(self, ids)

    monkeypatch.setattr(RankProgram, "forward", misordered)
    with pytest.raises(AssertionError):
        assert_matches(case, SimulatedWorld(case.topology).run(lambda wire: RankProgram(case, wire).step()))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", ["1x1", "1x2", "3x1", "2x2", "3x4"])
def test_bad_id_raises_the_same_error_everywhere(shape: str, route: str) -> None:
    hosts, lanes = map(int, shape.split("x"))
    case = random_case(hosts, lanes, 6, seed=2)
    case = Case(hosts, lanes, (3,) * (hosts * lanes), case.features)
    culprit = hosts * lanes - 1
    for bad in (-1, case.features[4].rows, 2**40):

        def program(wire, bad=bad):  # type: ignore[no-untyped-def]
            run = RankProgram(case, wire, route)
            ids = make_ids(case, wire.rank)
            if wire.rank == culprit:
                values = ids[4].values
                ids[4].values = torch.cat([values, values.new_zeros(1)]) if not len(values) else values
                if ids[4].lengths is not None:
                    ids[4].lengths = torch.tensor([len(ids[4].values), 0, 0])
                ids[4].values[-1] = bad
            with pytest.raises(IdRangeError) as raised:
                run.forward(ids)
            again = run.step()  # the exchange is in step again after the error
            return str(raised.value), again

        results = SimulatedWorld(case.topology).run(program)
        texts = {text for text, _ in results}
        assert len(texts) == 1
        (text,) = texts
        for part in (f"rank {culprit}", "'f4'", f"id {bad}", f"{case.features[4].rows} rows"):
            assert part in text
        assert_matches(case, [again for _, again in results])


def test_lowest_rank_is_reported_when_several_are_bad() -> None:
    case = balanced_case(2, 2)

    def program(wire):  # type: ignore[no-untyped-def]
        ids = make_ids(case, wire.rank)
        ids[wire.rank].values[0] = 100 + wire.rank
        with pytest.raises(IdRangeError) as raised:
            RankProgram(case, wire).forward(ids)
        return str(raised.value)

    assert set(SimulatedWorld(case.topology).run(program)) == {
        "step 0: rank 0: feature 'f00' has id 100, but its table has 11 rows (valid ids are 0 to 10); "
        "mend the data or enlarge the table"
    }


def test_malformed_batches_are_reported_everywhere() -> None:
    case = Case(2, 2, (3,) * 4, (Feature("a", 5, 2, 0, (("t", 0, 4),)), Feature("b", 5, None, 1, (("u", 1, 4),))))

    def lengths(ids):  # type: ignore[no-untyped-def]
        ids[1].lengths = ids[1].lengths + 1

    def hotness(ids):  # type: ignore[no-untyped-def]
        ids[0].hotness, ids[0].values = 3, torch.zeros(9, dtype=torch.long)

    def batch(ids):  # type: ignore[no-untyped-def]
        ids[1].batch_size, ids[1].lengths = 4, torch.zeros(4, dtype=torch.long)

    def last_offset(ids):  # type: ignore[no-untyped-def]
        ids[1] = ids_from_bag_offsets(torch.tensor([1, 2, 3, 4]), torch.tensor([0, 1, 1, 3]), True)

    for spoil, part in (
        (lengths, "bag lengths"),
        (last_offset, "bag lengths"),
        (hotness, "3 ids per sample"),
        (batch, "4 samples"),
    ):

        def program(wire, spoil=spoil):  # type: ignore[no-untyped-def]
            ids = make_ids(case, wire.rank)
            if wire.rank == 2:
                spoil(ids)
            with pytest.raises(DMTError) as raised:
                RankProgram(case, wire).forward(ids)
            return str(raised.value)

        texts = set(SimulatedWorld(case.topology).run(program))
        assert len(texts) == 1 and part in next(iter(texts)) and "rank 2" in next(iter(texts))
