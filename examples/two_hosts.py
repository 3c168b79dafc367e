"""Runs a training script through the `deepspeed` launcher as two hosts of two ranks, all on this machine.

1. A hostfile names two hosts with two slots each.
2. One launcher per host starts with `--no_ssh --node_rank`: what a person would type on each of two machines.
3. Both launchers' output goes to log files; the progress bar of the first host is passed on.
4. When one fails, or the time is up, or the caller is interrupted, both launchers and all their ranks are ended.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

HOSTS, RANKS_PER_HOST = 2, 2
_TAIL = 30  # lines of a log that an error shows


class RunError(RuntimeError):
    """A run failed or took too long; the message has the end of its log."""


@dataclass(frozen=True)
class Network:
    """What the two hosts talk over.

    Attributes:
        address: of the first host, where the ranks meet.
        on: the command line that runs a command on a host, by its number.
        variables: of the environment that every host needs besides.
    """

    address: str = "127.0.0.1"
    on: Callable[[int, Sequence[str]], Sequence[str]] = lambda host, command: command
    variables: Mapping[str, str] = field(default_factory=dict)


LOOPBACK = Network()
"""Both hosts are this machine."""


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_hostfile(folder: Path) -> Path:
    """Writes the hostfile of the two pretended hosts and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "hostfile"
    path.write_text("".join(f"host{name} slots={RANKS_PER_HOST}\n" for name in "AB"[:HOSTS]))
    return path


def launch_command(
    node: int, hostfile: Path, port: int, script: Sequence[str], address: str = LOOPBACK.address
) -> list[str]:
    """What host number `node` runs: the `deepspeed` launcher of this Python, then the script and its arguments."""
    launcher = Path(sys.executable).with_name("deepspeed")
    return [
        *([sys.executable, str(launcher)] if launcher.exists() else ["deepspeed"]),
        *("--hostfile", str(hostfile), "--no_ssh", "--node_rank", str(node)),
        *("--master_addr", address, "--master_port", str(port)),
        *script,
    ]


def environment(build: Path) -> dict[str, str]:
    """The environment of the launchers: one thread per rank, and compiled extensions below `build`.

    DeepSpeed compiles a small extension at its first start on a CPU. In a private folder nobody else's unfinished
    build can block it.
    """
    binaries = str(Path(sys.executable).parent)
    return {
        **os.environ,
        "PATH": os.pathsep.join([binaries, os.environ.get("PATH", "")]),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "TORCH_EXTENSIONS_DIR": str((build / "torch_extensions").resolve()),
        "TQDM_NCOLS": "88",
        "TQDM_MININTERVAL": "0.3",
    }


@dataclass
class _Launcher:
    """One host's launcher, its log, and the part of its output that has not ended a line yet."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]
    path: Path
    bar: str | None  # name of the progress bar to pass on
    rest: bytes = b""
    shown: float = field(default=0.0)

    def read(self) -> bool:
        """Takes what there is to read; False when the output has ended."""
        assert self.process.stdout is not None
        chunk = os.read(self.process.stdout.fileno(), 65536)
        self.log.write(chunk)
        self.log.flush()
        if self.bar is not None:
            *pieces, self.rest = re.split(rb"[\r\n]+", self.rest + chunk)
            bars = [piece for piece in pieces if piece.startswith(self.bar.encode()) and b"]" in piece]
            if bars:
                self._show(bars[-1].decode(errors="replace").split("]")[0] + "]")  # a warning may follow the bar
        return bool(chunk)

    def _show(self, bar: str) -> None:
        """Passes a progress bar on: in place on a terminal, else a line every few seconds and at the end."""
        done = "100%" in bar
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{bar}" + ("\n" if done else ""))
        elif done or time.monotonic() - self.shown > 5.0:
            sys.stderr.write(f"{bar}\n")
            self.shown = time.monotonic()
        if done:
            self.bar = None  # the last word of this bar
        sys.stderr.flush()


def run(name: str, script: Sequence[str], folder: Path, *, timeout_s: float, network: Network = LOOPBACK) -> None:
    """Runs a script on both hosts and waits for its end.

    Args:
        name: of the run; its progress bar (tqdm's `desc`) has the same.
        script: path of the script, then its arguments.
        folder: where the hostfile, the logs `<name>.host<n>.log` and the compiled extensions go.
        timeout_s: seconds the run may take.
        network: what the hosts talk over.

    Raises:
        RunError: a launcher failed, or the time is up. Nothing of the run is left running.
    """
    hostfile, port = write_hostfile(folder), free_port()
    commands = [network.on(n, launch_command(n, hostfile, port, script, network.address)) for n in range(HOSTS)]
    with _launchers(name, commands, folder, network.variables) as launchers:
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            for launcher in launchers:
                assert launcher.process.stdout is not None
                selector.register(launcher.process.stdout, selectors.EVENT_READ, launcher)
            while selector.get_map():
                for key, _ in selector.select(timeout=0.5):
                    if not key.data.read():
                        selector.unregister(key.fileobj)
                for launcher in launchers:
                    if launcher.process.poll() not in (None, 0):
                        raise RunError(_failure(name, launcher, f"exit code {launcher.process.returncode}"))
                if time.monotonic() > deadline:
                    raise RunError(_failure(name, launchers[0], f"not finished after {timeout_s:.0f} s"))
        for launcher in launchers:
            if launcher.process.wait(timeout=30) != 0:
                raise RunError(_failure(name, launcher, f"exit code {launcher.process.returncode}"))


@contextmanager
def _launchers(
    name: str, commands: Sequence[Sequence[str]], folder: Path, variables: Mapping[str, str]
) -> Iterator[list[_Launcher]]:
    """Starts the launchers, each in a process group of its own, and ends whatever is left of them at the end."""
    launchers: list[_Launcher] = []
    env: Mapping[str, str] = {**environment(folder), **variables}
    try:
        for node, command in enumerate(commands):
            path = folder / f"{name}.host{node}.log"
            log = path.open("wb")
            log.write(f"$ {' '.join(command)}\n".encode())
            process = subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
            )
            launchers.append(_Launcher(process, log, path, name if node == 0 else None))
        yield launchers
    finally:
        end_groups([launcher.process for launcher in launchers])
        for launcher in launchers:
            launcher.log.close()
            if launcher.process.stdout is not None:
                launcher.process.stdout.close()


def end_groups(processes: Sequence[subprocess.Popen[bytes]], grace_s: float = 5.0) -> None:
    """Ends the process groups the processes lead: asks first, insists after `grace_s` seconds."""
    for sign, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 2.0)):
        alive = [process for process in processes if _signal_group(process, sign)]
        deadline = time.monotonic() + wait_s
        while alive and time.monotonic() < deadline:
            for process in alive:
                process.poll()  # takes the leader's exit code, so that its group can vanish
            alive = [process for process in alive if _signal_group(process, 0)]
            time.sleep(0.05)
        if not alive:
            return


def _signal_group(process: subprocess.Popen[bytes], sign: int) -> bool:
    """Sends a signal to the group `process` leads; False when nobody is left in it."""
    try:
        os.killpg(process.pid, sign)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _failure(name: str, launcher: _Launcher, what: str) -> str:
    """What went wrong, with the end of the log, without the progress bars."""
    launcher.log.flush()
    lines = launcher.path.read_text(errors="replace").replace("\r", "\n").splitlines()
    told = [line for line in lines if line.strip() and not line.startswith(f"{name}:")]
    return f"run {name!r}: {what}; the end of {launcher.path}:\n" + "\n".join(told[-_TAIL:])
