"""Checks of several ranks: a sound training, a spoilt one, a rank that is gone, unequal versions; and the launcher."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from dmt_plugin.cli import app
from dmt_plugin.config.link import bytes_per_second
from dmt_plugin.doctor.check import Check, Finding
from dmt_plugin.doctor.ranks import Ranks
from dmt_plugin.planner.cluster.files import cluster_of
from tests._util.ranks import LAUNCHER_VARIABLES, run_ranks
from tests.test_placed_laws import launcher_env

OWN = [Check("ninja", Finding("there"), 0.0)]


def findings(checks: list[Check]) -> dict[str, tuple[str, str]]:
    return {check.name: (check.status, check.finding.found) for check in checks}


def spoilt(rank: int, world: int, how: str) -> dict[str, tuple[str, str]]:
    if how == "scale":  # what enters the tables is not divided by the number of ranks
        from dmt_plugin.nn.lookup.sharded import ShardedLookup

        ShardedLookup.grad_scale = property(lambda self: 1.0, lambda self, value: None)
    if how == "death" and rank == 1:
        Ranks.links = lambda self: os._exit(3)
    versions = {"torch": "2.0" if how == "versions" and rank == 1 else "2.1"}
    return findings(Ranks(rank, world, 40.0).run(OWN, versions))


@pytest.mark.processes
def test_a_training_with_a_wrong_scale_is_found():
    for found in run_ranks(4, spoilt, "scale", env=partial(launcher_env, "2x2")):
        assert found["links"][0] in ("ok", "warn")  # a machine with other work may have a slow pair
        assert found["training"][0] == "fail" and "apart" in found["training"][1]
        assert "by DeepSpeed's launcher" in found["topology"][1] and "2x2" in found["topology"][1]


@pytest.mark.processes
def test_unequal_versions_stop_all_ranks():
    for found in run_ranks(2, spoilt, "versions", env=partial(launcher_env, "2x1")):
        assert found["same versions"] == ("fail", "rank 1: torch 2.0 (rank 0: 2.1)")
        assert found["training"] == ("skip", "not run, because same versions failed")


@pytest.mark.processes
def test_a_rank_that_is_gone_holds_nobody_up():
    started = time.monotonic()
    found, _ = run_ranks(2, spoilt, "death", env=partial(launcher_env, "2x1"), may_die={1})
    assert time.monotonic() - started < 100
    assert found["links"][0] == "fail" and found["training"][0] == "skip"


@pytest.mark.processes
def test_alone_it_plays_two_hosts(monkeypatch, tmp_path):
    for name in filter(LAUNCHER_VARIABLES.fullmatch, list(os.environ)):
        monkeypatch.delenv(name)
    result = CliRunner().invoke(app, ["doctor", "--json"])
    data = json.loads(result.stdout)
    assert result.exit_code == 0, result.output
    by_name = {check["name"]: check for check in data["checks"]}
    assert data["world_size"] == 2 and by_name["topology"]["data"]["hosts"] == 2
    assert by_name["training"]["status"] == "ok"
    assert {"versions", "fbgemm", "compiler", "ninja", "accelerator", "connect", "same versions"} < by_name.keys()
    file, cluster = tmp_path / "doctor.json", tmp_path / "c.yaml"
    file.write_text(result.stdout)
    cluster.write_text("preset: h100-dgx\nhosts: 2\nranks_per_host: 1\n")
    found, links = cluster_of(str(cluster), str(file)), by_name["links"]["data"]
    assert bytes_per_second(str(file), 1) == found.nic.value == links["between hosts"]["GB_per_s"] * 1e9
    assert found.everyone.rate.value == links["all ranks"]["all_to_all"][-1]["GB_per_s"] * 1e9
    assert found.sums.ranks == 2 and data["date"] in found.sums.rate.source


@pytest.mark.processes
def test_local_ranks_that_do_not_end_are_ended(monkeypatch):
    for name in filter(LAUNCHER_VARIABLES.fullmatch, list(os.environ)):
        monkeypatch.delenv(name)
    monkeypatch.setattr("dmt_plugin.doctor.program.LIMITS_OF_A_RUN", 0.0)
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "local ranks" in result.stdout and "rank 0: killed" in " ".join(result.stdout.split())


def launched(*command: Any) -> dict[str, Any]:
    env = {key: value for key, value in os.environ.items() if not LAUNCHER_VARIABLES.fullmatch(key)}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([*map(str, command), "--json"], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout
    return json.loads(text[text.index("\n{\n") if not text.startswith("{") else 0 : text.rindex("}") + 1])


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.launcher
def test_under_the_deepspeed_launcher():
    folder = Path(sys.executable).parent
    data = launched(
        folder / "deepspeed", "--num_accelerators", 2, "--master_port", free_port(), "--module", "dmt_plugin.doctor"
    )
    assert data["world_size"] == 2 and data["status"] != "fail"
    topology = next(check for check in data["checks"] if check["name"] == "topology")
    assert topology["data"]["hosts"] == 1 and "DeepSpeed's launcher" in topology["found"]


@pytest.mark.launcher
def test_under_torchrun():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    data = launched(*command, "-m", "dmt_plugin.doctor")
    topology = next(check for check in data["checks"] if check["name"] == "topology")
    assert "torchrun" in topology["found"] and data["status"] != "fail"
