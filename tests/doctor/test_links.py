"""The probe of links: what its figures mean, and that it measures on real ranks."""

from __future__ import annotations

import pytest

from dmt_plugin.doctor import links
from dmt_plugin.doctor.links import Kind, Pair, judged, spread, summed_up
from dmt_plugin.topology.groups import create_groups
from dmt_plugin.topology.shape import Topology
from tests._util.ranks import run_ranks


def kind(gigabytes: float, slowest: float | None = None) -> Kind:
    return Kind(20e-6, gigabytes * 1e9, Pair(2, 5, (gigabytes if slowest is None else slowest) * 1e9))


def test_even_links_are_well():
    finding = judged({"inside hosts": kind(200), "between hosts": kind(20)})
    assert finding.status == "ok"
    assert finding.data["between hosts"] == {
        "latency_us": pytest.approx(20), "GB_per_s": 20, "slowest_GB_per_s": 20, "slowest_pair": [2, 5]
    }  # fmt: skip


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
    by_rank = [(1e-6, [Pair(0, 1, 5.0)]), None, (3e-6, [Pair(1, 0, 1.0), Pair(1, 2, 6.0)])]
    assert summed_up(by_rank) == Kind(2e-6, 5.0, Pair(1, 0, 1.0))
    assert summed_up([None, None]) is None


def test_large_groups_are_sampled():
    assert spread(2, 8) == [1] and spread(9, 8) == list(range(1, 9))
    sampled = spread(64, 8)
    assert len(sampled) == 8 and sampled[0] == 1 and sampled[-1] == 63


def measured(rank: int, world: int) -> dict[str, list[tuple[int, int]]]:
    groups = create_groups(Topology(2, 2), timeout_s=30)
    found = {}
    for name in ("lanes", "peers"):
        latency, pairs = links.measure(groups, name, lambda: None)
        assert 0 < latency < 5 and all(pair.bytes_per_s > 1e3 for pair in pairs)
        found[name] = [(pair.source, pair.target) for pair in pairs]
    return found


@pytest.mark.processes
def test_every_link_of_real_ranks_is_measured():
    by_rank = run_ranks(4, measured)
    assert [one["lanes"] for one in by_rank] == [[(0, 1)], [(1, 0)], [(2, 3)], [(3, 2)]]
    assert [one["peers"] for one in by_rank] == [[(0, 2)], [(1, 3)], [(2, 0)], [(3, 1)]]
