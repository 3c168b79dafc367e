"""The emulated cluster itself: links, counts, processes, and that nothing of it is ever left."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.cluster import Cluster, ClusterError, network, state
from benchmarks.cluster.cluster import sweep
from benchmarks.cluster.inside import start
from benchmarks.cluster.processes import failures

ROOT = Path(__file__).parents[2]
Make = Callable[..., Cluster]


def send(cluster: Cluster, source: int, target: int, size: int) -> None:
    """``size`` bytes of payload from one host to another, or within one."""
    ready, done = threading.Event(), threading.Event()

    def serve() -> None:
        with socket.create_server((cluster.shape.address(target), 7000)) as server:
            ready.set()
            connection, _ = server.accept()
            with connection:
                while connection.recv(1 << 16):
                    pass
        done.set()

    def dial() -> None:
        with socket.create_connection((cluster.shape.address(target), 7000)) as connection:
            connection.sendall(bytes(size))

    start(cluster.shape.namespace(target), serve)
    assert ready.wait(10)
    start(cluster.shape.namespace(source), dial)
    assert done.wait(60)


def test_links_ranks_and_counts(cluster: Make) -> None:
    made = cluster(hosts=3, lanes=2, rate="50mbit")
    assert all(0.85 * 5e7 < rate < 0.97 * 5e7 for rate in made.check())

    outcomes = made.run(["sh", "-c", "echo $RANK $LOCAL_RANK $CROSS_RANK $WORLD_SIZE $MASTER_ADDR $(hostname)"])
    said = [outcome.output.strip() for outcome in outcomes]
    assert said == [f"{r} {r % 2} {r // 2} 6 10.77.0.1 h{r // 2}" for r in range(6)]
    assert made.run_on(2, ["hostname"]).output == "h2\n"

    # What crosses a link is counted there, with its headers (4.5 %); what stays inside a host is not.
    before = made.bytes()
    send(made, 0, 2, 3_000_000)
    send(made, 1, 1, 2_000_000)
    zero, one, two = (now - then for now, then in zip(made.bytes(), before, strict=True))
    assert 3_000_000 < zero.sent < 3_180_000 and zero.sent == two.received
    assert one.sent == one.received == 0 and 2_000_000 < one.inside < 2_100_000
    assert zero.received < 100_000 and zero.inside == 0


def test_a_link_without_its_limit_is_noticed(cluster: Make) -> None:
    made = cluster(rate="40mbit")
    network.call("tc", "-n", made.shape.namespace(1), "qdisc", "replace", "dev", "eth0", "root", "tbf",
                 "rate", "60mbit", "burst", "20000", "limit", "1m")  # fmt: skip
    with pytest.raises(ClusterError, match=r"limited to 60000000 bit/s, expected 40000000"):
        made.check()
    network.call("tc", "-n", made.shape.namespace(1), "qdisc", "del", "dev", "eth0", "root")
    with pytest.raises(ClusterError, match="one token bucket expected"):
        made.run(["true"])
    made.set_rate("60mbit")
    assert all(rate > 0.85 * 6e7 for rate in made.check())


def test_a_failing_rank_ends_the_others(cluster: Make) -> None:
    made = cluster(lanes=1)
    begun = time.monotonic()
    outcomes = made.run(["sh", "-c", "test $RANK = 0 || { echo broken; exit 3; }; sleep 60 & sleep 60"], grace_s=0.3)
    assert time.monotonic() - begun < 20
    assert [(o.code, o.ended_by) for o in outcomes] == [(-15, "failure"), (3, "itself")]
    assert "rank 1: exit code 3" in failures(outcomes) and "broken" in failures(outcomes)
    late = made.run(["sleep", "60"], timeout_s=0.2)
    assert {o.ended_by for o in late} == {"timeout"}
    assert not [pid for host in range(2) for pid in network.pids(made.shape.namespace(host))]


def _where(rank: int, word: str) -> tuple[int, str, str, str]:
    if word == "fail" and rank == 1:
        raise ValueError("this rank had enough")
    return rank, word, socket.gethostname(), os.environ["MASTER_ADDR"]


def test_functions_on_ranks(cluster: Make) -> None:
    made = cluster()
    assert made.call(_where, "x") == [(r, "x", f"h{r // 2}", "10.77.0.1") for r in range(4)]
    with pytest.raises(ClusterError, match=r"1 rank\(s\) failed\n--- rank 1(.|\n)*this rank had enough"):
        made.call(_where, "fail")
    assert socket.gethostname() != "h0"


def test_names_do_not_meet(cluster: Make) -> None:
    name = f"t{os.getpid()}"
    first, second = cluster(name=name, lanes=1), cluster(name=f"{name}-h0", lanes=1)
    with pytest.raises(ClusterError, match=f"'{name}' is up already"):
        cluster(name=name)
    first.down()
    assert second.check()
    assert [n for n in network.namespaces() if n.startswith(f"dmt-{name}")] == [
        f"dmt-{name}-h0-h0", f"dmt-{name}-h0-h1", f"dmt-{name}-h0-sw"
    ]  # fmt: skip


CHILD = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, such as these tests, ignore it
from benchmarks.cluster import Cluster
with Cluster(2, 1, "50mbit", name="{name}") as cluster:
    print("up", flush=True)
    cluster.run(["sleep", "60"])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_killed_owner(_able: None, number: signal.Signals) -> None:
    name = f"t-{number.name.lower()}-{os.getpid()}"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD.format(name=name)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert child.stdout is not None and child.stdout.readline() == "up\n"
    deadline = time.monotonic() + 60
    sleepers: list[int] = []
    while not sleepers and time.monotonic() < deadline:  # a process is there before it has become the sleeper
        time.sleep(0.05)
        sleepers = [pid for pid in network.pids(f"dmt-{name}-h1") if _runs(pid)]
    child.send_signal(number)
    assert child.wait(30) != 0
    child.stdout.close()
    if number is signal.SIGKILL:  # it had no chance: whoever comes next sweeps up
        assert network.namespaces(f"dmt-{name}")
        sweep()
    assert not network.namespaces(f"dmt-{name}")
    assert state.read(name) is None and not state.folder_of(name).exists()
    assert sleepers and not [pid for pid in sleepers if _runs(pid)]


def _runs(pid: int) -> bool:
    try:
        return "sleep" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.cluster", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_by_hand(_able: None) -> None:
    name = f"t-hand-{os.getpid()}"
    try:
        up = command_line("up", "--hosts", "2", "--lanes", "1", "--rate", "50mbit", "--name", name, "--no-ssh")
        assert up.returncode == 0 and "verified" in up.stdout and "ssh between hosts: no, off" in up.stdout
        run = command_line("run", "--name", name, "--", "sh", "-c", "echo rank $RANK of $WORLD_SIZE")
        assert run.returncode == 0
        assert sorted(run.stdout.splitlines()) == ["[rank 0] rank 0 of 2", "[rank 1] rank 1 of 2"]
        assert "h1: sent 0 bytes" in run.stderr
        failed = command_line("run", "--name", name, "--host", "1", "--", "sh", "-c", "exit 5")
        assert failed.returncode == 1 and "host 1: exit code 5" in failed.stderr
        assert f"{name}: 2 x 1, 50 Mbit/s, stays; links as asked for" in command_line("status").stdout
        again = command_line("up", "--name", name)
        assert again.returncode == 2 and "is up already" in again.stderr
    finally:
        down = command_line("down", "--name", name)
    assert f"dmt-{name}-sw" in down.stdout
    assert command_line("down", "--name", name).stdout == "nothing to remove\n"
    gone = command_line("run", "--name", name, "--", "true")
    assert gone.returncode == 2 and "no cluster is up" in gone.stderr
    assert "mbit" in command_line("up", "--rate", "fast").stderr
