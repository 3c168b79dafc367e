"""The cluster as an object: up at the start of a ``with`` block, gone at its end.

It is also gone when the process ends in any way: after an exception, Ctrl-C or SIGTERM by its own hand; after a
SIGKILL by that of the next process that makes or removes a cluster on this machine.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from benchmarks.cluster import forked, needs, network, processes, ssh, state
from benchmarks.cluster.check import check
from benchmarks.cluster.counters import LinkBytes, read_bytes
from benchmarks.cluster.errors import ClusterError
from benchmarks.cluster.shape import Shape, parse_rate


class Cluster:
    """An emulated cluster.

    Args:
        hosts: hosts ``H``.
        lanes: ranks on each ``L``.
        rate: of every host's link, each way, such as ``"100mbit"``.
        latency_ms: added to every packet, one way; needs a kernel that can delay packets.
        name: to tell clusters apart; by default made of this process's number.
        ssh: start an sshd on every host.
        stays: leave it up when this process ends; then someone has to take it down by name.

    Attributes:
        shape: all of that.
    """

    def __init__(
        self,
        hosts: int = 2,
        lanes: int = 2,
        rate: str = "100mbit",
        *,
        latency_ms: float = 0.0,
        name: str | None = None,
        ssh: bool = False,
        stays: bool = False,
    ) -> None:
        self.shape = Shape(name or f"p{os.getpid()}", hosts, lanes, parse_rate(rate), latency_ms)
        self._ssh, self._stays = ssh, stays
        self._old_handlers: dict[int, Any] = {}

    @classmethod
    def attach(cls, name: str) -> Cluster:
        """A cluster that is up already, by name.

        Raises:
            ClusterError: there is none.
        """
        needs.require()
        record = state.read(name)
        if record is None:
            known = ", ".join(state.names()) or "none"
            raise ClusterError(f"no cluster is up under the name '{name}'; there are: {known}")
        cluster = cls.__new__(cls)
        cluster.shape, cluster._ssh, cluster._stays, cluster._old_handlers = record.shape, record.ssh, True, {}
        return cluster

    def up(self) -> Cluster:
        """Bring it up and verify it.

        Raises:
            ClusterUnavailable: this machine cannot have one; says why.
            ClusterError: it did not come up as asked for; nothing of it is left.
        """
        needs.require(latency=self.shape.latency_ms > 0)
        sweep()
        if state.read(self.shape.name) is not None or network.namespaces(f"{self.shape.switch}"):
            raise ClusterError(f"a cluster named '{self.shape.name}' is up already; take it down, or use another name")
        state.write(self.shape, self._stays, self._ssh)
        if not self._stays:
            self._watch()
        try:
            network.build(self.shape)
            if self._ssh:
                ssh.start(self.shape)
            self.check()
        except BaseException:
            self.down()
            raise
        return self

    def down(self) -> list[str]:
        """Take it away with everything that runs on it; returns what was removed."""
        removed = take_down(self.shape.name)
        self._unwatch()
        return removed

    def __enter__(self) -> Cluster:
        return self.up()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def check(self) -> list[float]:
        """Verify that its links are what was asked for; see :func:`benchmarks.cluster.check.check`."""
        return check(self.shape)

    def bytes(self) -> list[LinkBytes]:
        """Bytes that crossed each host's link so far."""
        return read_bytes(self.shape)

    def run(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        timeout_s: float = 600,
        grace_s: float = 20,
        echo: processes.Echo | None = None,
    ) -> list[processes.Outcome]:
        """Verify the links, then run a command once per rank; see :func:`processes.run_ranks`.

        Returns:
            What became of each rank, in rank order; a failure of a rank is no error here.
        """
        self.check()
        return processes.run_ranks(self.shape, command, env, timeout_s, grace_s, echo)

    def run_on(self, host: int, command: Sequence[str], **options: Any) -> processes.Outcome:
        """Run a command once on one host; see :func:`processes.run_on`."""
        return processes.run_on(self.shape, host, command, **options)

    def call(self, function: Callable[..., Any], *args: Any, timeout_s: float = 600, grace_s: float = 20) -> list[Any]:
        """Verify the links, then call ``function(rank, *args)`` on every rank; see :func:`forked.call_ranks`."""
        self.check()
        return forked.call_ranks(self.shape, function, args, timeout_s, grace_s)

    def set_rate(self, rate: str) -> None:
        """Give every link another rate."""
        old = self.shape
        self.shape = Shape(old.name, old.hosts, old.lanes, parse_rate(rate), old.latency_ms)
        network.shape_links(self.shape)
        state.write(self.shape, self._stays, self._ssh)

    def cut(self, host: int) -> None:
        """Take a host's link down, as a pulled cable would."""
        network.call("ip", "-n", self.shape.switch, "link", "set", network.port(host), "down")

    def mend(self, host: int) -> None:
        """Put a host's link up again."""
        network.call("ip", "-n", self.shape.switch, "link", "set", network.port(host), "up")

    @property
    def hostfile(self) -> Path:
        """Hostfile of the cluster, for ``deepspeed --hostfile``."""
        return ssh.hostfile(self.shape)

    def _watch(self) -> None:
        """See that it goes with this process."""
        atexit.register(self.down)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGHUP):
                # SIGINT is a KeyboardInterrupt already. A handler of someone else's is left alone.
                if signal.getsignal(number) is signal.SIG_DFL:
                    self._old_handlers[number] = signal.signal(number, _leave)

    def _unwatch(self) -> None:
        atexit.unregister(self.down)
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()


def _leave(number: int, frame: FrameType | None) -> None:
    # An ordinary end of the process: with blocks and atexit take the cluster away.
    sys.exit(128 + number)


def take_down(name: str) -> list[str]:
    """Take a cluster away by name, also one that is half up or not written down."""
    removed = network.remove(name)
    state.forget(name)
    return removed


def sweep() -> list[str]:
    """Take away every cluster whose owner is gone; returns what was removed."""
    removed = []
    for name in state.names():
        record = state.read(name)
        if record is not None and record.abandoned:
            removed += take_down(name)
    return removed
