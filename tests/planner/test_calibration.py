"""Constants that are fitted to runs: what made the times is found again, and what they do not tell is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.planner.calibration.constants import NIC_SHARE, constants_of
from dmt_plugin.planner.calibration.fit import Observed, calibrate, predicted_step
from dmt_plugin.planner.cluster.cluster import Cluster, Figure
from dmt_plugin.planner.cluster.files import cluster_of
from dmt_plugin.planner.time.step import Exchanges, Load
from dmt_plugin.topology.shape import Topology

CORES = """
hosts: 2
ranks_per_host: 2
nic_GBps_per_host: 0.0125
cores_of_all_hosts: 2
tflops: {fp32: 0.05}
memory_GB: 4
"""
LOAD = Load(
    ids=4e4, lookup=6e6, rows=(2.7e6, 2.7e6), dense=(1e8, 2e8), sums=2e5, lanes=(2e6, 2e6), shuffle=6e6, blocks=2,
    exchanges=Exchanges(4, 1, 1, 2),
)  # fmt: skip
WIDE = replace(LOAD, lookup=6e7, shuffle=6e7, lanes=(2e7, 2e7))
ONCE = replace(LOAD, lookup=2e6, rows=(7e5, 7e5), lanes=(5e5, 5e5), numbered=2e4)


def cores(tmp_path: Path) -> Cluster:
    path = tmp_path / "cores.yaml"
    path.write_text(CORES)
    return cluster_of(str(path))


def recorded(truth: Cluster, name: str, load: Load, hosts: int = 2, nic: float = 6.25e6) -> Observed:
    """A run as it would be recorded if the model were right with these constants."""
    run = Observed(name, load, Topology(hosts, 2), False, False, False, nic, 1.0, (1.0, 1.0), 1.0)
    step = predicted_step(truth, run)
    return replace(run, seconds=step.seconds, spread=(step.seconds, step.seconds), busy=step.compute)


def with_values(cluster: Cluster, values: dict[str, float]) -> Cluster:
    for constant in constants_of(cluster):
        cluster = constant.put(cluster, Figure(values[constant.key] * constant.unit, "truth"))
    return cluster


def test_constants_that_made_the_times_are_found_again(tmp_path: Path) -> None:
    values = {"nic_share": 0.9, "fixed_ms": 9.0, "moved_GBps": 5.0, "exchange_ms": 0.6, "row_us": 0.5}
    before = cores(tmp_path)
    truth = with_values(before, values)
    runs = [
        recorded(truth, f"{name} {hosts} {nic}", load, hosts, nic)
        for name, load in {"sptt": LOAD, "wide": WIDE, "once": ONCE, "blocks": replace(LOAD, blocks=6)}.items()
        for hosts, nic in ((2, 6.25e6), (4, 62.5e6), (2, 1e9))
    ]
    found = calibrate(before, runs, "here")
    assert not found.refused
    for one in found.fitted:
        value = one.value / one.constant.unit
        assert abs(value / values[one.constant.key] - 1) < 3 * one.error + 0.05, one.constant.key
    assert found.scatter < 0.02
    for run in runs:
        assert found.predicted[run.name].seconds == pytest.approx(run.seconds, rel=0.05)
    share = found.cluster.nic_share
    assert share is not None and share.source == "here" and share.low < share.value < share.high
    again = calibrate(before, runs, "here")
    assert again.fitted == found.fitted


def test_what_the_runs_do_not_tell_is_left_and_the_run_that_would_is_named(tmp_path: Path) -> None:
    before = cores(tmp_path)
    one = [recorded(before, "sptt", LOAD, nic=6.25e6)]
    found = calibrate(before, one, "here")
    assert "distinct rows sent once" in found.refused["row_us"]
    assert "row_us" not in {own.constant.key for own in found.fitted} and "nic_share" not in found.refused
    assert found.cluster.processors is not None and before.processors is not None
    assert found.cluster.processors.row == before.processors.row
    # One host has no link to others.
    alone = [recorded(before, "one host", LOAD, hosts=1)]
    assert "two hosts or more" in calibrate(before, alone, "here").refused[NIC_SHARE.key]


def test_accelerators() -> None:
    before = cluster_of("h100-dgx:2")
    truth = replace(before, nic_share=Figure(0.6, ""), fixed=Figure(4e-3, ""))
    big = replace(LOAD, rows=(4e8, 4e8), lookup=8e8, dense=(1e12, 2e12), lanes=(1e8, 1e8), blocks=1)
    small = replace(big, rows=(4e6, 4e6), lookup=8e6, dense=(1e10, 2e10), lanes=(1e6, 1e6))
    runs = []
    for name, load in {"big": big, "small": small, "dense": replace(big, rows=(4e6, 4e6))}.items():
        run = Observed(name, load, Topology(2, 8), False, False, False, None, 1.0, (1.0, 1.0), 1.0)
        step = predicted_step(truth, run)
        runs.append(replace(run, seconds=step.seconds, busy=step.compute))
    found = calibrate(before, runs, "here")
    fitted = {one.constant.key: one.value / one.constant.unit for one in found.fitted}
    assert fitted["nic_share"] == pytest.approx(0.6, rel=0.1) and fitted["fixed_ms"] == pytest.approx(4.0, rel=0.2)


def test_no_runs() -> None:
    with pytest.raises(ConfigError, match="no runs"):
        calibrate(cluster_of("h100-dgx:2"), [], "here")
