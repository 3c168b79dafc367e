"""One run saves into a folder at a time; a run that is gone, or has been started again, is no hindrance."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dmt_plugin.checkpoint import saver_lock
from dmt_plugin.checkpoint.saver_lock import LOCK, Holder, SaverLock, hold, let_go
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.topology.discovery import launched_run
from tests._util.ranks import run_ranks
from tests.integrations.runs import make, refused
from tests.test_placed_laws import launcher_env

FOREIGN = Holder("", "elsewhere", "00000000", 7, "99", "2026-01-01T00:00:00+00:00")


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[SaverLock]:
    made = SaverLock(tmp_path / "checkpoints", 40.0)
    yield made
    made.give_back()


def held_by(lock: SaverLock, holder: Holder, age: float = 0.0) -> None:
    lock.path.parent.mkdir(exist_ok=True)
    lock.path.write_text(json.dumps(asdict(holder)))
    os.utime(lock.path, times=(time.time() - age, time.time() - age))


def of(lock: SaverLock) -> Holder:
    return Holder(**json.loads(lock.path.read_text()))


def test_it_is_held_and_given_back(lock: SaverLock) -> None:
    lock.take("a run")
    assert of(lock) == lock.holder and of(lock).process == os.getpid() and of(lock).run == "a run"
    before = lock.path.read_text()
    lock.take("a run")
    assert lock.path.read_text() == before
    assert [p.name for p in lock.path.parent.iterdir()] == [LOCK]
    lock.give_back()
    assert not lock.path.exists()


def test_another_run_is_refused_and_told_who_holds_it(lock: SaverLock) -> None:
    held_by(lock, replace(FOREIGN, run="monday"), age=30)
    with pytest.raises(CheckpointError) as raised:
        lock.take("tuesday")
    named = "process 7 on elsewhere of the run 'monday' (since 2026-01-01"
    for part in (named, "30 s ago", "lock_stale_s", str(lock.path)):
        assert part in str(raised.value), part
    assert of(lock).run == "monday" and [p.name for p in lock.path.parent.iterdir()] == [LOCK]


@pytest.mark.parametrize(
    ("holder", "age", "run"),
    [
        (FOREIGN, 41, ""),
        (replace(FOREIGN, run="nightly"), 1, "nightly"),
        (replace(FOREIGN, machine=saver_lock.machine(), process=2**22 + 1), 1, ""),
        (replace(FOREIGN, machine=saver_lock.machine(), process=os.getpid(), begun="1"), 1, ""),
    ],
    ids=["silent for too long", "started again elsewhere", "its process has ended", "its number is another's now"],
)
def test_who_is_gone_is_no_hindrance(lock: SaverLock, holder: Holder, age: float, run: str) -> None:
    held_by(lock, holder, age)
    lock.take(run)
    assert of(lock).process == os.getpid() and [p.name for p in lock.path.parent.iterdir()] == [LOCK]


@pytest.mark.parametrize(
    ("holder", "run"),
    [(FOREIGN, ""), (replace(FOREIGN, machine=saver_lock.machine(), process=os.getppid(), run="nightly"), "nightly")],
    ids=["two runs without a name", "one name, and both are there"],
)
def test_who_may_be_there_keeps_it(lock: SaverLock, holder: Holder, run: str) -> None:
    if holder.machine == saver_lock.machine():
        holder = replace(holder, begun=saver_lock._begun(holder.process))
    held_by(lock, holder, age=1)
    with pytest.raises(CheckpointError):
        lock.take(run)
    assert of(lock) == holder


def test_a_lock_that_cannot_be_read_holds_until_it_is_old(lock: SaverLock) -> None:
    held_by(lock, FOREIGN)
    lock.path.write_text("{")
    with pytest.raises(CheckpointError, match="unknown process"):
        lock.take("")
    os.utime(lock.path, times=(0, 0))
    lock.take("")
    assert of(lock) == lock.holder


def test_signs_of_life(tmp_path: Path) -> None:
    lock = SaverLock(tmp_path, 0.2)
    lock.take("")
    os.utime(lock.path, times=(0, 0))
    deadline = time.monotonic() + 30
    while lock.path.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lock.path.stat().st_mtime > 0
    lock.give_back()
    assert "dmt-saver-lock" not in [thread.name for thread in threading.enumerate()]


def test_who_lost_it_takes_no_life_from_the_next(tmp_path: Path) -> None:
    """A process that slept for too long: its folder is another's now, and stays that."""
    lock = SaverLock(tmp_path, 0.2)
    lock.take("")
    held_by(lock, FOREIGN)
    os.utime(lock.path, times=(1, 1))
    time.sleep(0.3)
    assert lock.path.stat().st_mtime == 1
    lock.give_back()
    assert of(lock) == FOREIGN


def test_without_hard_links(lock: SaverLock, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setattr(os, "link", none)
    lock.take("")
    assert of(lock) == lock.holder
    held_by(lock, FOREIGN)
    with pytest.raises(CheckpointError):
        SaverLock(lock.path.parent, 40.0).take("")


def test_who_is_slower_leaves_the_faster_one_alone(lock: SaverLock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs find the same dead one's lock; the other has it before this one comes to move it away."""
    held_by(lock, FOREIGN, age=1000)
    faster, mkdir = replace(FOREIGN, process=8), Path.mkdir

    def after_the_other(self: Path, *args: Any, **kwargs: Any) -> None:
        if self.name.endswith(".moving"):
            held_by(lock, faster)
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", after_the_other)
    with pytest.raises(CheckpointError, match="process 8"):
        lock.take("")
    assert of(lock) == faster


def test_a_run_that_died_while_it_took_over_is_no_hindrance(lock: SaverLock) -> None:
    held_by(lock, FOREIGN, age=1000)
    moving = lock.path.with_name(f"{LOCK}.moving")
    moving.mkdir()
    os.utime(moving, times=(0, 0))
    lock.take("")
    assert of(lock) == lock.holder and not moving.exists()


def taker(folder: str, start: Any, results: Any) -> None:
    start.wait()
    try:
        SaverLock(Path(folder), 10.0).take("")
        results.put(os.getpid())
    except CheckpointError:
        results.put(0)
    start.wait()  # nobody ends before all have tried


def test_one_of_many_gets_what_a_dead_run_left(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        held_by(SaverLock(tmp_path, 10.0), FOREIGN, age=1000)
        start, results = context.Barrier(4), context.Queue()
        processes = [context.Process(target=taker, args=(str(tmp_path), start, results)) for _ in range(4)]
        for process in processes:
            process.start()
        found = [results.get(timeout=60) for _ in processes]
        for process in processes:
            process.join(60)
        assert [process for process in found if process] == [of(SaverLock(tmp_path, 10.0)).process]


def test_engines_of_one_process_share_it(tmp_path: Path) -> None:
    one, other = object(), object()
    hold(tmp_path, one, "", 40.0)
    hold(tmp_path / ".", other, "", 40.0)
    let_go(one)
    assert (tmp_path / LOCK).exists()
    let_go(other)
    assert not (tmp_path / LOCK).exists()


def test_names_of_runs() -> None:
    assert launched_run({}) == "" and launched_run({"SLURM_JOB_ID": "12"}) == "slurm 12"
    assert launched_run({"SLURM_JOB_ID": "12", "TORCHELASTIC_RUN_ID": "none"}) == "slurm 12"
    assert launched_run({"SLURM_JOB_ID": "12", "TORCHELASTIC_RUN_ID": "agent"}) == "torchrun agent"


def saving(rank: int, world: int, folder: str) -> list[str]:
    """The folder is another run's; then it is ours until the engine is destroyed."""
    engine, _ = make("2x1", "dlrm", warmup=False)
    root, said = Path(folder), []
    if rank == 0:
        held_by(SaverLock(root, 300.0), FOREIGN)
    said.append(refused(lambda: engine.save_checkpoint(folder, tag="first")))
    if rank == 0:
        (root / LOCK).unlink()
    engine.save_checkpoint(folder, tag="first")
    said.append(str((root / LOCK).exists()))
    engine.load_checkpoint(folder)
    engine.destroy()
    return [*said, str((root / LOCK).exists())] if rank == 0 else said


@pytest.mark.processes
def test_an_engine_holds_the_folder_it_saves_into(tmp_path: Path) -> None:
    of_ranks = run_ranks(2, saving, str(tmp_path), env=partial(launcher_env, "2x1"))
    for first, *rest in of_ranks:
        assert "process 7 on elsewhere" in first and first.startswith("CheckpointError") and rest[0] == "True"
    assert of_ranks[0][-1] == "False" and sorted(p.name for p in tmp_path.iterdir()) == ["first", "latest"]
