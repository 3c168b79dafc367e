"""Arithmetic on bytes between hosts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmt_plugin.report.run import traffic

COUNTS = {
    "index.peers.header": {"forward": {"other_hosts": 3, "same_host": 1, "itself": 9, "messages": 2}},
    "index.lanes.ids": {"forward": {"other_hosts": 0, "same_host": 7}},
    "peers": {"forward": {"other_hosts": 11, "same_host": 0}, "backward": {"other_hosts": 13, "same_host": 0}},
}


def test_kinds() -> None:
    assert traffic.by_kind(COUNTS) == {"ids": 3, "embeddings": 11, "gradients": 13}
    assert traffic.by_kind(COUNTS, "same_host") == {"ids": 8, "embeddings": 0, "gradients": 0}
    assert traffic.total(COUNTS) == 27
    assert traffic.total({}) == 0


@given(hosts=st.integers(1, 6), lanes=st.integers(1, 6), elements=st.integers(0, 1000))
def test_ring_all_reduce_counts_the_links_that_leave_a_host(hosts: int, lanes: int, elements: int) -> None:
    world = hosts * lanes
    per_link = 2 * (world - 1) / world * elements * 4
    crossing = sum(rank // lanes != (rank + 1) % world // lanes for rank in range(world))
    assert traffic.ring_all_reduce(elements, hosts, lanes) == pytest.approx(crossing * per_link)
