"""The count of bytes, and what is said when the backend fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dmt_plugin.comm.transport import Traffic, Transport, group_ranks
from dmt_plugin.errors import ExchangeError
from dmt_plugin.topology import Topology

TOPOLOGY = Topology(2, 2)


def transport() -> Transport:
    groups: Any = SimpleNamespace(
        topology=TOPOLOGY, rank=2, device=torch.device("cpu"), timeout_s=7, peers=None, lanes=None, world=None
    )
    return Transport(groups)


def test_group_ranks() -> None:
    assert [group_ranks(TOPOLOGY, 2, g) for g in ("peers", "lanes", "world")] == [
        (0, 2),
        (2, 3),
        (0, 1, 2, 3),
    ]
    with pytest.raises(ValueError, match="'hosts'"):
        group_ranks(TOPOLOGY, 2, "hosts")


def test_traffic_by_destination() -> None:
    traffic = Traffic(TOPOLOGY, 2)
    traffic.record("a", "forward", [1, 20, 300, 4000], [0, 1, 2, 3])
    traffic.record("a", "backward", [5, 0], [0, 2])
    traffic.record("b", "forward", [0, 7], [2, 3])
    a = {"other_hosts": 21, "same_host": 4000, "itself": 300, "messages": 3}
    assert traffic.as_dict()["a"]["forward"] == a
    total = traffic.totals()
    assert (total.other_hosts, total.same_host, total.itself, total.messages) == (26, 4007, 300, 5)
    assert traffic.totals("a", "backward").other_hosts == 5
    assert traffic.totals("b").same_host == 7
    traffic.reset()
    assert traffic.as_dict() == {} and traffic.totals().messages == 0


def test_the_real_buffer_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_to_all_single", lambda *args, **kwargs: None)
    wire = transport()
    wire.all_to_all("rows", "forward", "lanes", torch.zeros(5, dtype=torch.bfloat16), [2, 3], [1, 1])
    assert wire.traffic.totals().same_host == 6 and wire.traffic.totals().itself == 4


class _Broken:
    def wait(self, timeout: Any = None) -> None:
        assert timeout.total_seconds() == 7
        raise RuntimeError("Connection closed by peer\nmore")


def test_failures_say_where(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = transport()
    wire.step = 12
    send = torch.zeros(2)
    monkeypatch.setattr(dist, "all_to_all_single", lambda *args, **kwargs: _Broken())
    pending = wire.all_to_all("tower.peer", "backward", "peers", send, [1, 1], [1, 1])
    with pytest.raises(ExchangeError) as raised:
        pending.wait()
    text = str(raised.value)
    assert text.startswith(
        "rank 2 (host 1, lane 0), step 12: exchange 'tower.peer' (backward, peers group of ranks 0, 2) "
        "did not finish: Connection closed by peer."
    )
    assert "dmt.comm.timeout_s = 7 s" in text and "more\n" not in text

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no connection")

    monkeypatch.setattr(dist, "all_to_all_single", refuse)
    with pytest.raises(ExchangeError, match="could not start: no connection"):
        wire.all_to_all("x", "forward", "peers", send, [1, 1], [1, 1])
