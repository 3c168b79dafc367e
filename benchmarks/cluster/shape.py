"""What a cluster looks like: sizes, link rate, names and addresses. Nothing here touches the system."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

_UNITS = {"bit": 1, "kbit": 10**3, "mbit": 10**6, "gbit": 10**9}

PREFIX = "dmt-"
"""First letters of every namespace made here."""


def parse_rate(text: str) -> int:
    """``"100mbit"`` -> 100_000_000 bits per second; units as ``tc`` has them.

    Raises:
        ValueError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(bit|kbit|mbit|gbit)", text.strip().lower())
    if not found:
        raise ValueError(f"rate {text!r} found, expected a number with kbit, mbit or gbit, such as '100mbit'")
    rate = round(float(found[1]) * _UNITS[found[2]])
    if rate < 10**6:
        raise ValueError(f"rate {text!r} found, expected at least 1mbit: one packet would take longer than 10 ms")
    return rate


@dataclass(frozen=True)
class Shape:
    """One emulated cluster.

    Attributes:
        name: tells clusters of one machine apart; letters, digits and hyphens.
        hosts: hosts ``H``.
        lanes: ranks on each host ``L``; rank = host * lanes + lane.
        rate_bit: bits per second that a host's link carries, each way.
        latency_ms: added to every packet, one way.
    """

    name: str
    hosts: int
    lanes: int
    rate_bit: int
    latency_ms: float = 0.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", self.name):
            raise ValueError(f"cluster name {self.name!r} found, expected small letters, digits and hyphens")
        if not 1 <= self.hosts <= 64 or not 1 <= self.lanes <= 64:
            raise ValueError(f"{self.hosts} hosts x {self.lanes} ranks found, expected 1 to 64 of each")
        if self.latency_ms < 0:
            raise ValueError(f"latency {self.latency_ms} ms found, expected 0 or more")

    @property
    def world_size(self) -> int:
        """Ranks of all hosts."""
        return self.hosts * self.lanes

    @property
    def switch(self) -> str:
        """Namespace of the switch between the hosts."""
        return f"{PREFIX}{self.name}-sw"

    def namespace(self, host: int) -> str:
        """Namespace of a host."""
        return f"{PREFIX}{self.name}-h{host}"

    def address(self, host: int) -> str:
        """Address of a host; every cluster has the same ones, each in a network of its own."""
        return f"10.77.0.{host + 1}"

    def hostname(self, host: int) -> str:
        """What the processes of a host find as its name."""
        return f"h{host}"

    @property
    def small_bucket(self) -> bool:
        """Whether the token bucket can be kept at a few packets.

        A large bucket hands every burst after a pause its size for free: with the usual 128 kB small transfers look
        up to a fifth faster than they are. Above 500 mbit the small one would not fill the link.
        """
        return self.rate_bit <= 500 * 10**6

    @property
    def burst(self) -> int:
        """Bytes of the token bucket: at least one super-packet, or the kernel splits each one at great cost."""
        return 20_000 if self.small_bucket else 131_072

    @property
    def super_packet(self) -> int:
        """Largest packet the sender hands to its link in one piece, bytes."""
        return 16_384 if self.small_bucket else 65_536

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)
