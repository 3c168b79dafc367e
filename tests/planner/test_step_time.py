"""Bytes of the busiest link, the tasks of a step, and curves."""

from __future__ import annotations

import dataclasses

import pytest

from dmt_plugin.comm.formats import row_bytes
from dmt_plugin.comm.input_dist.ids import IdSlot
from dmt_plugin.planner.cost import exchange_costs
from dmt_plugin.planner.time.devices import Curve
from dmt_plugin.planner.time.links import Layout, link_bytes
from dmt_plugin.planner.time.step import COMPUTE, LANES, NIC, Load, Rates, step_time
from dmt_plugin.topology.shape import Topology

BATCH = 16


def slot(host: int, lane: int) -> IdSlot:
    return IdSlot(f"f{host}{lane}", 100, 1, False, host, (lane,))


@pytest.mark.parametrize("formats", [("fp32", "fp32"), ("fp32", "bf16"), ("bf16", "fp32")])
def test_two_ranks_receive_what_the_other_sends(formats: tuple) -> None:
    layout = Layout(Topology(2, 1), "flat", (slot(0, 0),), (3, 5))
    found = link_bytes(layout, BATCH, formats)
    # The rank of width 5 sends most forward and receives most backward.
    assert found.rows == (BATCH * row_bytes(formats[0], 5), BATCH * row_bytes(formats[1], 5))
    assert found.lanes == (0, 0)


def test_the_busiest_host_is_the_one_with_the_widest_tower() -> None:
    topology, widths = Topology(4, 2), (3, 4, 2, 2, 1, 1, 5, 1)
    layout = Layout(topology, "hierarchical", (), widths, (8, 2, 2, 4))
    found = link_bytes(layout, BATCH, ("bf16", "bf16"))
    assert found.rows == (3 * BATCH * 2 * 8, 3 * BATCH * 2 * 8)
    # Inside a host 4 * BATCH rows go to the other lane, or come back from it: of the widest rank.
    assert found.lanes == (4 * BATCH * 2 * 5, 4 * BATCH * 2 * 5)


def test_what_ranks_of_one_kind_send_is_asked_of_one() -> None:
    topology = Topology(3, 2)
    widths, hosts = (1, 2, 2, 1, 4, 4), (3, 3, 8)
    slots = tuple(slot(h, lane) for h in range(3) for lane in range(2))
    for route in ("flat", "hierarchical"):
        layout = Layout(topology, route, slots, widths, hosts)  # type: ignore[arg-type]
        found = link_bytes(layout, BATCH, ("fp32", "fp32"))
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
    found = link_bytes(Layout(Topology(2, 1), "flat", slots, (2, 3)), BATCH, ("fp32", "fp32"))
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
