"""What the token bucket counts: frames, from which the payload follows."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import pytest

from benchmarks.cluster import Cluster, ClusterError
from benchmarks.cluster.counters import own_link
from benchmarks.cluster.frames import HEADERS, Frames, own_frames

SIZES = (1_000, 20_000, 1_000_000)


def sent(rank: int, addresses: list[str]) -> list[tuple[Frames, int]]:
    """Rank 0 sends, rank 1 receives and says so; what left the host of either, frames and the device's bytes."""
    found = []
    for size in SIZES:
        if rank == 0:
            connection = _dialled(addresses[1])
        else:
            with socket.create_server((addresses[1], 5001), reuse_port=True) as server:
                connection, _ = server.accept()
        with connection:
            time.sleep(0.1)  # what opens a connection is through
            before, device = own_frames(), own_link().sent
            if rank == 0:
                connection.sendall(bytes(size))
                connection.recv(1)
            else:
                while size:
                    size -= len(connection.recv(min(size, 1 << 16)))
                connection.sendall(b"k")
            time.sleep(0.1)
            # An acknowledgement that goes meanwhile is in the frames, as one between the two above is.
            sent_by_device = own_link().sent - device
            found.append((own_frames() - before, sent_by_device))
            # Nobody opens the next connection while the other still counts.
            if rank == 0:
                connection.recv(1)
            else:
                connection.sendall(b"n")
    return found


def _dialled(address: str) -> socket.socket:
    for _ in range(200):
        try:
            return socket.create_connection((address, 5001), timeout=20)
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise TimeoutError(address)


def test_payload_is_what_was_sent(cluster: Callable[..., Cluster]) -> None:
    made = cluster(2, 1)
    sender, receiver = made.call(sent, [made.shape.address(host) for host in range(2)], timeout_s=60)
    for size, (frames, device) in zip(SIZES, sender, strict=True):
        assert frames.payload == size
        assert frames.bytes == size + HEADERS * frames.count and frames.count >= -(-size // 1448)
        assert size < device <= frames.bytes
    for frames, _ in receiver:
        assert frames.payload == 1 and frames.count >= 1, "acknowledgements carry nothing"


def test_only_on_a_host_of_a_cluster() -> None:
    with pytest.raises(ClusterError, match="no token bucket on eth0 here"):
        own_frames()
