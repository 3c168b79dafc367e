"""The real ``deepspeed`` launcher: one machine, two hosts on one machine, and the runner for unchanged scripts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests._util.ranks import LAUNCHER_VARIABLES

SCRIPT = Path(__file__).parent / "scripts" / "train.py"
BIN = Path(sys.executable).parent
LIMIT = 180  # seconds for one run of the launcher

DS_CONFIG = {
    "train_micro_batch_size_per_gpu": 8,
    "gradient_clipping": 0.0,
    "zero_optimization": {"stage": 1},
    "zero_allow_untested_optimizer": True,
    "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
    "steps_per_print": 100000,
}
DMT = {"towers": {"module": "dlrm", "dim": 2}, "lookup": {"backend": "torch"}, "comm": {"timeout_s": 60}}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def environment() -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not LAUNCHER_VARIABLES.fullmatch(key)}
    env["PATH"] = f"{BIN}{os.pathsep}{env.get('PATH', '')}"
    return {**env, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


def run_all(commands: list[list[str]], cwd: Path) -> list[str]:
    """Runs commands side by side, each in a process group of its own that never outlives the test."""
    deadline = time.monotonic() + LIMIT
    logs = [cwd / f"log.{index}" for index in range(len(commands))]
    processes = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as sink:  # a file: a full pipe of one launcher would stop the other
                process = subprocess.Popen(
                    command, cwd=cwd, env=environment(), stdout=sink, stderr=sink, start_new_session=True
                )
            processes.append(process)
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    outputs = [log.read_text() for log in logs]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, f"exit code {process.returncode} (limit {LIMIT} s)\n{output[-6000:]}"
    return outputs


def result_of(outputs: list[str]) -> dict:
    lines = [line for output in outputs for line in output.splitlines() if line.startswith("RESULT ")]
    assert len(lines) == 1, "\n".join(outputs)[-6000:]
    return json.loads(lines[0].removeprefix("RESULT "))


def config_in(folder: Path, dmt: dict | None) -> str:
    path = folder / "ds.json"
    path.write_text(json.dumps(DS_CONFIG if dmt is None else {**DS_CONFIG, "dmt": dmt}))
    return str(path)


def one_machine(folder: Path, config: str, *script: str, ranks: int = 4) -> dict:
    command = [str(BIN / "deepspeed"), "--num_accelerators", str(ranks), "--master_port", str(free_port())]
    return result_of(run_all([[*command, *script, "--deepspeed_config", config]], folder))


def two_hosts(folder: Path, config: str, *script: str) -> dict:
    hostfile = folder / "hosts"
    hostfile.write_text("alpha slots=2\nbeta slots=2\n")
    master = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    launcher = [str(BIN / "deepspeed"), "--hostfile", str(hostfile), "--no_ssh", *master]
    rest = [*script, "--deepspeed_config", config]
    commands = [[*launcher, "--node_rank", str(node), *rest] for node in (0, 1)]
    return result_of(run_all(commands, folder))


@pytest.mark.launcher
def test_every_way_in_gives_the_same_training(tmp_path):
    told = one_machine(
        tmp_path,
        config_in(tmp_path, {**DMT, "topology": {"hosts": 2, "ranks_per_host": 2}}),
        str(SCRIPT),
        "--call",
        "dmt",
    )
    config = config_in(tmp_path, DMT)
    detected = two_hosts(tmp_path, config, str(SCRIPT), "--call", "dmt")
    unchanged = two_hosts(tmp_path, config, "--module", "dmt_plugin.run", str(SCRIPT))
    for result in (told, detected, unchanged):
        assert result["engine"] == "DMTEngine"
        assert result["topology"] == "2x2"
        assert len(result["losses"]) == 5
        assert result["losses"] == pytest.approx(told["losses"], abs=1e-6)
    assert "CROSS_RANK" not in told["source"]
    assert "CROSS_RANK" in detected["source"]
    assert "CROSS_RANK" in unchanged["source"]
    assert unchanged["argv"] == ["--local_rank=0", "--deepspeed_config", config], "as the launcher would have called it"


@pytest.mark.launcher
def test_one_machine_is_one_host(tmp_path):
    result = one_machine(tmp_path, config_in(tmp_path, DMT), str(SCRIPT), "--call", "dmt", ranks=2)
    assert result["topology"] == "1x2"


@pytest.mark.launcher
@pytest.mark.parametrize("dmt", [None, {"enabled": False}])
def test_the_runner_leaves_other_runs_alone(tmp_path, dmt):
    config = config_in(tmp_path, dmt)
    result = one_machine(tmp_path, config, "--module", "dmt_plugin.run", str(SCRIPT), "--no_build", ranks=2)
    assert result["engine"] == "DeepSpeedEngine"
    assert result["topology"] is None
