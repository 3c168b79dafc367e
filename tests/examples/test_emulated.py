"""The demo's runs on an emulated network: what is started where, and what is said where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from rich.console import Console

from benchmarks.cluster import ClusterUnavailable
from benchmarks.cluster.shape import Shape
from examples import emulated, results, two_hosts


class PretendedCluster:
    """Is there at once; no host of it is."""

    def __init__(self, hosts: int, lanes: int, rate: str) -> None:
        assert rate == emulated.RATE
        self.shape = Shape("demo", hosts, lanes, 100e6)

    def __enter__(self) -> PretendedCluster:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "flights.npz").write_text("")
    (tmp_path / "torch_extensions").mkdir()
    return tmp_path


def arguments(name: str, folder: Path, steps: int) -> list[str]:
    return [name, str(folder), str(steps)]


def test_where_there_is_no_network_it_says_why(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*given: Any) -> None:
        raise ClusterUnavailable("network namespaces need root")

    monkeypatch.setattr(emulated, "Cluster", unavailable)
    console = Console(record=True, width=120)
    assert emulated.run_all(out, arguments, 60.0, console) == {"why": "network namespaces need root"}
    assert "not here: network namespaces need root" in console.export_text()


def test_every_run_is_started_on_both_hosts(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def run(name: str, script: list[str], folder: Path, *, timeout_s: float, network: two_hosts.Network) -> None:
        assert (script, timeout_s) == ([name, str(folder), str(emulated.STEPS)], 60.0)
        assert (folder / "flights.npz").exists() and (folder / "torch_extensions").is_dir()
        started.append((name, network))
        (folder / name).mkdir()
        (folder / name / "metrics.json").write_text(json.dumps({"samples_per_s": 100.0 * len(started)}))

    def fails(*given: Any, **more: Any) -> None:
        raise two_hosts.RunError("exit code 1")

    monkeypatch.setattr(emulated, "Cluster", PretendedCluster)
    monkeypatch.setattr(two_hosts, "run", run)
    found = emulated.run_all(out, arguments, 60.0, Console(record=True))
    assert [name for name, _ in started] == list(emulated.ORDER) and set(emulated.ORDER) == set(results.RUNS)
    network = started[0][1]
    assert network.variables["GLOO_SOCKET_IFNAME"] == "eth0" and network.address != two_hosts.LOOPBACK.address
    command = list(network.on(1, ["deepspeed", "train.py"]))
    assert command[:3] == ["ip", "netns", "exec"] and command[-2:] == ["deepspeed", "train.py"]
    assert command != list(network.on(0, ["deepspeed", "train.py"]))
    table = emulated.speed_table(found, {name: {"cross_host_bytes_per_sample": 1.0} for name in results.RUNS})
    assert {row["run"]: row["ratio"] for row in table.rows} == {"flat": 1, "sptt": 2, "dmt": 3, "stock": 4}
    monkeypatch.setattr(two_hosts, "run", fails)
    found = emulated.run_all(out, arguments, 60.0, Console(record=True))
    assert (found["samples_per_s"], found["why"]) == ({}, "exit code 1")
    monkeypatch.setattr(emulated, "LONGEST_S", -1.0)
    assert emulated.run_all(out, arguments, 60.0, Console(record=True))["samples_per_s"] == {}
