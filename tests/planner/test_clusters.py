"""Presets, ``cluster.yaml``, probes of the doctor, and the rates that follow from them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.planner.cluster.cluster import UNVERIFIED
from dmt_plugin.planner.cluster.files import cluster_of, read_cluster
from dmt_plugin.planner.cluster.presets import LEAST_SHARE, PRESETS
from dmt_plugin.planner.cluster.rates import World, corners, flops_of
from dmt_plugin.planner.paper.figures import flat_efficiency, sum_efficiency
from dmt_plugin.planner.time.devices import DEVICES
from dmt_plugin.planner.time.step import Load
from dmt_plugin.planning.sweep import axis_of
from dmt_plugin.report.plan.choice import cluster_table
from dmt_plugin.topology.shape import Topology

YAML = """
hosts: 16
ranks_per_host: 8
nic_GBps: 50
nvlink_GBps: 450
hbm_TBps: 3.35
tflops: {fp32: 66.9, tf32: 494.7}
memory_GB: 80
alltoall_efficiency: {16: 0.8, 64: 0.5}
fixed_ms: [2, 8]
"""
LOAD = Load(ids=1.0, lookup=1.0, rows=(64e6, 64e6), dense=(1.0, 1.0), sums=1.0, lanes=(1.0, 1.0))


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    return str(path)


def test_presets_say_where_each_number_is_from() -> None:
    for name, cluster in PRESETS.items():
        assert cluster.name == name and all(figure.source for figure in cluster.figures().values())
        assert all(f.low <= f.value <= f.high for f in cluster.figures().values())
    assert PRESETS["h100-dgx"].nic.value == DEVICES["H100"].nic and PRESETS["gb200-nvl72"].ranks_per_host == 72
    for name in ("aws-p5", "ethernet-25g", "gb200-nvl72"):
        nic = PRESETS[name].nic
        assert nic.source.startswith(UNVERIFIED) and nic.low == LEAST_SHARE * nic.value
    assert PRESETS["ethernet-25g"].nic.value == 25e9 / 8 / 8 and PRESETS["ethernet-25g"].shared_nic


def test_a_preset_with_hosts() -> None:
    cluster = cluster_of("h100-dgx:8")
    assert (cluster.hosts, cluster.ranks_per_host, cluster.ranks) == (8, 8, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("h100-dgz:8", r'did you mean "h100-dgx"'),
        ("h100-dgx", r'how many hosts\? Write "h100-dgx:8"'),
        ("h100-dgx:0", "a preset and a number of hosts"),
        ("h100-dgx:x", "a preset and a number of hosts"),
        ("nothing.yaml", "cannot be read"),
    ],
)
def test_what_is_no_cluster(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cluster_of(text)


def test_a_file(tmp_path: Path) -> None:
    cluster = read_cluster(written(tmp_path, YAML))
    assert (cluster.name, cluster.hosts, cluster.nic.value, cluster.memory.value) == ("cluster", 16, 50e9, 80e9)
    assert cluster.nic.source.startswith("yours") and cluster.fixed.value == pytest.approx(4e-3)
    assert (cluster.fixed.low, cluster.fixed.high) == (2e-3, 8e-3)
    assert cluster.alltoall is not None and cluster.alltoall.at(16) == 0.8
    assert cluster_of(f"{tmp_path / 'cluster.yaml'}:4").hosts == 4


def test_a_file_on_top_of_a_preset(tmp_path: Path) -> None:
    cluster = read_cluster(written(tmp_path, "preset: h100-dgx\nhosts: 2\nnic_GBps_per_host: 25\nfixed_ms: 3\n"))
    assert cluster.nic.value == 25e9 / 8 and cluster.shared_nic
    assert cluster.lanes == PRESETS["h100-dgx"].lanes and cluster.fixed.low == cluster.fixed.high == 3e-3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (YAML.replace("nic_GBps: 50", "nic_GBs: 50"), r'did you mean "nic_GBps"'),
        (YAML.replace("nic_GBps: 50", "nic_GBps: 400000"), r"nic_GBps: found 400000, .*100 Gbit/s is 12.5"),
        (YAML.replace("nic_GBps: 50", ""), r"missing nic_GBps \(or nic_GBps_per_host\)"),
        (YAML.replace("nic_GBps: 50", "nic_GBps: fast"), "nic_GBps: .*number"),
        (YAML.replace("nic_GBps: 50", "nic_GBps: .nan"), "nic_GBps: .*finite"),
        (YAML.replace("hbm_TBps: 3.35", "hbm_TBps: 3350"), "hbm_TBps: found 3350"),
        (YAML + "nic_GBps_per_host: 3\n", "keep one"),
        (YAML.replace("tf32: 494.7", "tf23: 494.7"), r'did you mean "tf32"'),
        (YAML.replace("[2, 8]", "[8, 2]"), r"fixed_ms: found \[8"),
        (YAML.replace("0.5", "50"), "alltoall_efficiency: found .*0 to 1"),
        (YAML.replace("hosts: 16", ""), "how many hosts"),
        ("- 1\n", "found list, expected keys"),
        ("hosts: [", "not valid YAML"),
    ],
)
def test_a_file_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_cluster(written(tmp_path, text))


def probe(tmp_path: Path, lanes: int = 8, kinds: tuple[str, ...] = ("inside hosts", "between hosts")) -> str:
    data = {kind: {"latency_us": 10.0, "GB_per_s": 40.0 if kind == "between hosts" else 300.0} for kind in kinds}
    checks = [{"name": "topology", "data": {"hosts": 2, "ranks_per_host": lanes}}, {"name": "links", "data": data}]
    path = tmp_path / "doctor.json"
    path.write_text(json.dumps({"status": "ok", "checks": checks}))
    return str(path)


def test_a_probe_goes_before_the_data_sheet_and_no_share_is_taken_off(tmp_path: Path) -> None:
    cluster = cluster_of("h100-dgx:4", probe(tmp_path))
    assert (cluster.nic.value, cluster.lanes.value) == (40e9, 300e9) and cluster.nic.source.startswith("probe of 20")
    rates = World(cluster).rates(Topology(4, 8), LOAD, flat=False, ring=False)
    assert (rates.rows, rates.lanes) == (40e9, 300e9)
    sheet = World(cluster_of("h100-dgx:4")).rates(Topology(4, 8), LOAD, flat=False, ring=False)
    assert sheet.rows < 50e9 and sheet.lanes < 0.6 * 450e9


def test_a_probe_of_all_ranks_goes_before_the_papers_figure(tmp_path: Path) -> None:
    path = Path(probe(tmp_path))
    data = json.loads(path.read_text()) | {"date": "2026-11-30"}
    links = data["checks"][1]["data"]
    slow = {"bytes": 2**18, "GB_per_s": 1.0}
    links["between hosts"]["blocks"] = [slow, {"bytes": 2**22, "GB_per_s": 40, "low_GB_per_s": 35, "high_GB_per_s": 42}]
    links["all ranks"] = {
        "ranks": 16,
        "all_to_all": [slow, {"bytes": 2**22, "GB_per_s": 20, "low_GB_per_s": 16, "high_GB_per_s": 22}],
        "all_reduce": [slow, {"bytes": 2**22, "GB_per_s": 30, "low_GB_per_s": 30, "high_GB_per_s": 30}],
    }
    path.write_text(json.dumps(data))
    few, many = (cluster_of(f"h100-dgx:{hosts}", str(path)) for hosts in (2, 16))
    assert few.nic.source == f"probe of 2026-11-30: {path}"
    assert (few.nic.low, few.nic.value, few.nic.high) == (35e9, 40e9, 42e9)
    told = few.figures()
    assert (told["everyone"].low, told["everyone"].value, told["everyone"].high) == (16e9, 20e9, 22e9)
    flat = World(few).rates(Topology(2, 8), LOAD, flat=True, ring=True)
    assert (flat.rows, flat.ids, flat.sums) == (20e9, 20e9, 30e9)
    towers = World(few).rates(Topology(2, 8), LOAD, flat=False, ring=False)
    assert (towers.rows, towers.ids, towers.sums) == (40e9, 20e9, 40e9)
    larger = World(many, flat=1.4).rates(Topology(16, 8), LOAD, flat=True, ring=True)
    assert larger.rows == pytest.approx(20e9 * flat_efficiency().at(128) / 1.4 / flat_efficiency().at(16))
    assert larger.sums == pytest.approx(30e9 * sum_efficiency().at(128) / sum_efficiency().at(16))
    ends = {w.rates(Topology(2, 8), LOAD, flat=True, ring=True).rows for w in corners(few)}
    assert ends == {16e9, 22e9}
    swept, _ = axis_of("nic=80").at(80.0, few, 1)
    assert World(swept).rates(Topology(2, 8), LOAD, flat=True, ring=True).rows == pytest.approx(40e9)
    assert "exchange of all 16 ranks, per rank" in {row["name"] for row in cluster_table(few).rows}
    links["all ranks"]["ranks"] = 0
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=r"not what dmt doctor --json prints \(ValueError: all ranks: found 0 rank"):
        cluster_of("h100-dgx:2", str(path))


def test_probes_of_another_cluster(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"4 rank\(s\) per host, and --cluster h100-dgx has 8"):
        cluster_of("h100-dgx:4", probe(tmp_path, lanes=4))
    with pytest.raises(ConfigError, match="no measurement of links between hosts"):
        cluster_of("h100-dgx:4", probe(tmp_path, kinds=("inside hosts",)))
    assert cluster_of("h100-dgx:1", probe(tmp_path, kinds=("inside hosts",))).lanes.value == 300e9
    (tmp_path / "doctor.json").write_text("[]")
    with pytest.raises(ConfigError, match="not what dmt doctor --json prints"):
        cluster_of("h100-dgx:4", str(tmp_path / "doctor.json"))


def test_rates_by_ranks_and_type() -> None:
    cluster = cluster_of("a100-dgx:8")
    flat = World(cluster, flat=1.4).rates(Topology(8, 8), LOAD, flat=True, ring=False)
    assert flat.rows == flat.ids == pytest.approx(25e9 * flat_efficiency().at(64) / 1.4)
    few = World(cluster, flat=1.4).rates(Topology(4, 8), LOAD, flat=True, ring=False)
    assert few.rows == pytest.approx(25e9 * flat_efficiency().at(32))
    assert flops_of(cluster, True).value == 312e12 and flops_of(cluster, False).value == 156e12


def test_corners_hold_every_end() -> None:
    worlds = list(corners(cluster_of("aws-p5:4")))
    assert {w.cluster.nic.value for w in worlds} == {25e9, 50e9}
    assert {w.cluster.fixed.value for w in worlds} == {2e-3, 12e-3} and len({w.flat for w in worlds}) == 2
    assert len(worlds) == 16 and len(list(corners(cluster_of("h100-dgx:4")))) == 8


CORES = """
hosts: 4
ranks_per_host: 2
nic_GBps_per_host: 0.0125
cores_of_all_hosts: 2
tflops: {fp32: 0.05}
memory_GB: 4
moved_GBps: 8
exchange_ms: 0.2
nic_share: 0.9
fixed_ms: 20
uncertainty: {moved_GBps: 0.1, nic_share: 0.2}
calibrated: calibrated on a run
"""


def test_ranks_on_processor_cores(tmp_path: Path) -> None:
    cluster = cluster_of(written(tmp_path, CORES))
    own = cluster.processors
    assert own is not None and (own.cores, own.together) == (2, True)
    assert (own.moved.low, own.moved.value, own.moved.high) == pytest.approx((8e9 / 1.2, 8e9, 9.6e9))
    assert own.moved.source == "calibrated on a run" and cluster.nic.source.startswith("yours")
    assert cluster.nic_share is not None and cluster.nic_share.high == 1.0  # never more than all of the line rate
    rates = World(cluster).cores()
    assert rates.link == pytest.approx(0.9 * 12.5e6) and rates.flops == pytest.approx(0.8 * 0.05e12)
    slow, quick = World(cluster).step(Topology(4, 2), LOAD, flat=False, ring=False).seconds, []
    quick = [world.step(Topology(4, 2), LOAD, flat=False, ring=False).seconds for world in corners(cluster)]
    assert min(quick) < slow < max(quick)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("cores_of_all_hosts: 2", "nvlink_GBps: 5\nhbm_TBps: 1"), "moved_GBps is of processor cores"),
        (("fixed_ms: 20", "fixed_ms: 20\ncores_per_host: 8"), "answer one question"),
        (("fixed_ms: 20", "fixed_ms: 20\nnvlink_GBps: 5"), "nvlink_GBps is of accelerators"),
        (("tflops: {fp32: 0.05}", ""), r"missing tflops\. Say them\."),
        (("nic_share: 0.9", "nic_share: 1.5"), "nic_share"),
        (("{moved_GBps: 0.1", "{moved_GBs: 0.1"), 'did you mean "moved_GBps"'),
    ],
)
def test_cores_that_cannot_be(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cluster_of(written(tmp_path, CORES.replace(*change)))


def test_a_share_that_was_measured_goes_before_the_curves(tmp_path: Path) -> None:
    cluster = cluster_of(written(tmp_path, YAML + "nic_share: 0.5\nintensity: 20\n"))
    for flat in (True, False):
        rates = World(cluster).rates(Topology(16, 8), LOAD, flat=flat, ring=False)
        assert rates.rows == 0.5 * 50e9
    assert rates.flops == pytest.approx(1 / (1 / (0.8 * 494.7e12) + 1 / (20 * 3.35e12)))
