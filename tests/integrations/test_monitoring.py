"""What an observed run writes: records of every rank, monitor events, names in the comms logger; nothing when off."""

from __future__ import annotations

import csv
import json
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dmt_plugin.comm.wire.measured import Trip
from dmt_plugin.comm.wire.transport import Transport
from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.run_files import record_path
from dmt_plugin.doctor import tiny
from dmt_plugin.integrations.deepspeed.observer import Observer, _begin, _more, events_of
from dmt_plugin.integrations.deepspeed.run_header import _dedup
from dmt_plugin.report.run.records import read_run
from dmt_plugin.report.run.summary import summary_of
from dmt_plugin.topology.shape import Topology
from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env

STEPS, EVERY, ACCUMULATE = 6, 2, 2


def engine_with(folder: str | None, every: int = EVERY, **more: Any) -> Any:
    import dmt_plugin

    config = tiny.config({"module": "dlrm", "dim": 4}, Topology(2, 2), 60.0)
    config |= {"gradient_accumulation_steps": ACCUMULATE, **more}
    config["dmt"]["report"] = {"dir": folder, "every": every}
    config["dmt"]["lookup"]["backend"] = "torch"  # accumulates
    model = tiny.build()
    example = tiny.batch(0, tiny.SAMPLES)[:2]
    return dmt_plugin.initialize(
        model=model, model_parameters=model.parameters(), config=config, example_batch=example
    )[0]


def train(engine: Any, rank: int) -> None:
    dense, ids, label = tiny.batch(0, 4 * tiny.SAMPLES)
    own = slice(rank * tiny.SAMPLES, (rank + 1) * tiny.SAMPLES)
    for _ in range(STEPS * ACCUMULATE):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(engine(dense[own], ids[own]), label[own])
        engine.backward(loss)
        engine.step()


def observed(rank: int, world: int, folder: str) -> dict[str, Any]:
    import deepspeed

    monitor = {"enabled": True, "output_path": f"{folder}/csv", "job_name": "run"}
    engine = engine_with(folder, csv_monitor=monitor, comms_logger={"enabled": True})
    engine.dmt.traffic.reset()
    train(engine, rank)
    before = record_path(folder, rank).read_text()
    engine.eval()
    with torch.no_grad():  # an evaluation is no part of the steps
        engine(*tiny.batch(0, 4)[:2])
    assert record_path(folder, rank).read_text() == before
    logged = deepspeed.comm.comm.comms_logger.comms_dict
    traffic = {f"{n}/{p}": v for n, ps in engine.dmt.traffic.as_dict().items() for p, v in ps.items()}
    return {
        "traffic": traffic,
        "logged": {name: sum(entry[0] for entry in sizes.values()) for name, sizes in logged.items()},
        "tables": sorted({engine.dmt.plan.shard(t).table.name for t in engine.dmt.lookup.tables}),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("run")
    return folder, run_ranks(4, observed, str(folder), env=partial(launcher_env, "2x2"))


def records(folder: Path, rank: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    header, *rest = map(json.loads, record_path(folder, rank).read_text().splitlines())
    return header, rest


@pytest.mark.processes
def test_every_rank_writes_a_record_every_few_steps(run):
    folder, _ = run
    for rank in range(4):
        header, rest = records(folder, rank)
        assert [header[key] for key in ("rank", "host", "lane")] == [rank, rank // 2, rank % 2]
        assert header["topology"] == "2x2"
        assert [record["step"] for record in rest] == [2, 4, 6]
        assert all(record["steps"] == EVERY for record in rest)
        assert [record["table_lr"] for record in rest] == [tiny.LR] * 3
        assert rest[-1]["samples"] == STEPS * ACCUMULATE * 4 * tiny.SAMPLES


@pytest.mark.processes
def test_the_header_says_what_a_step_depends_on(run):
    header, _ = records(run[0], 1)
    assert (header["accumulation"], header["zero_stage"], header["dense_dtype"]) == (ACCUMULATE, 0, "fp32")
    assert (header["micro_blocks"], header["device_name"], header["once"]) == (2, "cpu", [])
    assert header["wire"] == {group: ["fp32", "fp32"] for group in ("lanes", "peers", "world")}
    assert header["tables"] and all(len(sizes) == 2 for sizes in header["tables"].values())
    kept = header["configuration"]
    assert kept["dmt"]["report"]["every"] == EVERY and kept["gradient_accumulation_steps"] == ACCUMULATE
    assert "csv_monitor" not in kept
    assert (header["hosts"], header["ranks_per_host"]) == (2, 2)
    assert header["dedup"] == {"mode": "auto", "features": []}
    assert header["effective"] == DMTConfig.model_validate(header["effective"]).model_dump(mode="json")
    assert header["effective"]["comm"]["prefetch"] is True and "prefetch" not in kept["dmt"]["comm"]
    of_tower = tiny.WIDTH * 4 + 4
    first = (tiny.TABLES * 4 + tiny.WIDTH) * 16 + 16
    dense = tiny.DENSE * tiny.WIDTH + tiny.WIDTH + first + 16 + 1
    assert header["parameters"] == {"dense": dense, "towers": of_tower}
    for record in records(run[0], 1)[1]:
        assert record["cpu_s"] > 0


def test_the_header_names_the_features_whose_rows_travel_once():
    features = [SimpleNamespace(name=name, tables=[table]) for name, table in (("a", "t0"), ("b", "t1"), ("c", "t0"))]
    state: Any = SimpleNamespace(plan=SimpleNamespace(features=features), config=DMTConfig(comm={"dedup": "on"}))
    assert _dedup(state, {"t0"}) == {"mode": "on", "features": ["a", "c"]}


@pytest.mark.processes
def test_parts_of_a_step_add_up_to_it(run):
    folder, _ = run
    for rank in range(4):
        for record in records(folder, rank)[1][1:]:  # the first one begins with the making of the engine
            parts = record["parts_s"]
            assert all(seconds > 0 for seconds in parts.values())
            assert sum(parts.values()) == pytest.approx(record["seconds"], rel=0.25, abs=2e-3)


@pytest.mark.processes
def test_bytes_of_the_records_are_those_counted(run):
    folder, results = run
    for rank, result in enumerate(results):
        rest = records(folder, rank)[1]
        for exchange, counted in result["traffic"].items():
            for where in ("other_hosts", "same_host"):
                told = sum(r["exchanges"].get(exchange, {}).get(where, 0.0) * r["steps"] for r in rest)
                # The evaluation at the end is counted by the traffic, and not by a record.
                assert 0 <= counted[where] - told <= counted[where] / STEPS, (exchange, where)
        times = [e for r in rest for e in r["exchanges"].values() if "in_flight_s" in e]
        assert times and all(0 <= e["waited_s"] <= e["in_flight_s"] for e in times)


@pytest.mark.processes
def test_ids_of_a_rank_are_those_of_its_host_peers(run):
    folder, results = run
    for rank, result in enumerate(results):
        for record in records(folder, rank)[1]:
            assert sorted(record["table_ids"]) == result["tables"]
            # One id per sample and table; a table sees the samples of all four ranks.
            assert set(record["table_ids"].values()) == {4.0 * tiny.SAMPLES * ACCUMULATE}
            assert sum(record["tower_ids"].values()) == sum(record["table_ids"].values())
            assert set(record["tower_ids"]) == {str(rank // 2)}


@pytest.mark.processes
def test_the_monitor_gets_events_of_all_ranks(run):
    folder, _ = run
    names = {file.stem: list(csv.reader(file.open()))[1:] for file in (folder / "csv").rglob("DMT_*.csv")}
    assert {"DMT_step_ms", "DMT_step_forward_ms", "DMT_step_slowest_rank_ms"} <= names.keys()
    assert any(name.endswith("_bytes_other_hosts") for name in names)
    assert any(name.endswith("_waited_ms") for name in names)
    assert len(names["DMT_step_ms"]) == 3
    for tower in (0, 1):  # rank 0 holds only the first: the other's comes from host 1, one record late
        assert [float(row[1]) for row in names[f"DMT_tower_{tower}_ids"]] == [4 * 4.0 * tiny.SAMPLES * ACCUMULATE] * 2


@pytest.mark.processes
def test_the_comms_logger_knows_the_exchanges_by_name(run):
    _, results = run
    for result in results:
        ours = {name: n for name, n in result["logged"].items() if name.startswith("dmt_")}
        assert any(name.endswith("_forward") for name in ours) and any(name.endswith("_backward") for name in ours)
        assert all(n % (STEPS * ACCUMULATE) == 0 for n in ours.values()), ours


def evaluated(rank: int, world: int, folder: str) -> list[dict[str, Any]]:
    """Training, an evaluation, training; two records each."""
    engine = engine_with(folder)
    train(engine, rank)
    engine.eval()
    with torch.no_grad():
        for _ in range(7):
            engine(*tiny.batch(0, 4)[:2])
    engine.train()
    train(engine, rank)
    return records(Path(folder), rank)[1]


@pytest.mark.processes
def test_an_evaluation_is_in_no_record(tmp_path):
    for found in run_ranks(4, evaluated, str(tmp_path), env=partial(launcher_env, "2x2")):
        half = len(found) // 2
        before, after = found[half - 1], found[half]  # full steps, and the ones right behind the evaluation
        assert before["exchanges"].keys() == after["exchanges"].keys()
        for name, entry in after["exchanges"].items():
            for key in ("count", "other_hosts", "same_host", "messages"):
                assert entry.get(key) == before["exchanges"][name].get(key), (name, key)


def unobserved(rank: int, world: int, folder: str) -> list[tuple[bool, ...]]:
    found = []
    for engine in (engine_with(None), engine_with(folder, every=0)):
        hooks = engine.dmt.lookup._forward_pre_hooks
        found.append((type(engine.dmt.transport) is Transport, "forward" not in vars(engine), not hooks))
        train(engine, rank)
    return found


@pytest.mark.processes
def test_nothing_is_there_when_nobody_reads(tmp_path):
    assert run_ranks(4, unobserved, str(tmp_path), env=partial(launcher_env, "2x2")) == [[(True,) * 3] * 2] * 4
    assert not list(tmp_path.glob("run_rank*"))


def test_a_count_that_was_reset_counts_from_zero():
    before = {"a": {"forward": {"other_hosts": 50, "messages": 5}}}
    assert _more({"other_hosts": 70, "messages": 6}, before, "a", "forward") == {"other_hosts": 20, "messages": 1}
    assert _more({"other_hosts": 20, "messages": 6}, before, "a", "forward") == {"other_hosts": 20, "messages": 6}


def test_events_are_named_for_monitors():
    exchange = {"other_hosts": 10, "same_host": 0, "itself": 3, "waited_s": 0.5, "in_flight_s": 1.0, "count": 1}
    record = {"seconds": 2.0, "table_lr": 0.1, "parts_s": {"forward": 1.0}}
    record |= {"exchanges": {"index (ahead)/forward": exchange}}
    assert events_of(record) == {
        "DMT/step/ms": 2000.0,
        "DMT/table_lr": 0.1,
        "DMT/step/forward_ms": 1000.0,
        "DMT/exchange/index_ahead_forward/bytes_other_hosts": 10,
        "DMT/exchange/index_ahead_forward/bytes_same_host": 0,
        "DMT/exchange/index_ahead_forward/waited_ms": 500.0,
        "DMT/exchange/index_ahead_forward/in_flight_ms": 1000.0,
    }


def test_trips_carry_marks():
    assert Trip("a", "forward", 8, 0.0, 1.0, 2.0).sent == 8


class Trips(list[Trip]):
    """Trips of a step that ends, in another thread, while one of them is noted."""

    ends: Any

    def append(self, trip: Trip) -> None:
        other = threading.Thread(target=self.ends)
        other.start()
        other.join(0.5)
        super().append(trip)
        self.other = other


def test_a_trip_at_the_end_of_a_step_is_counted():
    """The ids of the next batch arrive in a thread of their own, at any time."""
    groups: Any = SimpleNamespace(device=torch.device("cpu"), rank=0)
    observer = Observer(DMTConfig(report={"dir": None, "every": 10}), groups, DeepSpeedSettings({}))
    observer._engine = SimpleNamespace(global_steps=1)
    trips = observer._step.trips = Trips()
    trips.ends = observer._end_of_step
    observer._step.last = 0.0
    observer._note(Trip("index", "forward", 8, 0.0, 1.0, 2.0))
    trips.other.join()
    observer._step.last = 0.0
    observer._end_of_step()
    assert observer._sums.trips["index", "forward"][0] == 1


def test_a_run_that_goes_on_keeps_its_records(tmp_path):
    path = tmp_path / "new" / "run_rank00000.jsonl"
    _begin(path, {"run": 1})
    with path.open("a") as file:
        file.write('{"step": 10}\n{"step": 2')  # killed within a line
    _begin(path, {"run": 1, "again": True})
    assert path.read_text().splitlines() == ['{"run": 1}', '{"step": 10}', '{"step": 2', '{"run": 1, "again": true}']


@pytest.mark.processes
def test_the_report_reads_what_the_ranks_wrote(run):
    folder, _ = run
    found = read_run(folder)
    assert not found.notes and sorted(found.ranks) == [0, 1, 2, 3]
    data = summary_of(found)
    assert data["steps"] == {"first": EVERY + 1, "last": STEPS}
    # A record is made within a step's last call, so its steps and their parts are not of quite the same moments.
    assert sum(part["mean"] for part in data["parts"]) == pytest.approx(data["step_s"], rel=0.05, abs=2e-3)
    assert [tower["ids"] for tower in data["towers"]] == [4 * 4.0 * tiny.SAMPLES * ACCUMULATE] * 2
    assert all(0 < rank["waited_s"] < rank["step_s"] for rank in data["ranks"])
