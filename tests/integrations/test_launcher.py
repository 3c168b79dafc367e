"""The real ``deepspeed`` launcher: one machine, two hosts on one machine, and the runner for unchanged scripts."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing as mp
import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from dmt_plugin import run
from tests._util.ranks import LAUNCHER_VARIABLES, run_ranks
from tests.test_placed_laws import launcher_env

SCRIPT = Path(__file__).parent / "scripts" / "train.py"
BIN = Path(sys.executable).parent
LIMIT = 400  # seconds for one run of the launcher

DS_CONFIG = {
    "train_micro_batch_size_per_gpu": 8,
    "gradient_clipping": 0.0,
    "zero_optimization": {"stage": 0},
    "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
    "steps_per_print": 100000,
}
DMT = {"towers": {"module": "dlrm", "dim": 2}, "lookup": {"backend": "torch"}, "comm": {"timeout_s": 60}}


TWO_HOSTS = {**DMT, "topology": {"hosts": 2, "ranks_per_host": "auto"}}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def environment(folder: Path) -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not LAUNCHER_VARIABLES.fullmatch(key)}
    env["PATH"] = f"{BIN}{os.pathsep}{env.get('PATH', '')}"
    return {**env, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "TORCH_EXTENSIONS_DIR": str(folder / "extensions")}


def run_all(commands: list[list[str]], cwd: Path) -> list[str]:
    """Runs commands side by side, each in a process group of its own that never outlives the test."""
    deadline = time.monotonic() + LIMIT
    logs = [cwd / f"log.{index}" for index in range(len(commands))]
    processes = []
    try:
        for command, log in zip(commands, logs, strict=True):
            with log.open("w") as sink:  # a file: a full pipe of one launcher would stop the other
                process = subprocess.Popen(
                    command, cwd=cwd, env=environment(cwd), stdout=sink, stderr=sink, start_new_session=True
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


def two_hosts(folder: Path, config: str, *script: str, lanes: int = 2) -> dict:
    hostfile = folder / "hosts"
    hostfile.write_text(f"alpha slots={lanes}\nbeta slots={lanes}\n")
    master = ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    launcher = [str(BIN / "deepspeed"), "--hostfile", str(hostfile), "--no_ssh", *master]
    rest = [*script, "--deepspeed_config", config]
    commands = [[*launcher, "--node_rank", str(node), *rest] for node in (0, 1)]
    return result_of(run_all(commands, folder))


@pytest.mark.launcher
@pytest.mark.campaign
def test_every_way_in_gives_the_same_training(tmp_path):
    """On 2 x 2; ``test_same_script.py`` has each way, and more, on 2 x 1."""
    told = one_machine(tmp_path, config_in(tmp_path, TWO_HOSTS), str(SCRIPT), "--call", "dmt")
    detected = two_hosts(tmp_path, config_in(tmp_path, DMT), str(SCRIPT), "--call", "dmt")
    unchanged = two_hosts(tmp_path, config_in(tmp_path, DMT), "--module", "dmt_plugin.run", str(SCRIPT))
    for result in (told, detected, unchanged):
        assert result["engine"] == "DMTEngine"
        assert result["topology"] == "2x2"
        assert len(result["losses"]) == 5
        assert result["losses"] == pytest.approx(told["losses"], abs=1e-6)
    assert "CROSS_RANK" not in told["source"]
    assert "CROSS_RANK" in detected["source"]
    assert "CROSS_RANK" in unchanged["source"]


@pytest.mark.launcher
@pytest.mark.campaign
def test_one_machine_is_one_host(tmp_path):
    """As the doctor finds under the launcher too."""
    result = one_machine(tmp_path, config_in(tmp_path, DMT), str(SCRIPT), "--call", "dmt", ranks=2)
    assert result["topology"] == "1x2"


def other_runs(rank: int, world: int, configs: list[str]) -> list[str]:
    """What the runner's script says with each configuration, on a rank as the launcher starts it."""
    said = []
    # The loader's workers, as from a process that a launcher has started.
    mp.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    mp.set_start_method("fork", force=True)
    for config in configs:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), mock.patch.object(sys, "path", ["", *sys.path]):
            run.main([f"--local_rank={rank}", str(SCRIPT), "--no_build", "--deepspeed_config", config])
        said.append(out.getvalue())
    return said


@pytest.mark.processes
def test_the_runner_leaves_other_runs_alone(tmp_path):
    configs = []
    for name, dmt in {"without": None, "off": {"enabled": False}}.items():
        (tmp_path / name).mkdir()
        configs.append(config_in(tmp_path / name, dmt))
    for outputs in zip(*run_ranks(2, other_runs, configs, env=partial(launcher_env, "1x2")), strict=True):
        result = result_of(list(outputs))
        assert result["engine"] == "DeepSpeedEngine"
        assert result["topology"] is None
        assert len(result["losses"]) == 10
