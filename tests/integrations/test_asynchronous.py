"""Checkpoints that are written behind the steps: the same files as a save in the step, whatever happens meanwhile.

Everything is on real ranks, with a writer that is held where a test needs it to be late.
"""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn

from dmt_plugin.checkpoint import stored
from dmt_plugin.checkpoint.folder import find_checkpoint
from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.core.memory import MemoryLimit
from dmt_plugin.integrations.deepspeed.checkpoint import behind, writing
from dmt_plugin.model.memory import memory_need_of
from dmt_plugin.model.placed import place_graph
from dmt_plugin.topology.agreement import gather
from tests._util.ranks import run_ranks
from tests.integrations.runs import differences, everything, make, train
from tests.test_placed_laws import launcher_env

ASYNCHRONOUS = {"checkpoint": {"asynchronous": True}}

def freeze(model: nn.Module) -> None:
    for parameter in model.bottom.parameters():
        parameter.requires_grad_(False)


#: Topology, ZeRO stage, tables and precision; the model of the first has dropout and running statistics.
RUNS: dict[str, dict[str, Any]] = {
    "0, fbgemm": {"topology": "2x1", "tables": {"backend": "fbgemm"}},
    "1, torch, columns": {
        "topology": "1x2", "model": "dlrm", "stage": 1, "dense": "momentum", "prepare": freeze,
        "tables": {"optimizer": "adam", "backend": "torch"},
        "dmt": {"placement": {"strategy": "column_wise"}, "towers": {"module": "none"}},
    },
    "2, fbgemm, rows": {
        "topology": "1x2", "model": "dlrm", "stage": 2, "tables": {"backend": "fbgemm"},
        "dmt": {"placement": {"strategy": "row_wise"}},
    },
    "1, bf16": {"topology": "2x1", "model": "dlrm", "stage": 1, "ds": {"bf16": {"enabled": True}}},
}  # fmt: skip


class Counter:
    """An object of the user's, which hands out its state itself, not a copy."""

    def __init__(self) -> None:
        self.state = {"count": 0, "values": torch.zeros(3)}

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


class Held:
    """A writer that waits, where its rank is told to, until it is released."""

    def __init__(self, wait: bool = True) -> None:
        self.released = threading.Event()
        if not wait:
            self.released.set()

    def __call__(self, *args: Any) -> Any:
        assert self.released.wait(60)
        return writing.write(*args)


@contextmanager
def held(wait: bool = True) -> Iterator[Held]:
    """The writers of the block."""
    writer = Held(wait)
    with mock.patch.object(behind, "write", writer):
        try:
            yield writer
        finally:
            writer.released.set()


def files_of(folder: str, tag: str) -> dict[str, Any]:
    """What the manifest says, without what two checkpoints of one state differ in."""
    said = json.loads(Path(folder, tag, "dmt_checkpoint.json").read_text())
    own = {"tag", "sequence", "saved_at", "checksum"}
    assert all(said.pop(key) for key in own)
    assert said["files"].pop("state/.metadata")["bytes"] > 0
    return said


def same_as_in_the_step(rank: int, folder: str) -> list[str]:
    """Files of one step saved in both ways; two steps, and the user's objects change, before anything is written."""
    wrong = []
    for name, given in RUNS.items():
        run = {"model": "dcn_v2", **given}
        topology, model = run.pop("topology"), run.pop("model")
        engine, batch = make(topology, model, dmt={**run.pop("dmt", {}), **ASYNCHRONOUS}, **run)
        place, mine, counter = f"{folder}/{name}", {"rank": rank, "list": [1]}, Counter()
        engine.register_state("counter", counter)
        train(engine, batch, 2)
        asked = {"client_state": mine, "exclude_frozen_parameters": "prepare" in run}
        engine.save_checkpoint(place, tag="in the step", asynchronous=False, **asked)
        before, room = everything(engine), (engine.behind.bytes, engine.behind._snapshot._buffer.data_ptr())
        with held() as writer:
            engine.save_checkpoint(place, tag="behind", **asked)
            train(engine, batch, 2)
            mine["list"].append(2)
            counter.state["count"] += 1
            counter.state["values"] += 1
            checks = {
                "room since the start": room == (engine.behind.bytes, engine.behind._snapshot._buffer.data_ptr()),
                "it trains": bool(differences(before, everything(engine))),
                "not there yet": engine.behind.busy and not Path(place, "behind").exists(),
                "latest": Path(place, "latest").read_text() == "in the step",
            }
            writer.released.set()
            train(engine, batch, 1)
            checks["its path"] = engine.wait_for_checkpoint() == str(Path(place, "behind"))
        checks["once"] = engine.wait_for_checkpoint() is None and not engine.behind.busy
        checks["latest then"] = Path(place, "latest").read_text() == "behind"
        one, other = files_of(place, "in the step"), files_of(place, "behind")
        checks["the same"] = one == other
        checks["files"] = len(one["files"]) == 5
        wrong += [f"{name}: {what}" for what, right in checks.items() if not right]
        engine.destroy()
    return wrong


def refused(call: Callable[[], Any]) -> str:
    try:
        call()
    except CheckpointError as error:
        return str(error)
    return "it went through"


@contextmanager
def released_by_the_log(writer: Held) -> Iterator[list[str]]:
    """What the module says while the block lasts; that somebody waits releases the writer."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            if "waits for" in said[-1]:
                writer.released.set()

    handler = Handler()
    behind.logger.addHandler(handler)
    try:
        yield said
    finally:
        behind.logger.removeHandler(handler)


def what_waits(engine: Any, batch: Any, rank: int, folder: str) -> dict[str, Any]:
    """A save and a load begin while rank 0 has not begun to write; the log of rank 0 lets it."""
    said: dict[str, Any] = {}
    for tag, call in {
        "before a save": lambda: engine.save_checkpoint(folder, tag="second"),
        "before an asynchronous one": lambda: engine.save_checkpoint(folder, tag="third", asynchronous=True),
        "before a load": lambda: engine.load_checkpoint(folder)[0],
    }.items():
        engine.wait_for_checkpoint()
        with held(wait=rank == 0) as writer, released_by_the_log(writer) as log:
            engine.save_checkpoint(folder, tag=tag, asynchronous=True)
            state = everything(engine)
            found = call()
            said[tag] = [line for line in log if "waits for" in line]
        if tag == "before a load":
            said["loaded"] = (Path(found).name, differences(state, everything(engine)))
    numbers = {path.parent.name: json.loads(path.read_text())["sequence"] for path in Path(folder).glob("*/*.json")}
    said["order"] = sorted(numbers, key=lambda tag: numbers[tag])
    return said


def no_room(engine: Any, rank: int, folder: str) -> dict[str, Any]:
    """Memory that each rank alone would fit into, but not both; then memory for both."""
    groups = engine.dmt.groups
    engine.save_checkpoint(f"{folder}/room", asynchronous=True)
    engine.wait_for_checkpoint()
    kept = engine.behind._snapshot._buffer.data_ptr()
    engine.save_checkpoint(f"{folder}/room", asynchronous=True)
    said: dict[str, Any] = {"used again": engine.behind._snapshot._buffer.data_ptr() == kept}
    engine.wait_for_checkpoint()
    sizes = gather(groups, engine.behind.bytes)
    graph = place_graph(engine.dmt.placed.logical, engine.dmt.config, engine.dmt.topology, rank)
    config = engine.dmt.config.model_copy(update={"checkpoint": SimpleNamespace(asynchronous=True)})
    settings = DeepSpeedSettings({"optimizer": {"type": "Adam"}, "zero_optimization": {"stage": 1}})
    need = memory_need_of(graph, config, settings, 4).ranks[rank]
    said["need"] = need.tables + need.table_states <= engine.behind.bytes + 64 * 8 <= need.snapshot + 64 * 64
    engine.behind._snapshot.release()
    for name, available in (("for one", max(sizes)), ("for both", sum(sizes))):
        limit = MemoryLimit("a small machine", available if rank else 2**50, "small")
        with mock.patch.object(behind, "memory_limits", return_value=[limit]):
            said[name] = refused(lambda: engine.save_checkpoint(f"{folder}/room", asynchronous=True))
        said[f"taken {name}"] = engine.behind.bytes
    engine.wait_for_checkpoint()
    return said


def what_fails(engine: Any, batch: Any, rank: int, folder: str) -> dict[str, Any]:
    """A full disk on rank 1, a folder that goes away, a commit that fails: raised by what comes next, on all ranks."""
    said: dict[str, Any] = {}
    found = find_checkpoint(folder)
    assert found is not None
    full = mock.patch.object(stored.Writer, "write_data", side_effect=OSError(28, "No space left on device"))
    with held() as writer, full if rank else mock.MagicMock():
        engine.save_checkpoint(folder, tag="full", asynchronous=True)
        train(engine, batch, 1)
        writer.released.set()
        said["full disk"] = refused(engine.wait_for_checkpoint)
    said["once"] = engine.wait_for_checkpoint()
    said["left over"] = [path.name.partition(".")[0] for path in Path(folder).glob("*.saving")]
    dist.barrier()
    with held() as writer:
        engine.save_checkpoint(folder, tag="gone", asynchronous=True)
        dist.barrier()
        if rank == 0:
            shutil.rmtree(next(Path(folder).glob("gone.*")))
        dist.barrier()
        writer.released.set()
        said["folder gone"] = refused(lambda: engine.save_checkpoint(folder, tag="not begun"))
    with held() as writer:
        engine.save_checkpoint(folder, tag="load", asynchronous=True)
        dist.barrier()
        if rank == 0:
            shutil.rmtree(next(Path(folder).glob("load.*")))
        dist.barrier()
        writer.released.set()
        said["at a load"] = refused(lambda: engine.load_checkpoint(folder))
    still = find_checkpoint(folder)
    assert still is not None
    said["before"] = (still.path == found.path, still.manifest == found.manifest)
    engine.save_checkpoint(folder, tag="after", asynchronous=True)
    engine.wait_for_checkpoint()
    said["left over then"] = [path.name for path in Path(folder).glob("*.saving")]
    side = engine.behind._side._group
    with mock.patch.object(writing.folder, "commit", side_effect=OSError(5, "Input/output error")):
        engine.save_checkpoint(folder, tag="commit", asynchronous=True)
        said["at the end"] = refused(engine.destroy)
    known = dist.distributed_c10d._world.pg_map
    said["given back"] = side not in known and engine.dmt.groups.world not in known and engine.behind.bytes == 0
    said["a second time"] = refused(engine.destroy)
    return said


def other_behaviour(rank: int, world: int, folder: str) -> dict[str, Any]:
    wrong = same_as_in_the_step(rank, folder)
    engine, batch = make("2x1", "dlrm", stage=1)
    train(engine, batch, 1)
    said: dict[str, Any] = {"the same": wrong}
    said["ranks differ"] = refused(lambda: engine.save_checkpoint(folder, asynchronous=rank == 1))
    said["no bool"] = refused(lambda: engine.save_checkpoint(folder, asynchronous="yes"))
    said["nothing kept"] = engine.behind.bytes
    said |= no_room(engine, rank, folder)
    said |= what_waits(engine, batch, rank, f"{folder}/waits")
    said |= what_fails(engine, batch, rank, f"{folder}/waits")

    engine, batch = make("2x1", "dlrm", dmt=ASYNCHRONOUS)
    train(engine, batch, 1)
    engine.save_checkpoint(f"{folder}/end", tag="destroyed")
    engine.destroy()
    said["destroyed"] = Path(folder, "end", "destroyed").is_dir()
    engine, batch = make("2x1", "dlrm", dmt=ASYNCHRONOUS)

    def when_all_groups_are_gone(*args: Any) -> Path:
        while dist.is_initialized():
            time.sleep(0.01)
        time.sleep(1)  # by then the process would be gone
        return writing.write(*args)

    behind.write = when_all_groups_are_gone  # to the end of the process, which waits
    engine.save_checkpoint(f"{folder}/end", tag="exit")
    return said


@pytest.mark.processes
def test_saves_behind_the_steps(tmp_path: Path) -> None:
    results = run_ranks(2, other_behaviour, str(tmp_path), timeout=240, env=partial(launcher_env, "2x1"))
    for rank, said in enumerate(results):
        assert said["the same"] == []
        assert "rank 0 saves with asynchronous = False, rank 1 True" in said["ranks differ"]
        assert "asynchronous='yes'" in said["no bool"] and "dmt.checkpoint.asynchronous" in said["no bool"]
        assert said["nothing kept"] == 0 and said["used again"] and said["need"], said
        for part in ("global_step1 takes", "rank(s) 0, 1, and a small machine has", "save_checkpoint(asynchronous=Fa"):
            assert part in said["for one"], said["for one"]
        assert said["taken for one"] == 0 < said["taken for both"] and said["for both"] == "it went through"
        for tag, doing in (
            ("before a save", "saving second"),
            ("before an asynchronous one", "saving third"),
            ("before a load", "load_checkpoint"),
        ):
            assert said[tag] == ([f"{doing} waits for the checkpoint {tag}, which is still being written"] * (not rank))
        assert said["loaded"] == ("before a load", [])
        tags = ["before a save", "second", "before an asynchronous one", "third", "before a load"]
        assert said["order"] == tags
        known = "written behind the steps, was not committed; those before are as they were: "
        assert f"the checkpoint full, {known}rank 1" in said["full disk"] and "No space left" in said["full disk"]
        assert said["once"] is None
        for name, tag in (("folder gone", "gone"), ("at a load", "load")):
            assert f"the checkpoint {tag}, {known}rank {rank}: " in said[name] and "No such file" in said[name]
        assert said["before"] == (True, True)
        assert said["left over"] == ["full"] and said["left over then"] == []
        assert f"the checkpoint commit, {known}rank 0" in said["at the end"] and "Input/output" in said["at the end"]
        assert said["given back"] and said["a second time"] == "it went through" and said["destroyed"]
    at_the_end = find_checkpoint(tmp_path / "end")
    assert at_the_end is not None and at_the_end.path.name == "exit"
    assert not list((tmp_path / "end").glob("*.saving"))


def writer_of(work: Callable[..., Any], timeout_s: float) -> behind._Writer:
    """A writer that does ``work``, alone."""
    prepared: Any = SimpleNamespace(name="late", temporary=Path("late.saving"))
    groups: Any = SimpleNamespace(rank=0, timeout_s=timeout_s)
    with mock.patch.object(behind, "write", lambda prepared, groups, meet, each: work(each)):
        writer = behind._Writer(prepared, groups, SimpleNamespace(gather=None))  # type: ignore[arg-type]
        writer.start()
        return writer


def test_a_writer_that_hangs_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    released = threading.Event()
    writer = writer_of(lambda each: released.wait(60), timeout_s=0.1)
    own = behind.Behind(writer._groups, mock.MagicMock())
    own._writer = writer
    with pytest.raises(CheckpointError, match=r"late .* has not got on for dmt\.comm\.timeout_s = 0\.1 s on rank 0"):
        own.wait()
    behind._finish(writer)
    assert "the checkpoint late is unfinished" in caplog.text
    released.set()
    assert own.wait() is True


def test_a_writer_that_gets_on_is_waited_for() -> None:
    """Longer than the limit, which is for one thing that it does."""
    clock, looked = SimpleNamespace(now=0), threading.Event()

    def monotonic() -> int:
        looked.set()
        return clock.now

    def work(each: Callable[[], None]) -> str:
        for _ in range(5):
            looked.clear()
            assert looked.wait(60)  # the other has looked at the clock
            clock.now += 10
            each()
        return "done"

    fake = SimpleNamespace(monotonic=monotonic)
    with mock.patch.object(behind, "time", fake), mock.patch.object(behind, "_LOOK_S", 0.01):
        writer = writer_of(work, timeout_s=15)
        assert writer.ended() and writer.place == "done" and clock.now == 50
