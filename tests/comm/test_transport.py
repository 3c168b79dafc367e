"""The count of bytes, and what is said when the backend fails."""

from __future__ import annotations

import itertools
import threading
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dmt_plugin.comm.wire.point_to_point import Messages, PointToPoint
from dmt_plugin.comm.wire.transport import Traffic, Transport, group_ranks
from dmt_plugin.core.errors import ExchangeError
from dmt_plugin.topology.shape import Topology

TOPOLOGY = Topology(2, 2)


def groups_of(topology: Topology, rank: int = 0) -> Any:
    return SimpleNamespace(
        topology=topology, rank=rank, device=torch.device("cpu"), timeout_s=7, peers=None, lanes=None, world=None
    )


def transport() -> Transport:
    return Transport(groups_of(TOPOLOGY, 2), messages=False)


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


class Slow(int):
    """A number of bytes whose addition takes until another thread has counted."""

    meanwhile: Any

    def __radd__(self, other: int) -> int:
        self.meanwhile()
        return other + int(self)


def test_two_threads_count_all_bytes() -> None:
    """Exchanges of this batch, and in a thread of their own the ids of the next one."""
    traffic = Traffic(TOPOLOGY, 2)
    size = Slow(5)
    other = threading.Thread(target=lambda: traffic.record("a", "forward", [7], [3]))

    def meanwhile() -> None:
        other.start()
        other.join(1.0)

    size.meanwhile = meanwhile
    traffic.record("a", "forward", [size], [3])
    other.join()
    assert traffic.totals().same_host == 12


def test_the_real_buffer_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_to_all_single", lambda *args, **kwargs: None)
    wire = transport()
    wire.all_to_all("rows", "forward", "lanes", torch.zeros(5, dtype=torch.bfloat16), [2, 3], [1, 1])
    assert wire.traffic.totals().same_host == 6 and wire.traffic.totals().itself == 4


def test_form_of_an_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages between hosts, the library's collective inside a host and for few bytes."""
    used: list[str] = []
    monkeypatch.setattr(dist, "all_to_all_single", lambda *args, **kwargs: used.append("library"))
    monkeypatch.setattr(PointToPoint, "start", lambda *args: used.append("messages"))

    def forms(topology: Topology, **options: Any) -> list[str]:
        used.clear()
        wire = Transport(groups_of(topology), **options)
        for group, brief in itertools.product(("peers", "lanes", "world"), (False, True)):
            splits = [1] * len(group_ranks(topology, 0, group))
            wire.all_to_all("x", "forward", group, torch.zeros(len(splits)), splits, splits, brief=brief)  # type: ignore[arg-type]
        return list(used)

    library, messages = "library", "messages"
    assert forms(TOPOLOGY, messages=True) == [messages, library, library, library, messages, library]
    assert forms(TOPOLOGY, messages=False) == [library] * 6
    assert forms(Topology(1, 3), messages=True) == [library] * 4
    for backends, chosen in (("cpu:gloo,cuda:nccl", messages), ("cpu:mpi", library)):
        monkeypatch.setattr(dist, "get_backend_config", lambda group, backends=backends: backends)
        assert forms(TOPOLOGY)[0] == chosen


class _Done:
    def wait(self, timeout: Any) -> None:
        pass


def test_what_needs_the_link_waits_for_all_that_cross_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_to_all_single", lambda *args, **kwargs: _Done())
    wire, done = transport(), []

    def started(group: Any) -> Any:
        splits = [1] * len(group_ranks(TOPOLOGY, 2, group))
        return wire.all_to_all("x", "forward", group, torch.zeros(len(splits)), splits, splits)

    inside = started("lanes")
    wire.when_link_is_free(lambda: done.append("beside the lanes'"))
    assert done == ["beside the lanes'"]
    first, second = started("peers"), started("world")
    wire.when_link_is_free(lambda: done.append("behind both"))
    first.wait()
    inside.wait()
    assert done == ["beside the lanes'"]
    second.wait()
    assert done == ["beside the lanes'", "behind both"]
    second.wait()
    first.wait()  # again: it has been counted
    started("peers")
    wire.when_link_is_free(lambda: done.append("behind the third"))
    assert done[-1] == "behind both"


class _Late:
    def __init__(self, waits: list[float]) -> None:
        self.waits = waits

    def wait(self, timeout: Any) -> None:
        self.waits.append(timeout.total_seconds())
        time.sleep(0.05)


def test_messages_share_one_time_limit() -> None:
    waits: list[float] = []
    Messages([_Late(waits), _Late(waits), _Late(waits)]).wait(timedelta(seconds=0.08))  # type: ignore[list-item]
    assert waits[0] == pytest.approx(0.08, abs=0.01) and waits[1] < 0.035 and waits[2] == 0.001


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
