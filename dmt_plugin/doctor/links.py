"""A short probe of the links between ranks: latency and bandwidth, inside hosts and between them.

1. Latency of a group: one element from every member to every other, many times; the median.
2. Bandwidth of pairs: in round ``d`` every member sends a block to the member ``d`` places further on, all at once,
   as in training all links are busy at once. A group with many members takes rounds spread over all distances.
3. Each rank tells its figures; a pair far below the median of its kind is named.

Only the group's own collective is used (an all-to-all in which most splits are empty), which every backend has, and
the device is synchronised around the clock: this is a probe, not training.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from dmt_plugin.core.sizes import say_rate
from dmt_plugin.doctor.check import Finding
from dmt_plugin.topology.groups import RankGroups

LATENCY_REPEATS = 20
BLOCK_REPEATS = 3
ROUNDS = 8
BLOCK_BYTES = {"cpu": 4 * 2**20}
ACCELERATOR_BLOCK_BYTES = 64 * 2**20
SLOW = 0.5
"""A pair below this share of the median of its kind is called slow."""


@dataclass(frozen=True)
class Pair:
    """Bytes per second from one rank to another."""

    source: int
    target: int
    bytes_per_s: float


@dataclass(frozen=True)
class Kind:
    """What was measured on links of one kind, over all ranks.

    Attributes:
        latency_s: Median over the ranks of the time of a smallest exchange.
        median: Median bandwidth of the pairs, bytes per second.
        slowest: The slowest pair.
    """

    latency_s: float
    median: float
    slowest: Pair


def measure(groups: RankGroups, name: str, synchronize: Callable[[], Any]) -> tuple[float, list[Pair]] | None:
    """This rank's figures in its group ``"lanes"`` or ``"peers"``; None for a group of one.

    Every member of the group calls it.

    Args:
        groups: This rank's groups.
        name: Which of them.
        synchronize: Waits until the device has done its work.
    """
    topology, rank = groups.topology, groups.rank
    ranks = topology.lanes_of(rank) if name == "lanes" else topology.peers_of(rank)
    group = groups.lanes if name == "lanes" else groups.peers
    n, me = len(ranks), ranks.index(rank)
    if n == 1:
        return None
    device = groups.device
    block = BLOCK_BYTES.get(device.type, ACCELERATOR_BLOCK_BYTES)
    small_out, small_in = torch.zeros(n, device=device), torch.zeros(n, device=device)
    latencies = [
        timed(lambda: dist.all_to_all_single(small_in, small_out, group=group), synchronize)
        for _ in range(LATENCY_REPEATS + 2)
    ][2:]
    out = torch.zeros(block, dtype=torch.uint8, device=device)
    into = torch.zeros_like(out)
    pairs = []
    for distance in spread(n, ROUNDS):
        target, source = (me + distance) % n, (me - distance) % n
        sends = [block * (i == target) for i in range(n)]
        receives = [block * (i == source) for i in range(n)]

        def round_trip(receives: list[int] = receives, sends: list[int] = sends) -> None:
            dist.all_to_all_single(into, out, receives, sends, group=group)

        seconds = [timed(round_trip, synchronize) for _ in range(BLOCK_REPEATS + 1)][1:]
        pairs.append(Pair(rank, ranks[target], block / statistics.median(seconds)))
    return statistics.median(latencies), pairs


def spread(members: int, rounds: int) -> list[int]:
    """Distances in a group that are tried: all of them, or ``rounds`` spread evenly with the nearest among them."""
    distances = range(1, members)
    if len(distances) <= rounds:
        return list(distances)
    return sorted({1 + round(i * (len(distances) - 1) / (rounds - 1)) for i in range(rounds)})


def timed(action: Callable[[], Any], synchronize: Callable[[], Any]) -> float:
    """Seconds of an action, with what it started on the device."""
    synchronize()
    started = time.perf_counter()
    action()
    synchronize()
    return time.perf_counter() - started


def summed_up(by_rank: Sequence[tuple[float, list[Pair]] | None]) -> Kind | None:
    """All ranks' figures of one kind of link; None where no rank has any."""
    told = [one for one in by_rank if one is not None]
    pairs = [pair for _, own in told for pair in own]
    if not pairs:
        return None
    slowest = min(pairs, key=lambda pair: pair.bytes_per_s)
    latency = statistics.median(latency for latency, _ in told)
    return Kind(latency, statistics.median(pair.bytes_per_s for pair in pairs), slowest)


def judged(kinds: Mapping[str, Kind | None]) -> Finding:
    """What the figures mean.

    Args:
        kinds: Figures of ``"inside hosts"`` and ``"between hosts"``.
    """
    words, slow, data = [], [], {}
    for where, kind in kinds.items():
        if kind is None:
            words.append(f"{where}: no such link")
            continue
        pair = kind.slowest
        data[where] = {
            "latency_us": kind.latency_s * 1e6,
            "GB_per_s": kind.median / 1e9,
            "slowest_GB_per_s": pair.bytes_per_s / 1e9,
            "slowest_pair": [pair.source, pair.target],
        }
        words.append(
            f"{where}: {kind.latency_s * 1e6:,.0f} us, {say_rate(kind.median)} per rank with all links busy "
            f"(slowest {pair.source} -> {pair.target}: {say_rate(pair.bytes_per_s)})"
        )
        if pair.bytes_per_s < SLOW * kind.median:
            slow.append(f"the link from rank {pair.source} to rank {pair.target} {where}")
    found = "; ".join(words)
    inside, between = kinds.get("inside hosts"), kinds.get("between hosts")
    if slow:
        return Finding(
            found,
            "warn",
            f"every pair at {SLOW:.0%} of the median at least",
            f"look at {' and '.join(slow)}: cable, port, or another job; a step is as fast as its slowest link",
            data,
        )
    if inside is not None and between is not None and between.median > inside.median:
        return Finding(
            found,
            "warn",
            "links inside a host that are faster than those between hosts",
            'check that "hosts" are machines (the topology check names its source); if they are, towers gain little '
            'here: compare with "route": "flat"',
            data,
        )
    return Finding(found, data=data)
