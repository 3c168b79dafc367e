"""The real ``deepspeed`` launcher over pdsh and ssh, from host to host; then someone pulls a cable."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.cluster import Cluster, network, ssh
from benchmarks.cluster.processes import Outcome

SCRIPT = Path(__file__).parent / "scripts" / "endless.py"
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 6.0


@pytest.fixture
def _ssh_and_pdsh(_able: None) -> None:
    absent = ssh.missing() + ["pdsh"] * (shutil.which("pdsh") is None)
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)} (apt-get install openssh-server openssh-client pdsh)")


@pytest.mark.launcher
def test_a_cut_link_ends_every_rank(
    _ssh_and_pdsh: None, cluster: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = cluster(hosts=2, lanes=2, ssh=True)
    monkeypatch.chdir(ROOT)
    outcomes: list[Outcome] = []
    command = [
        *(str(Path(sys.executable).parent / "deepspeed"), "--hostfile", str(made.hostfile), "--launcher", "pdsh"),
        *("--master_addr", made.shape.address(0), str(SCRIPT), "--folder", str(tmp_path), "--timeout", str(TIMEOUT_S)),
    ]
    launcher = threading.Thread(target=lambda: outcomes.append(made.run_on(0, command, timeout_s=150)))
    launcher.start()
    logs = [tmp_path / f"rank{rank}" for rank in range(4)]
    before = made.bytes()
    wait(lambda: all(log.exists() and "step 3" in log.read_text() for log in logs), 120, lambda: said(logs, outcomes))
    after = made.bytes()
    assert all(now.sent > then.sent for now, then in zip(after, before, strict=True)), "the hosts did not talk"
    for log in logs:
        assert log.read_text().startswith("topology 2x2 by DeepSpeed's launcher (LOCAL_SIZE=2")

    made.cut(1)
    cut = time.monotonic()
    wait(lambda: all("Error: " in log.read_text() for log in logs), 4 * TIMEOUT_S, lambda: said(logs, outcomes))
    for rank, log in enumerate(logs):
        text = log.read_text().splitlines()[-1]
        assert text.startswith(f"ExchangeError: rank {rank} (host {rank // 2}, lane {rank % 2}), step "), text
        assert f"dmt.comm.timeout_s = {TIMEOUT_S:g} s" in text
    # The launcher ends too: ssh gives the lost host up.
    launcher.join(60)
    assert outcomes and outcomes[0].code != 0 and time.monotonic() - cut < 60
    wait(lambda: not ranks_of(made), 15, lambda: f"still there: {ranks_of(made)}")
    made.down()
    assert not network.namespaces(f"dmt-{made.shape.name}-")


def ranks_of(cluster: Cluster) -> list[int]:
    """Processes of the training on any host."""
    running = [pid for host in range(2) for pid in network.pids(cluster.shape.namespace(host))]
    return [pid for pid in running if SCRIPT.name in _command_line(pid)]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def wait(reached: Callable[[], bool], limit_s: float, found: Callable[[], str]) -> None:
    deadline = time.monotonic() + limit_s
    while not reached():
        assert time.monotonic() < deadline, found()
        time.sleep(0.1)


def said(logs: list[Path], outcomes: list[Outcome]) -> str:
    texts = [f"{log.name}: {log.read_text()[-500:] if log.exists() else '-'}" for log in logs]
    return "\n".join(texts + [outcome.output[-3000:] for outcome in outcomes])
