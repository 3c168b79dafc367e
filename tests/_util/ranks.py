"""Run a function on several ranks, each in a process of its own, and bring the results home.

1. Each rank is a process with one thread and a process group, of gloo unless set otherwise, that meets at a file.
   It is forked from a server that has imported what takes seconds to import (``warm.py``), and has done nothing else;
   beside an accelerator, which no fork survives, it is spawned.
2. A rank leaves its pickled result or its traceback in a file; the parent reads it when the process is gone.
3. After the first failure the others get ``grace`` seconds to fail by themselves, so that what they say is
   seen too; then, and at ``timeout``, whatever still runs is killed.
"""

from __future__ import annotations

import os
import pickle
import random
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

RankEnv = Mapping[str, str] | Callable[[int], Mapping[str, str]]

# What a launcher around the test run itself may have set must not reach the ranks.
LAUNCHER_VARIABLES = re.compile(
    r"(LOCAL_|CROSS_|GROUP_)?(RANK|SIZE|WORLD_SIZE)|(MASTER|OMPI|MPI|PMI|SLURM|TORCHELASTIC)_.*"
)


class RanksFailed(AssertionError):
    """Some ranks failed: ``failures`` maps each of them to its traceback or to how it ended."""

    def __init__(self, failures: Mapping[int, str]) -> None:
        self.failures = dict(failures)
        blocks = [f"--- rank {rank} ---\n{text.rstrip()}" for rank, text in sorted(self.failures.items())]
        super().__init__(f"{len(blocks)} rank(s) failed\n" + "\n".join(blocks))


def _rank_main(
    rank: int,
    world_size: int,
    folder: str,
    init_timeout: float,
    backend: str,
    variables: Mapping[str, str],
    fn: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    _set_variables(variables)
    random.seed()  # a fork has its parent's; a process of its own would not
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            backend,
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=init_timeout),
        )
        outcome = ("ok", pickle.dumps(fn(rank, world_size, *args)))
    except BaseException:
        outcome = ("failed", traceback.format_exc())
    draft = Path(folder, f"draft.{rank}")
    draft.write_bytes(pickle.dumps(outcome))
    draft.rename(Path(folder, f"outcome.{rank}"))
    if outcome[0] == "failed":
        os._exit(1)  # a clean shutdown could wait for ranks that will never come
    dist.destroy_process_group()


def run_ranks(
    world_size: int,
    fn: Callable[..., Any],
    *args: Any,
    timeout: float = 120,
    env: RankEnv | None = None,
    init_timeout: float = 60,
    grace: float = 20,
    may_die: Collection[int] = (),
    backend: str = "gloo",
) -> list[Any]:
    """Call ``fn(rank, world_size, *args)`` on every rank and return the results in rank order.

    Args:
        world_size: Number of ranks.
        fn: A module-level function (it is pickled by name); so are its arguments and results.
        timeout: Seconds until every rank that still runs is killed and reported.
        env: Variables for all ranks, or a function from the rank to its variables.
        init_timeout: Seconds, the rendezvous' and the default group's time limit.
        grace: Seconds the other ranks may go on after the first failure.
        may_die: Ranks that may end without a result (their result is then None).
        backend: Of the default process group.

    Raises:
        RanksFailed: With the traceback of every rank that failed.
    """
    context = _context(backend)
    with tempfile.TemporaryDirectory(prefix="ranks-") as folder:
        processes = []
        for rank in range(world_size):
            # What stock DeepSpeed compiles is no other test's, and no user's.
            own = {"TORCH_EXTENSIONS_DIR": f"{folder}/extensions"}
            variables = {**own, **(env(rank) if callable(env) else (env or {}))}
            with mock.patch.dict(os.environ):
                _set_variables(variables)
                # A spawned rank imports before it can set its variables by itself.
                rank_args = (rank, world_size, folder, init_timeout, backend, dict(variables), fn, args)
                process = context.Process(target=_rank_main, args=rank_args, daemon=True)
                process.start()
            processes.append(process)
        try:
            _wait(processes, timeout, grace, may_die)
            late = {rank for rank, process in enumerate(processes) if process.is_alive()}
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
        return _collect(Path(folder), processes, late, may_die)


def _set_variables(variables: Mapping[str, str]) -> None:
    """Those of a rank, instead of what a launcher has set."""
    for name in filter(LAUNCHER_VARIABLES.fullmatch, list(os.environ)):
        del os.environ[name]
    os.environ.update({"OMP_NUM_THREADS": "1", **variables})


def _context(backend: str) -> Any:
    if backend != "gloo" or torch.cuda.is_available():
        return mp.get_context("spawn")
    return server()


def server() -> Any:
    """The context of processes that are forked from what has imported everything."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["tests._util.warm"])
    forkserver.ensure_running()  # now: the variables of the first test's ranks are not for all others
    return context


def _wait(processes: list[Any], timeout: float, grace: float, may_die: Collection[int]) -> None:
    deadline = time.monotonic() + timeout
    failed = False
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        fallen = {rank for rank, process in enumerate(processes) if process.exitcode not in (None, 0)}
        if not failed and fallen - set(may_die):
            failed = True
            deadline = min(deadline, time.monotonic() + grace)
        time.sleep(0.02)


def _collect(folder: Path, processes: list[Any], late: set[int], may_die: Collection[int]) -> list[Any]:
    results: list[Any] = []
    failures: dict[int, str] = {}
    for rank, process in enumerate(processes):
        file = folder / f"outcome.{rank}"
        kind, content = pickle.loads(file.read_bytes()) if file.exists() else ("gone", None)
        results.append(pickle.loads(content) if kind == "ok" else None)
        if kind == "failed":
            failures[rank] = content
        elif rank in late:
            ready = " (its result was ready)" if kind == "ok" else ""
            failures[rank] = f"still running at the time limit, killed{ready}"
        elif kind == "gone" and rank not in may_die:
            failures[rank] = f"ended with exit code {process.exitcode} and no result"
    if failures:
        raise RanksFailed(failures)
    return results
