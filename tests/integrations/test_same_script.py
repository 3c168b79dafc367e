"""One unchanged script under every launcher: DeepSpeed's on one machine and over ssh, torchrun, and Accelerate."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cluster import Cluster, ssh
from tests.benchmarks.conftest import _able, cluster
from tests.integrations.test_launcher import (
    BIN,
    DMT,
    SCRIPT,
    TWO_HOSTS,
    config_in,
    free_port,
    one_machine,
    result_of,
    run_all,
    two_hosts,
)

pytestmark = pytest.mark.launcher
__all__ = ["_able", "cluster"]

ROOT = Path(__file__).parents[2]
RUNNER = ("-m", "dmt_plugin.run")
TOLERANCE = 1e-6
"""Of a loss in fp32."""


@pytest.fixture(scope="module")
def on_one_machine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """``deepspeed --num_accelerators 2``; the machine plays two hosts."""
    folder = tmp_path_factory.mktemp("deepspeed")
    return one_machine(folder, config_in(folder, TWO_HOSTS), "--module", "dmt_plugin.run", str(SCRIPT), ranks=2)


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["engine"] == expected["engine"] == "DMTEngine"
    assert found["topology"] == expected["topology"] == "2x1"
    assert len(found["losses"]) == 10 and found["losses"] == pytest.approx(expected["losses"], abs=TOLERANCE)
    assert len(set(expected["losses"])) == 10


def test_the_runner_calls_the_script_as_the_launcher_would(on_one_machine: dict[str, Any]) -> None:
    assert on_one_machine["argv"][:2] == ["--local_rank=0", "--deepspeed_config"] and len(on_one_machine["argv"]) == 3
    assert "CROSS_RANK" not in on_one_machine["source"]


def test_two_hosts_on_one_machine(on_one_machine: dict[str, Any], tmp_path: Path) -> None:
    """Found, not configured; and the script calls ``initialize`` of this package by itself."""
    found = two_hosts(tmp_path, config_in(tmp_path, DMT), str(SCRIPT), "--call", "dmt", lanes=1)
    assert "CROSS_RANK" in found["source"]
    same(found, on_one_machine)


def test_torchrun(on_one_machine: dict[str, Any], tmp_path: Path) -> None:
    start = [str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port", str(free_port())]
    outputs = run_all([[*start, *RUNNER, str(SCRIPT), "--deepspeed_config", config_in(tmp_path, TWO_HOSTS)]], tmp_path)
    same(result_of(outputs), on_one_machine)


def by_accelerate(folder: Path, *script: str) -> dict[str, Any]:
    config = config_in(folder, TWO_HOSTS)
    start = [str(BIN / "accelerate"), "launch", "--use_deepspeed", "--num_machines", "1", "--num_processes", "2"]
    start += ["--main_process_port", str(free_port()), "--deepspeed_config_file", config]
    return result_of(run_all([[*start, *script, "--deepspeed_config", config]], folder))


def test_accelerate_launch(on_one_machine: dict[str, Any], tmp_path: Path) -> None:
    same(by_accelerate(tmp_path, *RUNNER, str(SCRIPT)), on_one_machine)


@pytest.mark.campaign
def test_accelerators_own_prepare(on_one_machine: dict[str, Any], tmp_path: Path) -> None:
    """Under its launcher; ``test_accelerate.py`` has it on ranks."""
    same(by_accelerate(tmp_path, str(SCRIPT), "--call", "accelerate"), on_one_machine)


@pytest.fixture
def _ssh(_able: None) -> None:
    if os.environ.get("CI"):
        pytest.skip("network namespaces with ssh servers are not for CI")
    absent = ssh.missing() + ["pdsh"] * (shutil.which("pdsh") is None)
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)} (apt-get install openssh-server openssh-client pdsh)")


def test_over_ssh_between_hosts(
    _ssh: None,
    on_one_machine: dict[str, Any],
    cluster: Callable[..., Cluster],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = cluster(hosts=2, lanes=1, ssh=True)
    monkeypatch.chdir(ROOT)
    start = [str(BIN / "deepspeed"), "--hostfile", str(made.hostfile), "--launcher", "pdsh"]
    start += ["--master_addr", made.shape.address(0), "--module", "dmt_plugin.run"]
    before = made.bytes()
    done = made.run_on(0, [*start, str(SCRIPT), "--deepspeed_config", config_in(tmp_path, DMT)], timeout_s=150)
    assert done.code == 0, done.output[-6000:]
    assert all(now.sent > then.sent for now, then in zip(made.bytes(), before, strict=True)), "the hosts did not talk"
    # pdsh puts the name of the host before each line.
    found = result_of([re.sub(r"(?m)^\S+: RESULT", "RESULT", done.output)])
    assert "LOCAL_SIZE=1" in found["source"], "read from the launcher, not told"
    same(found, on_one_machine)
