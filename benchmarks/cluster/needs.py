"""What an emulated cluster needs of the machine, and what to do about what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess

from benchmarks.cluster.errors import ClusterUnavailable

_PROBE = "dmt-probe"


def missing(latency: bool = False) -> list[str]:
    """What keeps this process from having a cluster; empty where nothing does.

    Args:
        latency: whether links are to be delayed.
    """
    absent = [name for name in ("ip", "tc", "unshare") if shutil.which(name) is None]
    found = [f"the command {name} is missing (apt-get install iproute2 util-linux)" for name in absent]
    if os.geteuid() != 0:
        found.append("network namespaces need root (run it as root, or with sudo)")
    return found or _kernel_refusals(latency)


def require(latency: bool = False) -> None:
    """Refuse where a cluster cannot be had.

    Raises:
        ClusterUnavailable: with everything that is missing.
    """
    found = missing(latency)
    if found:
        raise ClusterUnavailable("an emulated cluster cannot be had here: " + "; ".join(found))


def _kernel_refusals(latency: bool) -> list[str]:
    """Tries a namespace with a shaped link, and takes it away again."""
    name = f"{_PROBE}-{os.getpid()}"
    steps = [
        (["ip", "netns", "add", name], "the kernel or container refuses network namespaces"),
        (["ip", "-n", name, "link", "add", "veth0", "type", "veth", "peer", "name", "veth1"], "no veth links"),
        (["tc", "-n", name, "qdisc", "add", "dev", "veth0", "root", "tbf", *_TBF], "no token bucket (sch_tbf)"),
    ]
    if latency:
        steps.append(
            (
                ["tc", "-n", name, "qdisc", "add", "dev", "veth1", "root", "netem", "delay", "1ms"],
                "this kernel cannot delay packets (no sch_netem): leave the latency at 0",
            )
        )
    try:
        for command, meaning in steps:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                return [f"{meaning} ({' '.join(command)}: {done.stderr.strip()})"]
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return []


_TBF = ["rate", "100mbit", "burst", "20k", "limit", "1m"]
