"""Running as two hosts: commands, passing on progress, and leaving nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples import demo, flights, results, two_hosts


def fake_launcher(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Replaces the launcher by a Python snippet that gets the host's number as its argument."""
    monkeypatch.setattr(two_hosts, "launch_command", lambda node, *_: [sys.executable, "-c", code, str(node)])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat")
    return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_command_is_what_a_person_would_type(tmp_path: Path) -> None:
    hostfile = two_hosts.write_hostfile(tmp_path)
    assert hostfile.read_text() == "hostA slots=2\nhostB slots=2\n"
    command = two_hosts.launch_command(1, hostfile, 2950, ["train.py", "--seed", "1"])
    text = " ".join(command)
    assert f"--hostfile {hostfile} --no_ssh --node_rank 1 --master_addr 127.0.0.1 --master_port 2950 train.py" in text


def test_environment(tmp_path: Path) -> None:
    env = two_hosts.environment(tmp_path)
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["TORCH_EXTENSIONS_DIR"].startswith(str(tmp_path.resolve()))
    assert env["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_logs_are_complete_and_progress_is_passed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bars = r"\rabc:  50%|# | 1/2 [00:01]\rabc: 100%|##| 2/2 [00:02]noise\n"
    fake_launcher(monkeypatch, f"import sys; print('noise'); print('{bars}'); print('host', sys.argv[1])")
    two_hosts.run("abc", [], tmp_path, timeout_s=30)
    for host in (0, 1):
        log = (tmp_path / f"abc.host{host}.log").read_text()
        assert "noise" in log and f"host {host}" in log
    shown = capsys.readouterr().err
    assert "abc: 100%" in shown and "noise" not in shown


def test_failure_shows_the_log_and_ends_the_other_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Host 0 leaves a grandchild that would sleep for an hour; host 1 fails.
    fake_launcher(
        monkeypatch,
        "import subprocess, sys, time\n"
        "if sys.argv[1] == '1': time.sleep(1); sys.exit('no such table')\n"
        "child = subprocess.Popen(['sleep', '3600'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "time.sleep(3600)\n",
    )
    started = time.monotonic()
    with pytest.raises(two_hosts.RunError, match="exit code 1") as caught:
        two_hosts.run("abc", [], tmp_path, timeout_s=60)
    assert "no such table" in str(caught.value)
    assert time.monotonic() - started < 30
    assert not alive(int((tmp_path / "pid").read_text()))


def test_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_launcher(
        monkeypatch,
        "import os, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(tmp_path)!r} + '/pid' + sys.argv[1], 'w').write(str(os.getpid()))\n"
        "time.sleep(3600)\n",
    )
    with pytest.raises(two_hosts.RunError, match="not finished after 2 s"):
        two_hosts.run("abc", [], tmp_path, timeout_s=2)
    assert not any(alive(int((tmp_path / f"pid{host}").read_text())) for host in (0, 1))


def test_interrupt_leaves_nothing(tmp_path: Path) -> None:
    """A demo that gets SIGTERM ends its launchers."""
    sleeper = "import os, sys, time; open(sys.argv[1] + sys.argv[2], 'w').write(str(os.getpid())); time.sleep(3600)"
    code = (
        "import signal, sys\n"
        "from pathlib import Path\n"
        "from examples import demo, two_hosts\n"
        "signal.signal(signal.SIGTERM, demo._interrupt)\n"
        f"pid, sleeper = {str(tmp_path / 'pid')!r}, {sleeper!r}\n"
        "two_hosts.launch_command = lambda node, *_: [sys.executable, '-c', sleeper, pid, str(node)]\n"
        "try:\n"
        "    two_hosts.run('abc', [], Path(pid).parent, timeout_s=60)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    root = Path(two_hosts.__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root)
    pids = [tmp_path / f"pid{host}" for host in (0, 1)]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not all(path.exists() and path.read_text() for path in pids):
        time.sleep(0.1)
    process.terminate()
    assert process.wait(timeout=30) == 130
    assert not any(alive(int(path.read_text())) for path in pids)


@pytest.mark.launcher
def test_the_script_trains_and_rows_that_repeat_cross_once(
    tmp_path: Path, data: flights.Flights, data_file: Path
) -> None:
    (tmp_path / "flights.npz").symlink_to(data_file)
    two_hosts.run("dmt", demo.train_arguments("dmt", tmp_path, max_steps=3), tmp_path, timeout_s=240)
    metrics = json.loads((tmp_path / "dmt" / "metrics.json").read_text())
    figures = results.summarise({"dmt": metrics}, two_hosts.HOSTS, two_hosts.RANKS_PER_HOST)["dmt"]
    assert metrics["steps"] == 3 and metrics["samples"] == 3 * metrics["world"] * metrics["batch_per_rank"]
    # Towers of 11 and 10 features, 8 numbers of 4 bytes each; every second sample is on the tower's own host.
    per_way = (11 + 10) * 8 * 4 / 2
    # But of what the other host needs, rows that several of its samples have in common cross once.
    found = figures["exchange_bytes_per_sample"]
    assert 0.1 * per_way < found["embeddings"] < 0.5 * per_way
    assert found["gradients"] == found["embeddings"]
    assert 0.0 < metrics["auc"] < 1.0 and metrics["samples_per_s"] > 0.0
    assert figures["table_params"] == 16 * sum(data.table_sizes)
