"""What is known of a cluster: rates and sizes, each with who says so and how far it may be off.

A number that nobody has measured on the cluster is an upper bound. ``low`` and ``high`` say between what it may be;
they are the number itself where a person, or a probe on the cluster, says it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.planner.time.devices import Curve

UNVERIFIED = "unverified"
"""How the source of a number begins that nobody has read where it is from, or seen reached."""


@dataclass(frozen=True)
class Figure:
    """A number.

    Attributes:
        value: bytes/s, FLOP/s, bytes or seconds.
        source: who says so.
        low: the smallest that it may be; by default ``value``.
        high: the largest.
        measured: of a link: whether an exchange reaches it, so that no share is taken off.
    """

    value: float
    source: str
    low: float = field(default=-1.0)
    high: float = field(default=-1.0)
    measured: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "low", self.value if self.low < 0 else self.low)
        object.__setattr__(self, "high", self.value if self.high < 0 else self.high)

    def at(self, end: str) -> Figure:
        """The same with its ``"low"`` or ``"high"`` end as value."""
        return replace(self, value=getattr(self, end), low=-1.0, high=-1.0)

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return dict(vars(self))


@dataclass(frozen=True)
class Processors:
    """Cores that ranks compute on, in place of an accelerator for each.

    Attributes:
        cores: of a host, or of all hosts together.
        together: whether all hosts share them: a cluster that is emulated on one machine.
        moved: bytes/s that a core reads, writes, sends or receives.
        exchange: seconds of a core that an exchange takes beside its bytes.
        row: seconds of a core for each id, and each distinct row, of rows that travel once.
    """

    cores: int
    together: bool
    moved: Figure
    exchange: Figure
    row: Figure


@dataclass(frozen=True)
class AllRanks:
    """What a collective over all ranks of a probe reaches.

    Attributes:
        ranks: of the probe.
        rate: bytes/s of a rank.
    """

    ranks: int
    rate: Figure

    def times(self, factor: float, source: str) -> AllRanks:
        """The same with links that are so much faster, as ``source`` says."""
        low, middle, high = (factor * rate for rate in (self.rate.low, self.rate.value, self.rate.high))
        return replace(self, rate=replace(self.rate, value=middle, low=low, high=high, source=source))

    def at(self, end: str) -> AllRanks:
        """The same at the ``"low"`` or ``"high"`` end of its rate."""
        return replace(self, rate=self.rate.at(end))


@dataclass(frozen=True)
class Cluster:
    """Machines of equal accelerators, or of processor cores.

    Attributes:
        name: for people.
        hosts: machines: domains of fast links.
        ranks_per_host: accelerators of each.
        nic: bytes/s of a rank to other hosts, one way.
        shared_nic: whether the ranks of a host share one link, so that ``nic`` is each one's part.
        lanes: bytes/s of a rank to its host's others, one way.
        memory_rate: bytes/s of an accelerator's memory.
        flops: FLOP/s of matrix products by type: ``"fp32"``, ``"tf32"``, ``"bf16"``.
        memory: bytes of an accelerator's memory.
        fixed: seconds of a step that are neither FLOPs nor bytes; of the program, not of the cluster.
        alltoall: by ranks the share of ``nic`` that an exchange between all of them reaches; None for Fig. 5's.
        everyone: what a probe saw of an exchange between all of some ranks: bytes/s of a rank to other hosts; None: by
            ``alltoall``.
        sums: the same of sums over all of them: bytes/s that a rank sends around a ring; None for Fig. 5's.
        nic_share: share of ``nic`` that every exchange reaches, once it was measured; None: by ranks and size.
        intensity: FLOPs per byte of memory traffic of the dense part, once it was measured; None: as fitted on the
            paper.
        processors: cores, where ranks compute on these; ``flops`` are then a core's, and ``lanes`` and
            ``memory_rate`` are not used.
    """

    name: str
    hosts: int
    ranks_per_host: int
    nic: Figure
    lanes: Figure
    memory_rate: Figure
    flops: Mapping[str, Figure]
    memory: Figure
    fixed: Figure
    shared_nic: bool = False
    alltoall: Curve | None = None
    everyone: AllRanks | None = None
    sums: AllRanks | None = None
    nic_share: Figure | None = None
    intensity: Figure | None = None
    processors: Processors | None = None

    @property
    def ranks(self) -> int:
        """Accelerators."""
        return self.hosts * self.ranks_per_host

    def of_hosts(self, hosts: int) -> Cluster:
        """The same with so many hosts."""
        return replace(self, hosts=hosts)

    def figures(self) -> dict[str, Figure]:
        """Every number by name."""
        flops = {f"flops.{kind}": figure for kind, figure in self.flops.items()}
        measured = {"nic_share": self.nic_share, "intensity": self.intensity}
        known = {name: figure for name, figure in measured.items() if figure is not None}
        if self.processors is not None:
            own = self.processors
            of_cores = {"moved": own.moved, "exchange": own.exchange, "row": own.row}
            return {"nic": self.nic, "memory": self.memory, **flops, **of_cores, **known, "fixed": self.fixed}
        of_probe = {"everyone": self.everyone, "sums": self.sums}
        known |= {name: own.rate for name, own in of_probe.items() if own is not None}
        every = {"nic": self.nic, "lanes": self.lanes, "memory_rate": self.memory_rate, "memory": self.memory}
        return {**every, **flops, **known, "fixed": self.fixed}

    def as_dict(self) -> dict[str, Any]:
        """As plain data, in bytes, seconds and FLOPs."""
        curve = self.alltoall
        return {
            "name": self.name,
            "hosts": self.hosts,
            "ranks_per_host": self.ranks_per_host,
            "shared_nic": self.shared_nic,
            "cores": None if self.processors is None else self.processors.cores,
            "cores_of_all_hosts": self.processors is not None and self.processors.together,
            "figures": {name: figure.as_dict() for name, figure in self.figures().items()},
            "alltoall": None if curve is None else {"points": [list(p) for p in curve.points], "source": curve.source},
        }


_NAME = re.compile(r"([^:]+):(\d+)")


def name_and_hosts(text: str) -> tuple[str, int | None]:
    """``"h100-dgx:8"`` as a name and a number of hosts; None where there is none.

    Raises:
        ConfigError: something else than a number behind the colon, or no host.
    """
    if ":" not in text:
        return text, None
    found = _NAME.fullmatch(text)
    if found is None or int(found[2]) < 1:
        raise ConfigError(f'--cluster {text}: expected a preset and a number of hosts, such as "h100-dgx:8".')
    return found[1], int(found[2])
