"""Proof that a cluster's links are what was asked for, made before every use.

1. Read the queueing of both ends of every link back from the kernel.
2. From every host send to the next, one after another, so long that what the token bucket hands out at once is little
   of it: what arrives, payload only, has to lie between ``LOWEST`` and ``HIGHEST`` of the rate (headers take 4.5 % of
   full packets). A machine that is busy with other things may need several tries for the lower limit; the upper one is
   final.
3. With a latency, a byte there and back has to take at least twice as long.
"""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from benchmarks.cluster.errors import ClusterError
from benchmarks.cluster.inside import start
from benchmarks.cluster.network import call, links
from benchmarks.cluster.shape import Shape

LOWEST, HIGHEST = 0.85, 0.97
_SECONDS = 0.25
_BUCKETS = 150
_TRIES = 5
_TIMEOUT = 20.0


def check(shape: Shape) -> list[float]:
    """Verify a cluster.

    Returns:
        Goodput of each host's link, bits per second; empty for a cluster of one host.

    Raises:
        ClusterError: a link is not what it should be.
    """
    for namespace, device in links(shape):
        _check_queue(shape, namespace, device)
    if shape.hosts == 1:
        return []
    found = [_goodput_in_range(shape, host, (host + 1) % shape.hosts) for host in range(shape.hosts)]
    if shape.latency_ms:
        seconds = _round_trip(shape, 0, 1)
        if seconds < 2e-3 * shape.latency_ms:
            raise ClusterError(f"a round trip takes {1e3 * seconds:.2f} ms, but every way has {shape.latency_ms} ms")
    return found


def _check_queue(shape: Shape, namespace: str, device: str) -> None:
    queues = json.loads(call("tc", "-n", namespace, "-j", "qdisc", "show", "dev", device))
    buckets = [queue for queue in queues if queue["kind"] == "tbf"]
    if len(buckets) != 1:
        kinds = [queue["kind"] for queue in queues]
        raise ClusterError(f"{namespace} {device}: one token bucket expected, found {kinds}; bring it up again")
    rate = 8 * buckets[0]["options"]["rate"]  # tc writes bytes per second in JSON
    if abs(rate - shape.rate_bit) > 8:
        raise ClusterError(f"{namespace} {device}: limited to {rate} bit/s, expected {shape.rate_bit}")


def _goodput_in_range(shape: Shape, source: int, target: int) -> float:
    rates = []
    for _ in range(_TRIES):
        rate = _goodput(shape, source, target)
        rates.append(rate)
        if rate > HIGHEST * shape.rate_bit:
            raise ClusterError(
                f"host {source} -> host {target} carries {rate / 1e6:.1f} Mbit/s of payload, more than "
                f"{HIGHEST:.0%} of its rate {shape.rate_bit / 1e6:g} Mbit/s: the link is not limited"
            )
        if rate >= LOWEST * shape.rate_bit:
            return rate
    raise ClusterError(
        f"host {source} -> host {target} carries at best {max(rates) / 1e6:.1f} of {shape.rate_bit / 1e6:g} Mbit/s in "
        f"{_TRIES} tries: this machine is too busy, or too slow for that rate"
    )


def _goodput(shape: Shape, source: int, target: int) -> float:
    """Payload bits per second of one TCP connection, taken where it arrives."""
    result: dict[str, Any] = {}

    def receive(connection: socket.socket) -> None:
        buffer = bytearray(1 << 18)
        connection.recv_into(buffer)
        begun, count = time.monotonic(), 0
        while size := connection.recv_into(buffer):
            count += size
            result["rate"] = 8 * count / max(time.monotonic() - begun, 1e-9)

    def send(connection: socket.socket) -> None:
        data = bytes(1 << 16)
        stop = time.monotonic() + max(_SECONDS, _BUCKETS * 8 * shape.burst / shape.rate_bit)
        while time.monotonic() < stop:
            connection.sendall(data)

    _connect(shape, source, target, send, receive)
    return float(result["rate"])


def _round_trip(shape: Shape, source: int, target: int) -> float:
    times: list[float] = []

    def answer(connection: socket.socket) -> None:
        while connection.recv(1):
            connection.sendall(b"b")

    def ask(connection: socket.socket) -> None:
        for _ in range(5):
            begun = time.monotonic()
            connection.sendall(b"a")
            connection.recv(1)
            times.append(time.monotonic() - begun)

    _connect(shape, source, target, ask, answer)
    return min(times)


def _connect(shape: Shape, source: int, target: int, at_source: Any, at_target: Any) -> None:
    """One connection between two hosts, with a function at each end."""
    failures: list[BaseException] = []
    ports: list[int] = []

    def serve() -> None:
        with socket.create_server((shape.address(target), 0)) as server:
            server.settimeout(_TIMEOUT)
            ports.append(server.getsockname()[1])
            connection, _ = server.accept()
            with connection:
                connection.settimeout(_TIMEOUT)
                at_target(connection)

    def dial() -> None:
        with socket.create_connection((shape.address(target), ports[0]), timeout=_TIMEOUT) as connection:
            at_source(connection)

    def guarded(work: Any) -> Any:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        return run

    server = start(shape.namespace(target), guarded(serve))
    deadline = time.monotonic() + _TIMEOUT
    while not ports and not failures and time.monotonic() < deadline:
        time.sleep(0.001)
    if ports:
        start(shape.namespace(source), guarded(dial)).join(_TIMEOUT)
        server.join(_TIMEOUT)
    if failures or not ports:
        raise ClusterError(f"host {source} cannot talk to host {target}: {failures[0] if failures else 'no answer'}")
