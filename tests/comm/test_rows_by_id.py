"""Rows by id: the exchange gives each rank a row for every id, in their order, and its backward is the transpose.

All numbers are small integers, so that sums are exact and equality is bit for bit, over topologies, routes, ways to
divide tables, micro-blocks, rows that travel once or for every id, and any numbers of ids: none on some ranks, all on
one.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmt_plugin.comm.distinct.first_use import all_uses
from dmt_plugin.comm.distinct.row_groups import GroupTable, Read, RowGroup, RowPart
from dmt_plugin.comm.input_dist.ids import FeatureIds, IdSlot, ids_by_themselves
from dmt_plugin.comm.input_dist.input_dist import InputDist
from dmt_plugin.core.errors import IdRangeError
from dmt_plugin.planner.distinct_cost import distinct_costs
from dmt_plugin.topology.shape import Topology
from tests._util.distinct import DistinctProgram, parts_of
from tests._util.routing import Case, Feature, make_table
from tests._util.simulated import SimulatedWire, SimulatedWorld

Counts = list[list[int]]


def case_of(hosts: int, lanes: int, rows: list[int]) -> Case:
    features = tuple(
        Feature(f"f{i}", n, None, 0, ((f"t{i}", 0, 1 + i % 2),), "none", by_id=True) for i, n in enumerate(rows)
    )
    return Case(hosts, lanes, (0,) * (hosts * lanes), features)


def ids_of(case: Case, counts: Counts, rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [
        torch.randint(0, feature.rows, (n,), generator=generator)
        for feature, n in zip(case.features, counts[rank], strict=True)
    ]


def weight_of(rows: Tensor, rank: int) -> Tensor:
    """What the gradient of each entry is: another for every one."""
    return torch.arange(rows.numel()).reshape(rows.shape).remainder(5).float() - 2 + rank


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Case, Counts, dict[str, Any]]:
    hosts, lanes = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rows = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    count = st.one_of(st.just(0), st.integers(0, 12))
    counts = [draw(st.lists(count, min_size=len(rows), max_size=len(rows))) for _ in range(hosts * lanes)]
    options = {
        "route": draw(st.sampled_from(["hierarchical", "flat"])),
        "seed": draw(st.integers(0, 50)),
        "blocks": draw(st.integers(1, 3)),
        "once": draw(st.booleans()),
    }
    return case_of(hosts, lanes, rows), counts, options


def run(case: Case, counts: Counts, options: dict[str, Any]) -> tuple[list[dict[str, Tensor]], dict[str, Tensor], int]:
    """Rows of every rank by table, tables after a step of SGD at rate 1, and bytes of rows that other hosts sent."""

    def program(wire: SimulatedWire) -> Any:
        own = DistinctProgram(case, wire, **options)
        found = own.columns([ids_by_themselves(ids) for ids in ids_of(case, counts, wire.rank)])
        torch.stack([(rows * weight_of(rows, wire.rank)).sum() for rows in found.values()]).sum().backward()
        own.lookup.step()
        tables = [(own.names[key], own.lookup.table_weight(key).clone()) for key in own.lookup.tables]
        totals = [wire.traffic.totals(e.name, "forward") for exchanges in own.exchanges for e in exchanges]
        return {n: rows.detach() for n, rows in found.items()}, tables, sum(own.other_hosts for own in totals)

    results = SimulatedWorld(case.topology).run(program)
    whole = {f.tables[0][0]: torch.empty_like(make_table(case, f.tables[0][0])) for f in case.features}
    for _, tables, _ in results:
        for (name, span), values in tables:
            whole[name][span.start : span.stop : span.step] = values
    return [rows for rows, _, _ in results], whole, sum(sent for _, _, sent in results)


def bytes_by_formula(case: Case, counts: Counts, options: dict[str, Any]) -> int:
    """Four for every entry of a row that a host (on the flat route a rank) gets from another host."""
    topology, parts, total = case.topology, parts_of(case, options["seed"]), 0
    for i, feature in enumerate(case.features):
        (name, _, width), *_ = feature.tables
        owner = {row: topology.host_of(rank) for rank, span in parts[name] for row in span}
        needed: dict[Any, list[int]] = {}
        for rank in range(topology.world_size):
            asker = rank if options["route"] == "flat" else topology.host_of(rank)
            ids = ids_of(case, counts, rank)[i].tolist()
            needed.setdefault((topology.host_of(rank), asker), []).extend(ids)
        for (host, _), ids in needed.items():
            total += 4 * width * sum(owner[row] != host for row in (set(ids) if options["once"] else ids))
    return total


@settings(max_examples=40, deadline=None)
@given(worlds())
def test_every_id_gets_its_row_and_gives_its_gradient(world: tuple[Case, Counts, dict[str, Any]]) -> None:
    case, counts, options = world
    found, tables, sent = run(case, counts, options)
    for i, feature in enumerate(case.features):
        name = feature.tables[0][0]
        start = make_table(case, name)
        expected = start.clone()
        for rank, rows in enumerate(found):
            ids = ids_of(case, counts, rank)[i]
            assert torch.equal(rows[name], start[ids])
            expected.index_add_(0, ids, -weight_of(rows[name], rank))
        assert torch.equal(tables[name], expected)
    assert sent == bytes_by_formula(case, counts, options)


@pytest.mark.parametrize("route", ["hierarchical", "flat"])
@pytest.mark.parametrize("once", [True, False])
def test_one_rank_has_all_ids(route: str, once: bool) -> None:
    case, counts = case_of(2, 2, [5, 3]), [[0, 0], [0, 0], [9, 7], [0, 0]]
    options = {"route": route, "seed": 1, "blocks": 2, "once": once}
    found, _, sent = run(case, counts, options)
    assert [rows["t0"].shape[0] for rows in found] == [0, 0, 9, 0]
    assert sent == bytes_by_formula(case, counts, options) > 0


@given(st.lists(st.lists(st.integers(0, 12), max_size=9), min_size=1, max_size=4))
def test_codes_for_every_id_keep_their_block(blocks: list[list[int]]) -> None:
    needed = [torch.tensor(own, dtype=torch.int32) for own in blocks]
    found = all_uses(needed)
    assert [codes.tolist() for codes in found.codes] == [sorted(own) for own in blocks]
    arrived = torch.cat(found.codes)
    assert all(torch.equal(arrived[places], own) for places, own in zip(found.places, needed, strict=True))
    assert sorted(torch.cat(found.places).tolist()) == list(range(found.distinct))


def test_bytes_foretold_without_counts() -> None:
    """At most as many rows as an owner has, where each travels once; else one for every id."""
    topology, formats = Topology(1, 2), {"rows0.world": ("fp32", "fp32")}
    slots = [IdSlot("f", 8, 1, False, 0, (0, 1))]

    def rows_bytes(once: bool) -> float:
        parts = (RowPart(0, 0, 1, 4, 0), RowPart(1, 4, 1, 4, 0))
        group = RowGroup("rows0", 4, (GroupTable("t", 8, parts),), (Read(0, 0),), once=once)
        costs = distinct_costs([group], slots, topology, 0, 100, formats)  # type: ignore[arg-type]
        return sum(cost.same_host for cost in costs if cost.phase == "backward")

    assert (rows_bytes(True), rows_bytes(False)) == (4 * 4 * 4, 50 * 4 * 4)


def test_an_id_outside_its_table_is_named_on_every_rank() -> None:
    case = case_of(2, 1, [5])

    def program(wire: SimulatedWire) -> str:
        own = DistinctProgram(case, wire)
        with pytest.raises(IdRangeError) as caught:
            own.columns([ids_by_themselves(torch.tensor([1, 5 + wire.rank] if wire.rank else [2]))])
        return str(caught.value)

    said = SimulatedWorld(case.topology).run(program)
    assert said[0] == said[1] and "f0" in said[0] and "6" in said[0]


def test_ids_by_themselves_are_no_slot_of_a_distribution_by_sample() -> None:
    slot = IdSlot("history", 5, None, False, 0, (0,), by_id=True)
    with pytest.raises(ValueError, match="'history': ids by themselves"):
        InputDist([slot], Topology(1, 1), 0, "hierarchical")
    with pytest.raises(ValueError, match="exactly one of lengths and hotness"):
        FeatureIds(torch.tensor([1]), None, None, 1)
