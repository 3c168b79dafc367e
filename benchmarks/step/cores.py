"""Which cores the ranks of a host run on: a host of a cluster has cores of its own.

Where there are fewer cores than hosts, several hosts share one; a host never runs on two cores in part. Without this
the kernel moves ranks about, which costs all variants time and makes figures swing.
"""

from __future__ import annotations

import os


def cores_of(host: int, hosts: int, cores: list[int]) -> list[int]:
    """Cores of one host: an equal share of all, or one that it shares with others."""
    share = len(cores) // hosts
    return cores[host * share : (host + 1) * share] if share else [cores[host % len(cores)]]


def stay_on_own_cores(host: int, hosts: int) -> None:
    """Keep this process, and threads that it starts from now on, on the host's cores, where the system can do that."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores_of(host, hosts, sorted(os.sched_getaffinity(0))))
