"""Bytes of the busiest link, the tasks of a step, and curves."""

from __future__ import annotations

import dataclasses

import pytest

from dmt_plugin.comm.distinct.row_groups import GroupTable, Read, RowGroup, RowPart
from dmt_plugin.comm.formats import row_bytes
from dmt_plugin.comm.input_dist.ids import IdSlot
from dmt_plugin.plan.row_shares import RowShares, TableRows
from dmt_plugin.planner.cost import exchange_costs
from dmt_plugin.planner.distinct_cost import distinct_costs
from dmt_plugin.planner.distinct_needs import needs_of
from dmt_plugin.planner.time.devices import Curve
from dmt_plugin.planner.time.links import Layout, everywhere, link_bytes
from dmt_plugin.planner.time.step import COMPUTE, LANES, NIC, Load, Rates, step_time
from dmt_plugin.topology.shape import Topology

BATCH = 16


def slot(host: int, lane: int) -> IdSlot:
    return IdSlot(f"f{host}{lane}", 100, 1, False, host, (lane,))


@pytest.mark.parametrize("formats", [("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "fp32")])
def test_two_ranks_receive_what_the_other_sends(formats: tuple) -> None:
    layout = Layout(Topology(2, 1), "flat", (slot(0, 0),), (3, 5))
    found = link_bytes(layout, BATCH, everywhere(*formats))
    # The rank of width 5 sends most forward and receives most backward.
    assert found.rows == (BATCH * row_bytes(formats[0], 5), BATCH * row_bytes(formats[1], 5))
    assert found.lanes == (0, 0)


def test_the_busiest_host_is_the_one_with_the_widest_tower() -> None:
    topology, widths = Topology(4, 2), (3, 4, 2, 2, 1, 1, 5, 1)
    layout = Layout(topology, "hierarchical", (), widths, (8, 2, 2, 4))
    found = link_bytes(layout, BATCH, everywhere("bf16", "bf16"))
    assert found.rows == (3 * BATCH * 2 * 8, 3 * BATCH * 2 * 8)
    # Inside a host 4 * BATCH rows go to the other lane, or come back from it: of the widest rank.
    assert found.lanes == (4 * BATCH * 2 * 5, 4 * BATCH * 2 * 5)


def test_what_ranks_of_one_kind_send_is_asked_of_one() -> None:
    topology = Topology(3, 2)
    widths, hosts = (1, 2, 2, 1, 4, 4), (3, 3, 8)
    slots = tuple(slot(h, lane) for h in range(3) for lane in range(2))
    for route in ("flat", "hierarchical"):
        layout = Layout(topology, route, slots, widths, hosts)  # type: ignore[arg-type]
        found = link_bytes(layout, BATCH, everywhere("fp32", "fp32"))
        sent = [
            sum(
                cost.other_hosts
                for cost in exchange_costs(slots, widths, hosts, topology, rank, BATCH, route)  # type: ignore[arg-type]
                if cost.name in ("world", "peers") and cost.phase == "forward"
            )
            for rank in range(6)
        ]
        assert found.rows[0] >= max(sent) and found.ids > 0


def test_ids_are_those_to_other_hosts() -> None:
    slots = (slot(0, 0), slot(1, 0), slot(1, 0))
    found = link_bytes(Layout(Topology(2, 1), "flat", slots, (2, 3)), BATCH, everywhere("fp32", "fp32"))
    header = 8 * (4 + 1)
    assert found.ids == 2 * 4 * BATCH + header  # rank 0 sends the ids of both features of host 1


RATES = Rates(flops=10.0, memory=100.0, rows=4.0, ids=8.0, lanes=20.0, sums=5.0, fixed=1.0)
FLAT = Load(ids=8.0, lookup=100.0, rows=(8.0, 12.0), dense=(20.0, 40.0), sums=5.0)
TOWERS = dataclasses.replace(FLAT, lanes=(20.0, 40.0), shuffle=50.0, tower=(10.0, 30.0), rows=(4.0, 4.0))


def test_a_flat_step_part_by_part() -> None:
    found = step_time(FLAT, RATES)
    #          lookup rows fixed dense backward rows back update
    assert found.seconds == 1 + 2 + 1 + 2 + 4 + 3 + 2
    assert found.compute == 1 + 1 + 2 + 4 + 2 and found.exposed == 2 + 3
    assert found.timeline.spans["next ids"] == (0.0, 1.0)  # beside the lookup
    assert found.timeline.spans["sums"][0] == 13.0  # behind the exchange that the pass waits for
    assert set(found.timeline.on.values()) == {COMPUTE, NIC}


def test_a_step_with_towers_part_by_part() -> None:
    found = step_time(TOWERS, RATES)
    forward, middle, back = 1 + 1 + 0.5 + 1 + 1, 1 + 2 + 4, 1 + 3 + 0.5 + 2 + 2
    assert found.seconds == forward + middle + back
    assert found.exposed == (1 + 1) + (1 + 2)
    assert found.timeline.busy(LANES) == 1 + 2


def test_ids_that_take_longer_than_the_lookup_hold_the_exchange_up() -> None:
    late = step_time(dataclasses.replace(FLAT, ids=24.0), RATES)
    assert late.seconds == step_time(FLAT, RATES).seconds + 2


def test_curves() -> None:
    curve = Curve(((4, 1.0), (16, 2.0), (64, 8.0)), "nobody")
    assert [curve.at(x) for x in (1, 4, 8, 16, 32, 64, 1000)] == pytest.approx([1, 1, 1.5, 2, 5, 8, 8])
    for points in ((), ((0, 1.0),), ((2, 1.0), (2, 2.0))):
        with pytest.raises(ValueError, match="rising order"):
            Curve(points, "nobody")


def test_blocks_hide_an_exchange_behind_the_computing_of_another_block() -> None:
    whole = step_time(TOWERS, RATES)
    halves = step_time(dataclasses.replace(TOWERS, blocks=2), RATES)
    assert halves.compute == pytest.approx(whole.compute) and halves.timeline.busy(NIC) == whole.timeline.busy(NIC)
    assert halves.seconds < whole.seconds and halves.exposed < whole.exposed
    spans = halves.timeline.spans
    assert spans["rows out 2"][0] < spans["dense 1"][1]  # beside the dense part of the block before
    assert spans["rows back 2"][0] < spans["rows back 1"][0]  # backward the last block comes first
    assert spans["update"][0] >= max(spans["lanes back 1"][1], spans["lanes back 2"][1])


def test_what_an_exchange_costs_beside_its_bytes_counts_for_every_block() -> None:
    rates = dataclasses.replace(RATES, exchange=0.25, codec=0.5)
    assert step_time(FLAT, rates).seconds == step_time(FLAT, RATES).seconds + 2 * 0.25
    plain = dataclasses.replace(FLAT, sums=0.0)  # sums would take the link while the format is made
    coded = dataclasses.replace(plain, coded=(False, True))
    assert step_time(coded, rates).seconds == step_time(plain, rates).seconds + 2 * 0.5
    halves = step_time(dataclasses.replace(FLAT, blocks=2), rates)
    assert halves.timeline.busy(NIC) == pytest.approx(step_time(FLAT, RATES).timeline.busy(NIC) + 4 * 0.25)


def test_hosts_of_several_machines_and_sums_inside_take_their_links() -> None:
    load = dataclasses.replace(TOWERS, machines=(8.0, 16.0), sums_inside=20.0, update=500.0)
    found = step_time(load, RATES)
    assert found.timeline.spans["machines out"][1] - found.timeline.spans["machines out"][0] == 1.0
    assert found.timeline.busy(LANES) == step_time(TOWERS, RATES).timeline.busy(LANES) + 1.0
    assert found.timeline.spans["sums"][0] >= found.timeline.spans["sums inside"][1]
    assert found.timeline.spans["update"][1] - found.timeline.spans["update"][0] == 5.0


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_the_longest_chain_is_the_step(blocks: int) -> None:
    found = step_time(dataclasses.replace(TOWERS, blocks=blocks, sums=80.0), RATES)
    chain = found.timeline.critical(found.tasks)
    assert sum(found.critical().values()) == pytest.approx(found.seconds)
    assert found.timeline.spans[chain[0]][0] == 0.0 and found.timeline.spans[chain[-1]][1] == found.seconds
    assert sum(found.exposed_by().values()) >= found.exposed > 0


def test_ranks_that_share_a_link_take_it_together() -> None:
    layout = Layout(Topology(2, 2), "hierarchical", (), (3, 1, 2, 2), (4, 6))
    alone, shared = (link_bytes(layout, BATCH, everywhere("fp32", "fp32"), own) for own in (False, True))
    assert shared == alone  # between peers all lanes of a host send the same
    flat = Layout(Topology(2, 2), "flat", (), (3, 1, 2, 2))
    one, both = (link_bytes(flat, BATCH, everywhere("fp32", "fp32"), own) for own in (False, True))
    assert one.rows[0] == 2 * BATCH * 4 * 3  # the widest rank sends to both ranks of the other host
    assert both.rows[0] == 2 * BATCH * 4 * (3 + 1) / 2


def test_nothing_comes_back_for_what_is_frozen() -> None:
    layout = Layout(Topology(2, 1), "hierarchical", (), (3, 5), (3, 5), (0, 5), (0, 5))
    found = link_bytes(layout, BATCH, everywhere("fp32", "fp32"))
    assert found.rows == (BATCH * 4 * 5, BATCH * 4 * 5)
    none = dataclasses.replace(layout, rank_gradients=(0, 0), host_gradients=(0, 0))
    assert link_bytes(none, BATCH, everywhere("fp32", "fp32")).rows == (BATCH * 4 * 5, 0)


def test_distinct_rows_of_the_busiest_owner() -> None:
    topology = Topology(2, 1)
    parts = (RowPart(0, 0, 1, 30, 0), RowPart(1, 30, 1, 10, 0))
    group = RowGroup("rows0", 4, (GroupTable("t", 40, parts),), (Read(0, 0),))
    shares = RowShares("test", BATCH, 1, 1, (), (TableRows("t", 8.0, 8.0),))
    needs = needs_of((group,), shares, topology)
    assert needs is not None and needs[0].host[1, 0] == 6.0 and needs[0].rank[0, 1] == 2.0
    asks = (IdSlot("f", 40, 1, False, 0, (0,)),)
    layout = Layout(topology, "hierarchical", (), (), groups=(group,), distinct_slots=asks, needs=needs)
    found = link_bytes(layout, BATCH, everywhere("fp32", "bf16"))
    assert found.rows == (6 * 4 * 4, 6 * 4 * 2) and found.ids > 6 * 4
    assert needs_of((group,), dataclasses.replace(shares, tables=()), topology) is None
    frozen = dataclasses.replace(layout, groups=(dataclasses.replace(group, trained=False),))
    assert link_bytes(frozen, BATCH, everywhere("fp32", "bf16")).rows == (6 * 4 * 4, 0)


def test_distinct_rows_are_those_of_the_busiest_of_all_ranks() -> None:
    topology = Topology(2, 2)
    parts = [(RowPart(r, 0, 1, rows, 0),) for r, rows in ((0, 10), (1, 10), (2, 40), (3, 10))]
    group = RowGroup("rows0", 4, tuple(GroupTable(f"t{r}", own[0].rows, own) for r, own in enumerate(parts)), ())
    counted = tuple(TableRows(f"t{r}", rank, host) for r, rank, host in ((0, 3, 5), (1, 3, 5), (2, 9, 12), (3, 3, 5)))
    needs = needs_of((group,), RowShares("test", BATCH, 2, 1, (), counted), topology)
    for route in ("hierarchical", "flat"):
        layout = Layout(topology, route, (), (), groups=(group,), needs=needs)  # type: ignore[arg-type]
        found = link_bytes(layout, BATCH, everywhere("fp32", "fp32"))
        ends = ("world",) if route == "flat" else ("peers", "lanes")
        formats = {f"rows0.{end}": ("fp32", "fp32") for end in ends}
        own = [
            distinct_costs((group,), (), topology, rank, BATCH, formats, needs=needs)  # type: ignore[arg-type]
            for rank in range(4)
        ]
        sent = [
            [sum(getattr(c, where) for c in costs if c.phase == phase and c.name.startswith("rows0")) for costs in own]
            for where in ("other_hosts", "same_host")
            for phase in ("forward", "backward")
        ]
        assert found.rows == (max(sent[0] + sent[1]), max(sent[0] + sent[1]))
        assert found.lanes == (max(sent[2] + sent[3]), max(sent[2] + sent[3]))
