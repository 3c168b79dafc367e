"""A short probe of exchanges between all ranks at once: an all-to-all, and an all-reduce, each of two sizes.

The flat route sends rows from every rank to every other, and gradients are summed over all ranks: what these reach is
less than what pairs of ranks do, and less with every host. Small and large buffers tell what an exchange costs beside
its bytes from what the bytes cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from dmt_plugin.core.sizes import say_bytes, say_rate
from dmt_plugin.doctor.spread import Spread, timed
from dmt_plugin.topology.groups import RankGroups
from dmt_plugin.topology.shape import Topology

REPEATS = 4
BUFFER_BYTES = {"cpu": (2**18, 2**22)}
ACCELERATOR_BUFFER_BYTES = (2**24, 2**28)
"""Of a rank, smallest first."""

EXCHANGE, SUM = "all_to_all", "all_reduce"

Samples = Mapping[str, Sequence[tuple[int, Sequence[float]]]]
"""By collective for each size the bytes of a rank's buffer, and the seconds of each time."""


@dataclass(frozen=True)
class Collective:
    """One collective over all ranks.

    Attributes:
        size: bytes of a rank's buffer.
        seconds: that it takes, over all ranks and times.
        moved: bytes of a rank that its rate counts: of an all-to-all those to other hosts; of an all-reduce those that
            a rank sends around a ring. 0 where there are none.
    """

    size: int
    seconds: Spread
    moved: float

    def as_dict(self) -> dict[str, Any]:
        """As plain data: milliseconds, and GB/s of ``moved``."""
        rates = {f"{end}GB_per_s": self.moved / s / 1e9 for end, s in self.seconds.slow_first().items()}
        times = {f"{end}ms": 1e3 * s for end, s in self.seconds.low_first().items()}
        return {"bytes": self.size, **times, **(rates if self.moved else {})}


@dataclass(frozen=True)
class Everyone:
    """What was measured between all ranks.

    Attributes:
        ranks: how many.
        exchange: the all-to-all, by size.
        sums: the all-reduce, by size.
    """

    ranks: int
    exchange: tuple[Collective, ...]
    sums: tuple[Collective, ...]

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "ranks": self.ranks,
            EXCHANGE: [one.as_dict() for one in self.exchange],
            SUM: [one.as_dict() for one in self.sums],
        }

    def words(self) -> str:
        """For people: the larger size of each."""
        large, summed = self.exchange[-1], self.sums[-1]
        rate = f", {say_rate(large.moved / large.seconds.median)} per rank to other hosts" if large.moved else ""
        return (
            f"all {self.ranks} ranks: all-to-all of {say_bytes(large.size)} {large.seconds.in_ms()}{rate}; "
            f"all-reduce of {say_bytes(summed.size)} {summed.seconds.in_ms()}"
        )


def measure_everyone(groups: RankGroups, synchronize: Callable[[], Any]) -> Samples | None:
    """This rank's times; None for a rank on its own. Every rank calls it.

    Args:
        groups: This rank's groups.
        synchronize: Waits until the device has done its work.
    """
    n = groups.topology.world_size
    if n == 1:
        return None
    found: dict[str, list[tuple[int, list[float]]]] = {EXCHANGE: [], SUM: []}
    for asked in BUFFER_BYTES.get(groups.device.type, ACCELERATOR_BUFFER_BYTES):
        entries = n * max(1, asked // (4 * n))
        out = torch.zeros(entries, device=groups.device)
        into = torch.zeros_like(out)

        def exchange(into: torch.Tensor = into, out: torch.Tensor = out) -> None:
            dist.all_to_all_single(into, out, group=groups.world)

        def sums(out: torch.Tensor = out) -> None:
            dist.all_reduce(out, group=groups.world)

        for name, action in ((EXCHANGE, exchange), (SUM, sums)):
            seconds = [timed(action, synchronize) for _ in range(REPEATS + 1)][1:]
            found[name].append((out.nbytes, seconds))
    return found


def everyone_of(by_rank: Sequence[Samples | None], topology: Topology) -> Everyone | None:
    """All ranks' times of the same collectives; None where there is one rank.

    Args:
        by_rank: what each rank measured.
        topology: hosts and lanes.
    """
    told = [samples for samples in by_rank if samples is not None]
    if not told:
        return None
    n = topology.world_size
    parts = {EXCHANGE: (n - topology.ranks_per_host) / n, SUM: 2 * (n - 1) / n}

    def of(name: str) -> tuple[Collective, ...]:
        sizes = [size for size, _ in told[0][name]]
        return tuple(
            Collective(size, Spread.of([s for one in told for s in one[name][i][1]]), parts[name] * size)
            for i, size in enumerate(sizes)
        )

    return Everyone(n, of(EXCHANGE), of(SUM))
