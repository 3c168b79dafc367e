"""Bytes that really crossed each host's link, as its network device counts them.

The device counts what it is handed: pieces of up to 16 kB, headers once for each piece. Frames on the wire, each with
its headers, are counted in :mod:`benchmarks.cluster.frames`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster.network import DEVICE, call
from benchmarks.cluster.shape import Shape


@dataclass(frozen=True)
class LinkBytes:
    """Bytes of one host.

    Attributes:
        sent: to other hosts.
        received: from other hosts.
        inside: between processes of the host (loopback).
    """

    sent: int
    received: int
    inside: int

    def __sub__(self, before: LinkBytes) -> LinkBytes:
        return LinkBytes(self.sent - before.sent, self.received - before.received, self.inside - before.inside)


def read_bytes(shape: Shape) -> list[LinkBytes]:
    """Counts of every host since it was made."""
    result = []
    for host in range(shape.hosts):
        stats = {
            entry["ifname"]: entry["stats64"]
            for entry in json.loads(call("ip", "-n", shape.namespace(host), "-s", "-j", "link", "show"))
        }
        link, loop = stats[DEVICE], stats["lo"]
        result.append(LinkBytes(link["tx"]["bytes"], link["rx"]["bytes"], loop["tx"]["bytes"]))
    return result


def own_link() -> LinkBytes:
    """Counts of the host that this process is on: for ranks, which read their own link between steps."""
    counts = {}
    for line in Path("/proc/self/net/dev").read_text().splitlines()[2:]:
        name, _, numbers = line.partition(":")
        received, sent = (int(numbers.split()[i]) for i in (0, 8))
        counts[name.strip()] = (sent, received)
    return LinkBytes(*counts[DEVICE], counts["lo"][0])
