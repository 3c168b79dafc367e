"""Hosts x lanes: pure rank arithmetic, rank = host * ranks_per_host + lane. Needs no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dmt_plugin.core.errors import TopologyError


@dataclass(frozen=True)
class Topology:
    """``hosts`` x ``ranks_per_host`` ranks, host-contiguous.

    Attributes:
        hosts: Number of hosts H, at least 1.
        ranks_per_host: Ranks (lanes) on each host L, at least 1.

    Raises:
        TopologyError: If either number is below 1, and by the methods for a rank, host or lane out of range.
    """

    hosts: int
    ranks_per_host: int

    def __post_init__(self) -> None:
        if self.hosts < 1 or self.ranks_per_host < 1:
            raise TopologyError(f"a topology needs at least 1 host and 1 rank per host, found {self}")

    def __str__(self) -> str:
        return f"{self.hosts}x{self.ranks_per_host}"

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Read "2x4" as 2 hosts with 4 ranks each.

        Raises:
            TopologyError: If ``text`` is anything else.
        """
        match = re.fullmatch(r"\s*([0-9]{1,9})\s*x\s*([0-9]{1,9})\s*", text)
        if match is None:
            raise TopologyError(f'a topology is written "HOSTSxRANKS_PER_HOST" such as "2x4", found "{text}"')
        return cls(int(match[1]), int(match[2]))

    @property
    def world_size(self) -> int:
        """Number of ranks G = H * L."""
        return self.hosts * self.ranks_per_host

    def rank_of(self, host: int, lane: int) -> int:
        """Rank of lane ``lane`` on host ``host``."""
        self._check("host", host, self.hosts)
        self._check("lane", lane, self.ranks_per_host)
        return host * self.ranks_per_host + lane

    def host_of(self, rank: int) -> int:
        """Host that ``rank`` runs on."""
        self._check("rank", rank, self.world_size)
        return rank // self.ranks_per_host

    def lane_of(self, rank: int) -> int:
        """Position of ``rank`` on its host."""
        self._check("rank", rank, self.world_size)
        return rank % self.ranks_per_host

    def peers_of(self, rank: int) -> tuple[int, ...]:
        """Ranks with the lane of ``rank`` on every host, by host."""
        return tuple(range(self.lane_of(rank), self.world_size, self.ranks_per_host))

    def lanes_of(self, rank: int) -> tuple[int, ...]:
        """Ranks on the host of ``rank``, by lane."""
        first = self.host_of(rank) * self.ranks_per_host
        return tuple(range(first, first + self.ranks_per_host))

    def _check(self, what: str, value: int, limit: int) -> None:
        if not 0 <= value < limit:
            raise TopologyError(f"{what} {value} is outside 0..{limit - 1} of topology {self}")


@dataclass(frozen=True)
class ResolvedTopology:
    """A topology and, in words for a person, what said so."""

    topology: Topology
    source: str
