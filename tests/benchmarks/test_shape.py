"""Names, rates and buckets of a cluster, and the refusal where there can be none."""

from __future__ import annotations

import pytest

from benchmarks.cluster import ClusterUnavailable, needs
from benchmarks.cluster.shape import Shape, parse_rate


def test_rates() -> None:
    assert parse_rate("100mbit") == 10**8
    assert parse_rate(" 2.5 Gbit ") == 2_500_000_000
    assert parse_rate("1500kbit") == 1_500_000
    for wrong in ("100", "fast", "100 mbyte", "-1mbit", "1kbit"):
        with pytest.raises(ValueError, match="mbit"):
            parse_rate(wrong)


def test_names() -> None:
    shape = Shape("a", 3, 2, 10**8)
    assert shape.world_size == 6
    assert [shape.namespace(h) for h in range(3)] == ["dmt-a-h0", "dmt-a-h1", "dmt-a-h2"]
    assert shape.address(2) == "10.77.0.3" and shape.switch == "dmt-a-sw"
    for wrong in ({"name": "../x"}, {"name": "A"}, {"hosts": 0}, {"hosts": 300}, {"lanes": 0}, {"latency_ms": -1.0}):
        with pytest.raises(ValueError, match="found, expected"):
            Shape(**{"name": "a", "hosts": 2, "lanes": 2, "rate_bit": 10**8, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("rate", [10**7, 10**8, 5 * 10**8, 10**9])
def test_bucket_takes_a_super_packet_and_little_more(rate: int) -> None:
    shape = Shape("a", 2, 2, rate)
    assert shape.super_packet <= shape.burst <= 2 * shape.super_packet
    # Free bytes after a pause: under 2 ms of the link's time.
    assert 8 * shape.burst / rate < (0.02 if rate < 10**8 else 0.002)


def test_refusals_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs.shutil, "which", lambda name: None if name == "tc" else f"/sbin/{name}")
    monkeypatch.setattr(needs.os, "geteuid", lambda: 1000)
    with pytest.raises(ClusterUnavailable) as raised:
        needs.require()
    text = str(raised.value)
    assert "command tc is missing (apt-get install iproute2" in text and "need root" in text
