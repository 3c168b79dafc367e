"""Frames that a host's token bucket let through, as the bucket counts them: what a NIC would have put on its wire.

A network device here hands over up to 16 kB in one piece, with one set of headers, and counts it as one packet
(:mod:`benchmarks.cluster.counters`). The bucket, which is what limits the rate, counts the frames of 1500 bytes that
such a piece stands for, each with its headers. So:

1. ask the kernel, over a netlink socket, for the queues of the namespace that this process is in; no privileges needed;
2. bytes and frames of the bucket are in the basic statistics of the queue called ``tbf``;
3. every frame of TCP begins with ``HEADERS`` bytes, so what it carried is known without a model. (What opens and closes
   a connection has a few bytes more, and address resolution a few less: none of it recurs in training.)
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.cluster.errors import ClusterError
from benchmarks.cluster.network import DEVICE

HEADERS = 14 + 20 + 32
"""Bytes of Ethernet, IPv4, and TCP with its time stamps, in front of every frame's payload."""

_GET_QUEUES, _DONE, _ERROR = 38, 3, 2
_REQUEST_DUMP = 0x301
_KIND, _STATISTICS, _BASIC = 1, 7, 1
_HEADER, _QUEUE = struct.Struct("=IHHII"), struct.Struct("=BBHiIII")


@dataclass(frozen=True)
class Frames:
    """What left a host.

    Attributes:
        bytes: of all frames, headers included.
        count: frames; one without payload is an acknowledgement.
    """

    bytes: int
    count: int

    def __sub__(self, before: Frames) -> Frames:
        return Frames(self.bytes - before.bytes, self.count - before.count)

    @property
    def payload(self) -> int:
        """Bytes behind the headers."""
        return self.bytes - HEADERS * self.count


def own_frames() -> Frames:
    """What left the host that this process is on, since its link was shaped.

    Raises:
        ClusterError: this process is on no host of a cluster.
    """
    index = {name: number for number, name in socket.if_nameindex()}.get(DEVICE)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as link:
        ask = _QUEUE.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0)
        link.sendall(_HEADER.pack(_HEADER.size + len(ask), _GET_QUEUES, _REQUEST_DUMP, 1, 0) + ask)
        for body in _answers(link):
            owner = _QUEUE.unpack_from(body)[3]
            parts = dict(_attributes(body[_QUEUE.size :]))
            if owner == index and parts.get(_KIND, b"").rstrip(b"\0") == b"tbf":
                size, count = struct.unpack_from("=QI", dict(_attributes(parts[_STATISTICS]))[_BASIC])
                return Frames(size, count)
    raise ClusterError(f"no token bucket on {DEVICE} here: this process is on no host of an emulated cluster")


def _answers(link: socket.socket) -> Iterator[bytes]:
    """Bodies of the messages of a dump."""
    while True:
        data = link.recv(1 << 16)
        while data:
            length, kind, *_ = _HEADER.unpack_from(data)
            if kind == _DONE:
                return
            if kind == _ERROR:
                raise ClusterError("the kernel does not tell the queues of this namespace")
            yield data[_HEADER.size : length]
            data = data[(length + 3) & ~3 :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and content of each attribute; they are aligned to four bytes."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]
