"""The probe of links: what its figures mean, and that it measures on real ranks."""

from __future__ import annotations

from typing import Any

import pytest

from dmt_plugin.doctor import links
from dmt_plugin.doctor.everyone import everyone_of, measure_everyone
from dmt_plugin.doctor.links import Kind, Pair, judged, spread, summed_up
from dmt_plugin.doctor.spread import Spread
from dmt_plugin.topology.groups import create_groups
from dmt_plugin.topology.shape import Topology
from tests._util.ranks import run_ranks

SMALL, LARGE = 2**18, 2**22


def kind(gigabytes: float, slowest: float | None = None) -> Kind:
    """Blocks take as long as their bytes, and a millisecond."""
    slow = Pair(2, 5, (gigabytes if slowest is None else slowest) * 1e9, LARGE)
    rates = {SMALL: SMALL / (1e-3 + SMALL / 1e9), LARGE: gigabytes * 1e9}
    return Kind(20e-6, slow, {size: Spread(0.9 * rate, rate, 1.2 * rate) for size, rate in rates.items()})


def test_even_links_are_well():
    finding = judged({"inside hosts": kind(200), "between hosts": kind(20)})
    assert finding.status == "ok"
    told = finding.data["between hosts"]
    assert told["latency_us"] == pytest.approx(20) and told["slowest_pair"] == [2, 5]
    assert told["GB_per_s"] == told["slowest_GB_per_s"] == 20
    assert told["blocks"][1] == {"bytes": LARGE, "GB_per_s": 20, "low_GB_per_s": 18, "high_GB_per_s": pytest.approx(24)}


def test_two_blocks_tell_the_start_from_the_bytes():
    sizes = {size: Spread.of([size / (3e-3 + size / 5e8)]) for size in (SMALL, LARGE)}
    own = Kind(1e-4, Pair(0, 1, 1.0, LARGE), sizes)
    assert own.line() == (pytest.approx(3e-3), pytest.approx(5e8))
    told = own.as_dict()
    assert (told["start_us"], told["line_GB_per_s"]) == (pytest.approx(3000), pytest.approx(0.5))
    falling = Kind(1e-4, Pair(0, 1, 1.0, LARGE), {SMALL: Spread.of([1e6]), LARGE: Spread.of([1e9])})
    assert falling.line() is None and falling.as_dict()["start_us"] is None


def test_all_ranks_at_once():
    own = {"all_to_all": [(800, [1.0, 2.0, 3.0])], "all_reduce": [(800, [4.0])]}
    found = everyone_of([own, own, None], Topology(2, 2))
    data = judged({"inside hosts": kind(200)}, found).data["all ranks"]
    assert data["ranks"] == 4
    (exchange,), (sums,) = data["all_to_all"], data["all_reduce"]
    assert (exchange["bytes"], exchange["ms"], exchange["low_ms"]) == (800, 2000, pytest.approx(1250))
    assert exchange["GB_per_s"] == pytest.approx(400 / 2.0 / 1e9), "half of the ranks are on the other host"
    assert exchange["low_GB_per_s"] < exchange["GB_per_s"] < exchange["high_GB_per_s"]
    assert sums["GB_per_s"] == pytest.approx(2 * 3 / 4 * 800 / 4.0 / 1e9)
    assert "GB_per_s" not in everyone_of([own], Topology(1, 4)).as_dict()["all_to_all"][0], "nothing leaves the host"
    assert everyone_of([None], Topology(1, 1)) is None


def test_a_slow_pair_is_named():
    finding = judged({"inside hosts": kind(200), "between hosts": kind(20, 5)})
    assert finding.status == "warn" and "from rank 2 to rank 5 between hosts" in finding.change


def test_hosts_that_are_none_are_suspected():
    finding = judged({"inside hosts": kind(10), "between hosts": kind(20)})
    assert finding.status == "warn" and '"route": "flat"' in finding.change


def test_one_host_has_no_links_to_others():
    finding = judged({"inside hosts": kind(10), "between hosts": None})
    assert finding.status == "ok" and "between hosts: no such link" in finding.found


def test_the_slowest_of_all_ranks_is_found():
    small = Pair(0, 1, 0.1, SMALL)
    by_rank = [(1e-6, [small, Pair(0, 1, 5.0, LARGE)]), None, (3e-6, [Pair(1, 0, 1.0, LARGE), Pair(1, 2, 6.0, LARGE)])]
    found = summed_up(by_rank)
    assert (found.latency_s, found.median, found.slowest) == (2e-6, 5.0, Pair(1, 0, 1.0, LARGE))
    assert list(found.rates) == [SMALL, LARGE] and found.rates[LARGE] == Spread(3.0, 5.0, 5.5)
    assert summed_up([None, None]) is None


def test_large_groups_are_sampled():
    assert spread(2, 8) == [1] and spread(9, 8) == list(range(1, 9))
    sampled = spread(64, 8)
    assert len(sampled) == 8 and sampled[0] == 1 and sampled[-1] == 63


def measured(rank: int, world: int) -> dict[str, list[tuple[Any, int]]]:
    groups = create_groups(Topology(2, 2), timeout_s=30)
    found = {}
    for name in ("lanes", "peers"):
        latency, pairs = links.measure(groups, name, lambda: None)
        assert 0 < latency < 5 and all(pair.bytes_per_s > 1e3 for pair in pairs)
        found[name] = [(pair.source, pair.target) for pair in pairs]
        assert [pair.block for pair in pairs] == list(links.BLOCK_BYTES["cpu"])
    of_all = measure_everyone(groups, lambda: None)
    found["all"] = [(name, size) for name, sizes in of_all.items() for size, seconds in sizes if min(seconds) > 0]
    return found


@pytest.mark.processes
def test_every_link_of_real_ranks_is_measured():
    by_rank = run_ranks(4, measured)
    assert [one["lanes"] for one in by_rank] == [[pair] * 2 for pair in ((0, 1), (1, 0), (2, 3), (3, 2))]
    assert [one["peers"] for one in by_rank] == [[pair] * 2 for pair in ((0, 2), (1, 3), (2, 0), (3, 1))]
    for one in by_rank:
        assert one["all"] == [(name, size) for name in ("all_to_all", "all_reduce") for size in (SMALL, LARGE)]
