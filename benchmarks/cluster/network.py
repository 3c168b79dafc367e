"""Hosts, links and their shaping, by ``ip`` and ``tc``.

1. One namespace per host and one for the switch, which holds a bridge: the machine's own network is not touched.
2. A veth pair joins each host to the bridge.
3. Both ends of each pair get a token bucket, so that what a host sends and what it receives are limited apart.
4. Inside a namespace: a lossless fabric's behaviour as far as TCP has it. Congestion control reno (bbr, a common
   default, shares a link unfairly between senders), a send buffer smaller than the bucket's queue, so that nothing is
   ever dropped, and no memory of old connections.

Ranks of one host talk by the loopback of their namespace, which has no limit.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from benchmarks.cluster.errors import ClusterError
from benchmarks.cluster.shape import PREFIX, Shape

DEVICE = "eth0"
"""A host's link, seen from the host."""

NETNS_ETC = Path("/etc/netns")
"""Where ``ip netns exec`` looks for files that replace those of /etc in a namespace."""

_QUEUE = "64m"
_SETTINGS = {
    "net.ipv4.tcp_congestion_control": "reno",
    "net.ipv4.tcp_wmem": "4096 65536 262144",
    "net.ipv4.tcp_slow_start_after_idle": "0",
    "net.ipv4.tcp_no_metrics_save": "1",
    "net.ipv6.conf.all.disable_ipv6": "1",
}


def call(*command: str) -> str:
    """Run a command and return what it printed.

    Raises:
        ClusterError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def port(host: int) -> str:
    """A host's link, seen from the switch."""
    return f"p{host}"


def build(shape: Shape) -> None:
    """Make all namespaces and links of a cluster, shaped."""
    switch = shape.switch
    call("ip", "netns", "add", switch)
    call("ip", "-n", switch, "link", "add", "br0", "type", "bridge", "stp_state", "0", "mcast_snooping", "0")
    _settle(switch, {"net.ipv6.conf.all.disable_ipv6": "1"})
    call("ip", "-n", switch, "link", "set", "br0", "up")
    for host in range(shape.hosts):
        name, far = shape.namespace(host), port(host)
        call("ip", "netns", "add", name)
        call("ip", "link", "add", DEVICE, "netns", name, "type", "veth", "peer", "name", far, "netns", switch)
        _settle(name, _SETTINGS)
        call("ip", "-n", name, "addr", "add", f"{shape.address(host)}/24", "dev", DEVICE)
        call("ip", "-n", name, "link", "set", "lo", "up")
        call("ip", "-n", name, "link", "set", DEVICE, "up")
        call("ip", "-n", switch, "link", "set", far, "master", "br0", "up")
    shape_links(shape)


def shape_links(shape: Shape) -> None:
    """Put rate and latency on every link; also on one that is in use."""
    for namespace, device in links(shape):
        call("ip", "-n", namespace, "link", "set", "dev", device, "gso_max_size", str(shape.super_packet))
        place = ["root"]
        if shape.latency_ms:
            delay = f"{shape.latency_ms}ms"
            call("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "handle", "1:", "netem",
                 "limit", "100000", "delay", delay)  # fmt: skip
            place = ["parent", "1:"]
        call("tc", "-n", namespace, "qdisc", "replace", "dev", device, *place, "tbf", "rate", f"{shape.rate_bit}bit",
             "burst", str(shape.burst), "limit", _QUEUE)  # fmt: skip


def links(shape: Shape) -> list[tuple[str, str]]:
    """Both ends of every link: namespace and device."""
    return [
        end
        for host in range(shape.hosts)
        for end in ((shape.namespace(host), DEVICE), (shape.switch, port(host)))
    ]


def namespaces(prefix: str = PREFIX) -> list[str]:
    """Namespaces that exist and begin with ``prefix``."""
    listed = json.loads(call("ip", "-j", "netns", "list") or "[]")
    return sorted(entry["name"] for entry in listed if entry["name"].startswith(prefix))


def pids(namespace: str) -> list[int]:
    """Processes inside a namespace."""
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


def remove(name: str, patience_s: float = 2.0) -> list[str]:
    """Take a cluster away, whatever state it is in: its processes, namespaces and files.

    Args:
        name: the cluster's name.
        patience_s: time its processes have between SIGTERM and SIGKILL.

    Returns:
        What was removed, for people.
    """
    own = [n for n in namespaces(f"{PREFIX}{name}-") if _is_part(n, name)]
    said = []
    for sign, patience in ((signal.SIGTERM, patience_s), (signal.SIGKILL, patience_s)):
        running = {pid for namespace in own for pid in pids(namespace)} - {os.getpid()}
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        if running:
            said.append(f"{len(running)} processes ({sign.name})")
        deadline = time.monotonic() + patience
        while running and time.monotonic() < deadline:
            time.sleep(0.02)
            running = {pid for namespace in own for pid in pids(namespace)} - {os.getpid()}
    for namespace in own:
        call("ip", "netns", "del", namespace)
        shutil.rmtree(NETNS_ETC / namespace, ignore_errors=True)
        said.append(namespace)
    return said


def _is_part(namespace: str, name: str) -> bool:
    part = namespace.removeprefix(f"{PREFIX}{name}-")
    return part == "sw" or (part.startswith("h") and part[1:].isdigit())


def _settle(namespace: str, settings: dict[str, str]) -> None:
    script = "; ".join(f"echo '{value}' > /proc/sys/{key.replace('.', '/')}" for key, value in settings.items())
    call("ip", "netns", "exec", namespace, "sh", "-ec", script)
