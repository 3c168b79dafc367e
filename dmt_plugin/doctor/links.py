"""A short probe of the links between ranks: latency and bandwidth, inside hosts and between them.

1. Latency of a group: one element from every member to every other, many times; the median.
2. Bandwidth of pairs: in round ``d`` every member sends a block to the member ``d`` places further on, all at once,
   as in training all links are busy at once. A group with many members takes rounds spread over all distances. Blocks
   of two sizes tell the bandwidth from what an exchange takes beside its bytes.
3. Each rank tells its figures; a pair far below the median of its kind is named.

Only the group's own collective is used (an all-to-all in which most splits are empty), which every backend has, and
the device is synchronised around the clock: this is a probe, not training.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dmt_plugin.core.sizes import say_rate
from dmt_plugin.doctor.check import Finding
from dmt_plugin.doctor.everyone import Everyone
from dmt_plugin.doctor.spread import Spread, timed
from dmt_plugin.topology.groups import RankGroups

LATENCY_REPEATS = 20
BLOCK_REPEATS = 3
ROUNDS = 8
BLOCK_BYTES = {"cpu": (2**18, 2**22)}
ACCELERATOR_BLOCK_BYTES = (2**22, 2**26)
"""Smallest first; the largest is the one that ``GB_per_s`` is of."""

SLOW = 0.5
"""A pair below this share of the median of its kind is called slow."""


@dataclass(frozen=True)
class Pair:
    """Bytes per second from one rank to another, with a block of so many bytes."""

    source: int
    target: int
    bytes_per_s: float
    block: int


@dataclass(frozen=True)
class Kind:
    """What was measured on links of one kind, over all ranks.

    Attributes:
        latency_s: Median over the ranks of the time of a smallest exchange.
        slowest: The slowest pair, with the largest block.
        rates: By size of the block, smallest first, bytes per second over all pairs.
    """

    latency_s: float
    slowest: Pair
    rates: Mapping[int, Spread]

    @property
    def median(self) -> float:
        """Median bandwidth of the pairs with the largest block, bytes per second."""
        return self.rates[max(self.rates)].median

    def line(self) -> tuple[float, float] | None:
        """Seconds of an exchange beside its bytes, and bytes per second beyond these; None where no line tells them.

        The line goes through the times of the smallest and of the largest block.
        """
        small, large = min(self.rates), max(self.rates)
        least, most = (size / self.rates[size].median for size in (small, large))
        if most <= least:
            return None
        rate = (large - small) / (most - least)
        start = least - small / rate
        return (start, rate) if start >= 0 else None

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        line = self.line()
        return {
            "latency_us": self.latency_s * 1e6,
            "GB_per_s": self.median / 1e9,
            "slowest_GB_per_s": self.slowest.bytes_per_s / 1e9,
            "slowest_pair": [self.slowest.source, self.slowest.target],
            "blocks": [
                {"bytes": size, **{f"{end}GB_per_s": r / 1e9 for end, r in rates.low_first().items()}}
                for size, rates in self.rates.items()
            ],
            "start_us": None if line is None else line[0] * 1e6,
            "line_GB_per_s": None if line is None else line[1] / 1e9,
        }


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
    blocks = BLOCK_BYTES.get(device.type, ACCELERATOR_BLOCK_BYTES)
    small_out, small_in = torch.zeros(n, device=device), torch.zeros(n, device=device)
    latencies = [
        timed(lambda: dist.all_to_all_single(small_in, small_out, group=group), synchronize)
        for _ in range(LATENCY_REPEATS + 2)
    ][2:]
    pairs = []
    for block in blocks:
        out = torch.zeros(block, dtype=torch.uint8, device=device)
        into = torch.zeros_like(out)
        for distance in spread(n, ROUNDS):
            target, source = (me + distance) % n, (me - distance) % n
            sends = [block * (i == target) for i in range(n)]
            receives = [block * (i == source) for i in range(n)]

            def round_trip(
                into: Tensor = into, out: Tensor = out, receives: list[int] = receives, sends: list[int] = sends
            ) -> None:
                dist.all_to_all_single(into, out, receives, sends, group=group)

            seconds = [timed(round_trip, synchronize) for _ in range(BLOCK_REPEATS + 1)][1:]
            pairs.append(Pair(rank, ranks[target], block / statistics.median(seconds), block))
    return statistics.median(latencies), pairs


def spread(members: int, rounds: int) -> list[int]:
    """Distances in a group that are tried: all of them, or ``rounds`` spread evenly with the nearest among them."""
    distances = range(1, members)
    if len(distances) <= rounds:
        return list(distances)
    return sorted({1 + round(i * (len(distances) - 1) / (rounds - 1)) for i in range(rounds)})


def summed_up(by_rank: Sequence[tuple[float, list[Pair]] | None]) -> Kind | None:
    """All ranks' figures of one kind of link; None where no rank has any."""
    told = [one for one in by_rank if one is not None]
    pairs = [pair for _, own in told for pair in own]
    if not pairs:
        return None
    sizes = sorted({pair.block for pair in pairs})
    slowest = min((pair for pair in pairs if pair.block == sizes[-1]), key=lambda pair: pair.bytes_per_s)
    latency = statistics.median(latency for latency, _ in told)
    rates = {size: Spread.of([pair.bytes_per_s for pair in pairs if pair.block == size]) for size in sizes}
    return Kind(latency, slowest, rates)


def judged(kinds: Mapping[str, Kind | None], everyone: Everyone | None = None) -> Finding:
    """What the figures mean.

    Args:
        kinds: Figures of ``"inside hosts"`` and ``"between hosts"``.
        everyone: Figures of all ranks at once, for ``"all ranks"``.
    """
    words, slow, data = [], [], {}
    for where, kind in kinds.items():
        if kind is None:
            words.append(f"{where}: no such link")
            continue
        pair, line = kind.slowest, kind.line()
        data[where] = kind.as_dict()
        beside = "" if line is None else f", {line[0] * 1e6:,.0f} us beside the bytes of a block"
        words.append(
            f"{where}: {kind.latency_s * 1e6:,.0f} us, {say_rate(kind.median)} per rank with all links busy "
            f"(slowest {pair.source} -> {pair.target}: {say_rate(pair.bytes_per_s)}){beside}"
        )
        if pair.bytes_per_s < SLOW * kind.median:
            slow.append(f"the link from rank {pair.source} to rank {pair.target} {where}")
    if everyone is not None:
        words.append(everyone.words())
        data["all ranks"] = everyone.as_dict()
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
