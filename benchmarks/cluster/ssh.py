"""An sshd on every host, so that launchers that start ranks by ssh or pdsh work across the cluster.

1. Keys and configuration are the cluster's own, in its folder; neither ``~/.ssh`` nor ``/etc/ssh`` is touched:
   ``ip netns exec`` puts a host's own ``/etc/hosts`` and ``/etc/ssh`` in their place, for what runs on that host.
2. Each sshd listens on its host's address alone, which only the cluster's hosts can reach, and takes the cluster's
   key alone.
3. A connection to a host that is gone ends within seconds, and with it the launcher.
4. What ranks need from their environment is set by sshd, as launchers forward almost nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

from benchmarks.cluster.errors import ClusterError, ClusterUnavailable
from benchmarks.cluster.network import NETNS_ETC, call
from benchmarks.cluster.processes import host_variables, inside
from benchmarks.cluster.shape import Shape
from benchmarks.cluster.state import folder_of

_SERVER = """\
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/client_key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 100
MaxSessions 100
PrintMotd no
SetEnv {variables}
"""

_CLIENT = """\
Host *
    IdentityFile {folder}/client_key
    IdentitiesOnly yes
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
    ServerAliveInterval 3
    ServerAliveCountMax 3
"""


def missing() -> list[str]:
    """Programs that are missing for ssh; empty where none is."""
    return [name for name in ("sshd", "ssh", "ssh-keygen") if shutil.which(name, path=_PATH) is None]


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def start(shape: Shape) -> None:
    """Start sshd on every host of a cluster that is up.

    Raises:
        ClusterUnavailable: OpenSSH is not installed.
    """
    if absent := missing():
        raise ClusterUnavailable(
            f"ssh between hosts needs {', '.join(absent)} (apt-get install openssh-server openssh-client)"
        )
    folder = folder_of(shape.name)
    for key in ("host_key", "client_key"):
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key))
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's own, which its service would have made
    hosts = "".join(f"{shape.address(h)} {shape.hostname(h)}\n" for h in range(shape.hosts))
    for host in range(shape.hosts):
        own = NETNS_ETC / shape.namespace(host)
        (own / "ssh").mkdir(parents=True, exist_ok=True)
        (own / "hosts").write_text(f"127.0.0.1 localhost\n{hosts}")
        (own / "ssh" / "ssh_config").write_text(_CLIENT.format(folder=folder))
        variables = " ".join(f"{key}={value}" for key, value in {**host_variables(), "DS_ACCELERATOR": "cpu"}.items())
        config = folder / f"sshd_config.{host}"
        config.write_text(_SERVER.format(address=shape.address(host), folder=folder, variables=variables))
        server = shutil.which("sshd", path=_PATH)
        assert server is not None
        log = folder / f"sshd.{host}.log"
        # In the background until the cluster goes: it is found again by its namespace.
        call(*inside(shape, host, [server, "-f", str(config), "-E", str(log)]))
    for host in range(shape.hosts):
        _answers(shape, host)


def hostfile(shape: Shape) -> Path:
    """A hostfile as ``deepspeed`` and ``mpirun`` read it, written into the cluster's folder."""
    path = folder_of(shape.name) / "hostfile"
    path.write_text("".join(f"{shape.hostname(h)} slots={shape.lanes}\n" for h in range(shape.hosts)))
    return path


def _answers(shape: Shape, host: int) -> None:
    command = inside(shape, 0, ["ssh", "-o", "ConnectTimeout=5", shape.hostname(host), "hostname"])
    for _ in range(20):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.stdout.strip() == shape.hostname(host):
            return
        time.sleep(0.1)
    log = folder_of(shape.name) / f"sshd.{host}.log"
    said = log.read_text()[-500:] if log.exists() else ""
    raise ClusterError(f"{shape.hostname(host)} does not answer by ssh: {done.stderr.strip()} {said}".strip())
