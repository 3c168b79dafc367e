"""Hosts x lanes: pure rank arithmetic, rank = host * ranks_per_host + lane. Needs no torch.

A host is what a tower lies on. Mostly it is one machine; it may be several neighbouring ones, so that a tower lies over
all of them. Ownership of tables and towers goes by host and lane; what crosses the network goes by machine
(:attr:`Topology.by_machine`).
"""

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
        machines_per_host: Machines that a host consists of, each with as many neighbouring ranks.

    Raises:
        TopologyError: If a number is below 1, or the ranks of a host cannot be divided over its machines; and by the
            methods for a rank, host or lane out of range.
    """

    hosts: int
    ranks_per_host: int
    machines_per_host: int = 1

    def __post_init__(self) -> None:
        if self.hosts < 1 or self.ranks_per_host < 1:
            found = f"{self.hosts}x{self.ranks_per_host}"
            raise TopologyError(f"a topology needs at least 1 host and 1 rank per host, found {found}")
        if self.machines_per_host < 1 or self.ranks_per_host % self.machines_per_host:
            raise TopologyError(
                f"the {self.ranks_per_host} rank(s) of a host cannot be divided evenly over {self.machines_per_host} "
                f"machine(s): dmt.topology.machines_per_host can be {one_of_numbers(divisors(self.ranks_per_host))}, "
                "or dmt.topology.ranks_per_host a multiple of it"
            )

    def __setstate__(self, state: dict[str, int]) -> None:
        """What an earlier version pickled knows no machines."""
        self.__dict__.update({"machines_per_host": 1, **state})

    def __str__(self) -> str:
        if self.machines_per_host == 1:
            return f"{self.hosts}x{self.ranks_per_host}"
        return f"{self.hosts}x{self.machines_per_host}x{self.ranks_per_host // self.machines_per_host}"

    @classmethod
    def parse(cls, text: str) -> Topology:
        """Read "2x4" as 2 hosts with 4 ranks each, and "2x2x4" as 2 hosts of 2 machines with 4 ranks each.

        Raises:
            TopologyError: If ``text`` is anything else.
        """
        number = r"\s*([0-9]{1,9})\s*"
        match = re.fullmatch(f"{number}x{number}(?:x{number})?", text)
        if match is None:
            raise TopologyError(
                'a topology is written "HOSTSxRANKS_PER_HOST" such as "2x4", or, for hosts of several machines, '
                f'"HOSTSxMACHINES_PER_HOSTxRANKS_PER_MACHINE" such as "2x2x4", found "{text}"'
            )
        if match[3] is None:
            return cls(int(match[1]), int(match[2]))
        return cls(int(match[1]), int(match[2]) * int(match[3]), int(match[2]))

    @property
    def in_words(self) -> str:
        """Hosts, their machines and ranks, for a person."""
        if self.machines_per_host == 1:
            return f"{self.hosts} host(s) x {self.ranks_per_host} rank(s)"
        ranks = self.ranks_per_host // self.machines_per_host
        return f"{self.hosts} host(s) of {self.machines_per_host} machines x {ranks} rank(s)"

    @property
    def world_size(self) -> int:
        """Number of ranks G = H * L."""
        return self.hosts * self.ranks_per_host

    @property
    def by_machine(self) -> Topology:
        """The same ranks, with every machine as a host of its own."""
        if self.machines_per_host == 1:
            return self
        return Topology(self.hosts * self.machines_per_host, self.ranks_per_host // self.machines_per_host)

    def across_of(self, rank: int) -> tuple[int, ...]:
        """Ranks at the position of ``rank`` on the machines of its host, by machine."""
        step = self.ranks_per_host // self.machines_per_host
        first = self.host_of(rank) * self.ranks_per_host + rank % step
        return tuple(range(first, first + self.ranks_per_host, step))

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


def divisors(number: int) -> list[int]:
    """By what a number can be divided without a rest, the smallest first."""
    return [candidate for candidate in range(1, number + 1) if number % candidate == 0]


def one_of_numbers(numbers: list[int]) -> str:
    """Numbers to choose from, in words."""
    return " or ".join([", ".join(map(str, numbers[:-1])), str(numbers[-1])] if len(numbers) > 1 else map(str, numbers))


@dataclass(frozen=True)
class ResolvedTopology:
    """A topology and, in words for a person, what said so."""

    topology: Topology
    source: str
