"""Steps on processor cores that ranks share: by hand where they are small, and as laws."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dmt_plugin.planner.time.cores import Cores, step_on_cores
from dmt_plugin.planner.time.step import Exchanges, Load
from dmt_plugin.topology.shape import Topology

RATES = Cores(cores=1, together=True, flops=1.0, moved=1.0, link=1.0, exchange=0.0, fixed=0.0)
LOAD = Load(ids=0.0, lookup=3.0, rows=(8.0, 8.0), dense=(5.0, 5.0), sums=0.0)


def test_one_rank_on_one_core_does_one_thing_after_the_other() -> None:
    # 3 lookup, 8 to send, 8 on the link, 8 to read, 5 + 5 dense, and back, and 6 for the update
    step = step_on_cores(LOAD, RATES, Topology(2, 1), flat=False)
    alone = step_on_cores(LOAD, replace(RATES, together=False), Topology(2, 1), flat=False)
    assert alone.seconds == 3 + 24 + 10 + 24 + 6
    assert alone.compute == step.compute == 3 + 16 + 10 + 16 + 6
    assert alone.exposed == 16 and set(alone.exposed_by()) == {"rows out", "rows back"}


def test_ranks_that_share_a_core_hide_the_link_and_wait_for_each_other() -> None:
    two = step_on_cores(LOAD, RATES, Topology(2, 1), flat=False)
    alone = step_on_cores(LOAD, replace(RATES, together=False), Topology(2, 1), flat=False)
    assert 2 * two.compute <= two.seconds < 2 * alone.seconds
    # With a core for each the two are done as early as one by itself.
    assert step_on_cores(LOAD, replace(RATES, cores=2), Topology(2, 1), flat=False).seconds == alone.seconds


def test_the_lanes_of_a_host_share_its_link() -> None:
    fast = replace(RATES, cores=100, moved=1e12, flops=1e12)
    for lanes in (1, 2, 4):
        step = step_on_cores(LOAD, fast, Topology(2, lanes), flat=False)
        assert step.seconds == pytest.approx(16 * lanes)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("what", ["flops", "moved", "link", "exchange", "fixed", "cores"])
def test_nothing_gets_slower_with_better_hardware(what: str, flat: bool) -> None:
    load = replace(
        LOAD, blocks=2, lanes=(4.0, 4.0), shuffle=2.0, tower=(1.0, 2.0), sums=2.0, ids=1.0,
        exchanges=Exchanges(3, 1, 1, 2),
    )  # fmt: skip
    rates = replace(RATES, exchange=1.0, fixed=4.0, cores=2)
    better = {"exchange": 0.1, "fixed": 0.4, "cores": 4}.get(what, 10.0)
    slow = step_on_cores(load, rates, Topology(2, 2), flat=flat)
    quick = step_on_cores(load, replace(rates, **{what: better}), Topology(2, 2), flat=flat)
    assert quick.seconds < slow.seconds


def test_what_a_rank_computes_does_not_depend_on_who_shares_its_cores() -> None:
    load = replace(LOAD, lanes=(4.0, 4.0), shuffle=2.0, exchanges=Exchanges(3, 1, 1, 2))
    rates = replace(RATES, exchange=1.0, fixed=4.0)
    found = {step_on_cores(load, rates, Topology(h, 2), flat=False).compute for h in (1, 2, 4)}
    assert len(found) == 1


def test_an_exchange_ends_when_the_last_of_its_group_has_sent() -> None:
    names = {task.name: task for task in step_on_cores(LOAD, RATES, Topology(2, 2), flat=True).tasks}
    assert set(names["rows out read 1.3"].after) == {"rows out 1.0", "rows out 1.1"}
    assert set(names["rows out 1.1"].after) == {"rows out sent 1.2", "rows out sent 1.3"}
