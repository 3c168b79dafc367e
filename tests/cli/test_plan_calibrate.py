"""``dmt plan --calibrate``: a cluster from the records of runs, and records that cannot be taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from dmt_plugin.capture.example_call import example_of
from dmt_plugin.cli.plan import command
from dmt_plugin.compiler import captured_of, transform_captured
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError, DMTError, ReportError
from dmt_plugin.core.run_files import FORMAT
from dmt_plugin.planner.cluster.files import cluster_of
from dmt_plugin.report.run.records import read_run
from dmt_plugin.report.run.times import times_of
from dmt_plugin.topology.shape import Topology
from tests.planning import models

MODEL = "tests.planning.models:build"
CLUSTER = """
hosts: 2
ranks_per_host: 1
nic_GBps_per_host: 0.0125
cores_of_all_hosts: 2
tflops: {fp32: 0.05}
memory_GB: 4
"""
TABLES = {f"tables.{i}": [1000, 16] for i in range(8)}


def record(step: int, seconds: float, between: float = 0.0) -> dict[str, Any]:
    parts = {"between": between, "forward": seconds / 2, "backward": seconds / 2, "reduce": 0.0, "step": 0.0}
    return {
        "step": step, "samples": 256 * step, "steps": 1, "seconds": seconds + between, "cpu_s": 0.8 * seconds,
        "parts_s": parts, "exchanges": {}, "tower_ids": {}, "table_ids": {},
    }  # fmt: skip


def header(rank: int, **other: Any) -> dict[str, Any]:
    return {
        "run": FORMAT, "at": 1.0, "rank": rank, "host": rank, "lane": 0, "topology": "2x1", "device": "cpu",
        "plan": "p", "route": "hierarchical", "towers": [["a"], ["b"]], "tower_hosts": [0, 1], "every": 1,
        "batch_per_rank": 128, "accumulation": 1, "zero_stage": 0, "dense_dtype": "fp32", "micro_blocks": 2,
        "wire": {group: ["fp32", "fp32"] for group in ("lanes", "peers", "world")}, "once": [], "tables": TABLES,
        "configuration": {"train_micro_batch_size_per_gpu": 128, "dmt": {"towers": {"module": "none"}}}, **other,
    }  # fmt: skip


def recorded(folder: Path, records: list[dict[str, Any]], **other: Any) -> Path:
    folder.mkdir(parents=True)
    for rank in range(2):
        lines = [header(rank, **other), *records]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"run_rank{rank:05d}.jsonl").write_text(text)
    model, config = models.build(), DMTConfig()
    captured = captured_of(model, example_of(models.batch(), model), config)
    transform_captured(captured, model, config, Topology(2, 1)).plan.save(folder / "plan.json")
    return folder


STEPS = [record(step, 0.02) for step in range(1, 7)]


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(CLUSTER)
    return path


def run(*arguments: object) -> str:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner(env={"COLUMNS": "180"}).invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_a_cluster_is_written_that_plan_reads(tmp_path: Path, cluster: Path) -> None:
    runs, output = tmp_path / "runs", tmp_path / "ours.yaml"
    recorded(runs / "monday", STEPS)
    shown = run("--model", MODEL, "--cluster", cluster, "--calibrate", runs, "--output", output)
    for text in ("runs/monday", "not determined", "fitted", "ours.yaml", "row_us"):
        assert text in shown
    keys = yaml.safe_load(output.read_text())
    assert keys["nic_GBps_per_host"] == 0.0125 and keys["calibrated"].startswith("calibrated ")
    made = cluster_of(str(output))
    measured = set(keys["uncertainty"])
    assert measured and measured <= set(keys)
    assert any(figure.source == keys["calibrated"] for figure in made.figures().values())
    planned = run("--model", MODEL, "--cluster", output, "--batch-size", "128", "--json")
    assert json.loads(planned)["best"]["ms"] > 0


def test_as_data(tmp_path: Path, cluster: Path) -> None:
    runs = recorded(tmp_path / "monday", STEPS)
    shown = run(
        "--model", MODEL, "--cluster", cluster, "--calibrate", runs, "--output", tmp_path / "o.yaml", "--json"
    )  # fmt: skip
    data = json.loads(shown)
    assert data["runs"][0]["ms"] == pytest.approx(20.0) and data["runs"][0]["computing_ms"] == pytest.approx(16.0)
    assert set(data["constants"]) | set(data["refused"]) == {
        "nic_share", "fixed_ms", "moved_GBps", "exchange_ms", "row_us"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("other", "error", "message"),
    [
        ({"tables": {**TABLES, "tables.3": [500, 16]}}, ReportError, r"table tables\.3 has 500 rows of width 16 there"),
        ({"once": ["tables.1"]}, ReportError, "rows of 1 table"),
        ({"topology": "1x2", "host": 0}, ConfigError, "2 rank.s. per host"),
    ],
)
def test_records_of_something_else(
    tmp_path: Path, cluster: Path, other: dict[str, Any], error: type[DMTError], message: str
) -> None:
    folder = recorded(tmp_path / "run", STEPS)
    for rank in range(2):
        path = folder / f"run_rank{rank:05d}.jsonl"
        first, *rest = path.read_text().splitlines()
        changed = {**json.loads(first), **other, **({"lane": rank} if "topology" in other else {})}
        if "topology" in other:
            changed["tower_hosts"] = [0, 0]
        path.write_text("\n".join([json.dumps(changed), *rest]) + "\n")
    with pytest.raises(error, match=message):
        run("--model", MODEL, "--cluster", cluster, "--calibrate", folder, "--output", tmp_path / "o.yaml")
    assert not (tmp_path / "o.yaml").exists()


def test_records_that_are_not_enough(tmp_path: Path, cluster: Path) -> None:
    asked = ["--model", MODEL, "--cluster", cluster, "--output", tmp_path / "o.yaml", "--calibrate"]
    with pytest.raises(ReportError, match=r"no run_rank\*\.jsonl"):
        run(*asked, tmp_path)
    with pytest.raises(ReportError, match="at least 3 are needed"):
        run(*asked, recorded(tmp_path / "short", STEPS[:3]))
    old = [{key: value for key, value in own.items() if key != "cpu_s"} for own in STEPS]
    with pytest.raises(ReportError, match="without cpu_s"):
        run(*asked, recorded(tmp_path / "old", old))
    (recorded(tmp_path / "lost", STEPS) / "plan.json").unlink()
    with pytest.raises(ReportError, match=r"no plan\.json"):
        run(*asked, tmp_path / "lost")
    with pytest.raises(ConfigError, match=r"is there already"):
        run("--model", MODEL, "--cluster", cluster, "--output", cluster, "--calibrate", tmp_path / "lost")
    with pytest.raises(ConfigError, match="--batch-size, --sweep says nothing"):
        run(*asked, tmp_path / "lost", "--batch-size", 4, "--sweep", "hosts=2")
    with pytest.raises(ConfigError, match="on which cluster"):
        run("--model", MODEL, "--calibrate", tmp_path / "lost")


def test_an_earlier_version_did_not_say_what_it_ran(tmp_path: Path, cluster: Path) -> None:
    folder = recorded(tmp_path / "run", STEPS)
    for path in folder.glob("*.jsonl"):
        first, *rest = path.read_text().splitlines()
        old = {key: value for key, value in json.loads(first).items() if key not in ("tables", "wire")}
        path.write_text("\n".join([json.dumps(old), *rest]) + "\n")
    with pytest.raises(ReportError, match="earlier version: its first line does not say tables, wire"):
        run("--model", MODEL, "--cluster", cluster, "--calibrate", folder, "--output", tmp_path / "o.yaml")


def test_the_median_counts_and_steps_behind_something_else_do_not(tmp_path: Path) -> None:
    steps = [record(1, 9.0), *(record(n, 0.02) for n in range(2, 8)), record(8, 0.02, 5.0), record(9, 0.03, 5.0)]
    times = times_of(read_run(recorded(tmp_path / "run", steps)), "run")
    assert (times.seconds, times.records) == (0.02, 6) and times.busy == pytest.approx(0.016)
