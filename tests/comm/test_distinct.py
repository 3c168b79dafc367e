"""Rows that are asked for once per host (or rank), over many topologies, against a single process.

Also in micro-blocks: each row goes with the first that needs it, once, and arrives as without blocks.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_plugin.comm.distinct.first_use import first_uses
from dmt_plugin.comm.distinct.requests import _Core
from dmt_plugin.comm.distinct.row_groups import GroupTable, Read, RowGroup, RowPart
from dmt_plugin.comm.input_dist.ids import FeatureIds, IdSlot
from dmt_plugin.topology.shape import Topology
from tests._util.distinct import DistinctProgram, whole_tables
from tests._util.routing import Case, Feature, assert_matches, random_case
from tests._util.simulated import SimulatedWorld

ROUTES = ("hierarchical", "flat")


def run(case: Case, route: str, seed: int = 0, **options: Any) -> list[Any]:
    return SimulatedWorld(case.topology).run(lambda wire: DistinctProgram(case, wire, route, seed, **options).step())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", ["1x1", "1x3", "3x1", "2x2", "4x2", "3x4", "8x8"])
def test_equals_a_single_process(shape: str, route: str) -> None:
    hosts, lanes = map(int, shape.split("x"))
    for seed in range(2 if hosts * lanes < 20 else 1):
        case = random_case(hosts, lanes, features=min(hosts * lanes + 3, 24), seed=seed)
        assert_matches(case, whole_tables(run(case, route, seed)))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(0, 10**6), st.sampled_from(ROUTES),
    st.integers(1, 4),
)  # fmt: skip
def test_any_case(hosts: int, lanes: int, features: int, seed: int, route: str, blocks: int) -> None:
    case = random_case(hosts, lanes, features, seed)
    assert_matches(case, whole_tables(run(case, route, seed, blocks=blocks)))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 12), max_size=9), min_size=1, max_size=4))
def test_a_code_goes_with_the_first_block_that_needs_it(blocks: list[list[int]]) -> None:
    needed = [torch.tensor(own, dtype=torch.int32) for own in blocks]
    found = first_uses(needed)
    before: set[int] = set()
    for block, (codes, places) in enumerate(zip(found.codes, found.places, strict=True)):
        assert codes.tolist() == sorted(set(blocks[block]) - before)
        before |= set(blocks[block])
        arrived = torch.cat(found.codes[: block + 1])
        assert torch.equal(arrived[places], needed[block])
    assert found.distinct == len(before)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(0, 10**6), st.sampled_from(ROUTES),
    st.sampled_from(["fp32", "bf16", "int8"]), st.integers(2, 4),
)  # fmt: skip
def test_blocks_send_no_row_twice_and_change_none(
    hosts: int, lanes: int, seed: int, route: str, form: str, blocks: int
) -> None:
    """The same rows arrive bit for bit, whatever they are rounded to, by as many bytes in both directions."""
    case = random_case(hosts, lanes, 4, seed)
    found = []
    for count in (1, blocks):
        sent: dict[Any, int] = {}

        def program(wire: Any, count: int = count, sent: dict[Any, int] = sent) -> Any:
            rank = DistinctProgram(case, wire, route, seed, formats=(form, form), blocks=count)
            out = rank.step()[0]
            for own in rank.exchanges:
                for exchange, phase in itertools.product(own, ("forward", "backward")):
                    totals = wire.traffic.totals(exchange.name, phase)
                    sent[wire.rank, exchange.name, phase] = totals.other_hosts + totals.same_host
            return out

        found.append((SimulatedWorld(case.topology).run(program), sent))
    (whole, bytes_of_whole), (parts, bytes_of_parts) = found
    assert bytes_of_whole == bytes_of_parts
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_a_host_merges_to_the_first_block_of_its_lanes() -> None:
    """What lane 0 needs last and lane 1 first comes to the host with the first block, and to lane 0 with the last."""
    case = Case(2, 2, (2, 2, 2, 2), (Feature("f", 4, 1, 0, (("t", 0, 2),)),))
    ids = {0: [0, 3], 1: [3, 1], 2: [2, 2], 3: [1, 2]}
    requests = {}

    def program(wire: Any) -> None:
        rank = DistinctProgram(case, wire, "hierarchical", blocks=2)
        values = torch.tensor(ids[wire.rank])
        requests[wire.rank] = rank.requests(FeatureIds(values, None, 1, 2, None)).groups[0]

    SimulatedWorld(case.topology).run(program)
    arrived = [[sum(block.owners.received) for block in requests[rank].blocks] for rank in range(4)]
    host0, host1 = ([sum(own) for own in zip(*arrived[i : i + 2], strict=True)] for i in (0, 2))
    assert host0 == [2, 1], "rows 0 and 3 first, then row 1"
    assert host1 == [2, 0], "rows 1 and 2 first, and nothing new behind them"
    to_lanes = [[sum(block.lanes.received) for block in requests[rank].blocks] for rank in range(4)]
    assert to_lanes == [[1, 1], [1, 1], [1, 0], [1, 1]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3), st.booleans()), min_size=1, max_size=5),
    st.integers(1, 3), st.integers(0, 7), st.integers(1, 3), st.integers(0, 10**6),
)  # fmt: skip
def test_lookups_taken_together_ask_as_one_by_one(
    tables: list[tuple[int, int, bool]], hotness: int, batch: int, blocks: int, seed: int
) -> None:
    """Tables that are whole or dealt out by modulo, all with as many ids per sample."""
    topology, generator = Topology(2, 2), torch.Generator().manual_seed(seed)
    made, ids, filled = [], [], [0] * 4
    for rows, parts, _ in tables:
        owners = torch.randperm(4, generator=generator)[: min(parts, rows)].tolist()
        own = []
        for first, rank in enumerate(owners):
            count = len(range(first, rows, len(owners)))
            own.append(RowPart(rank, first, len(owners), count, filled[rank]))
            filled[rank] += count
        made.append(GroupTable(f"t{len(made)}", rows, tuple(own)))
        values = torch.randint(rows, (batch * hotness,), generator=generator)
        ids.append(FeatureIds(values, None, hotness, batch, None))
    reads = tuple(Read(i, i, "mean" if mean else "sum") for i, (_, _, mean) in enumerate(tables))
    slots = [IdSlot(table.name, table.rows, hotness, False, 0, (0,)) for table in made]
    found = []
    for together in (True, False):
        core = _Core(slots, [RowGroup("g", 4, tuple(made), reads)], topology, 0, "hierarchical", "requests")
        core.blocks = blocks
        assert core.codes[0].together
        if not together:
            core.codes[0]._together = None
        _, streams, _ = core.check(ids, torch.device("cpu"))
        found.append(core._own(core.codes[0], streams, batch))
    one, other = found
    for a, b in zip((*one.uses.codes, *one.uses.places), (*other.uses.codes, *other.uses.places), strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    for of_one, of_other in zip(one.reads, other.reads, strict=True):
        for a_read, b_read in zip(of_one, of_other, strict=True):
            assert torch.equal(a_read.places, b_read.places)
            assert (a_read.bags, a_read.mean, a_read.lengths) == (b_read.bags, b_read.mean, b_read.lengths)
