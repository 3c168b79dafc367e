"""Functions on the ranks of a cluster, in processes forked from this one.

What this process has imported is there in every rank at once: with torch, TorchRec and DeepSpeed that saves most of a
minute. In return it must not have started threads that a fork would lose (a process group, a backward pass).

1. Each rank is forked, enters its host, and gets the variables that a launcher would set. What exists before is out of
   the garbage collector's sight, which would write to all of it: it stays one copy for all ranks.
2. It leaves its pickled result or its traceback in a file.
3. After the first failure the others get ``grace_s`` to end by themselves; then, and at ``timeout_s``, they are killed.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cluster.errors import ClusterError
from benchmarks.cluster.inside import become_host
from benchmarks.cluster.processes import rank_variables
from benchmarks.cluster.shape import Shape


def call_ranks(
    shape: Shape, function: Callable[..., Any], args: Sequence[Any], timeout_s: float, grace_s: float
) -> list[Any]:
    """Call ``function(rank, *args)`` on every rank.

    Returns:
        Results in rank order.

    Raises:
        ClusterError: a rank failed, with the traceback of every rank that did.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="dmt-ranks-") as folder:
        ranks = [
            context.Process(target=_main, args=(shape, rank, Path(folder, str(rank)), function, args), daemon=True)
            for rank in range(shape.world_size)
        ]
        gc.collect()
        gc.freeze()
        try:
            for process in ranks:
                process.start()
            gc.unfreeze()
            deadline, failing = time.monotonic() + timeout_s, False
            while any(process.is_alive() for process in ranks) and time.monotonic() < deadline:
                if not failing and any(process.exitcode for process in ranks):
                    deadline, failing = min(deadline, time.monotonic() + grace_s), True
                time.sleep(0.01)
            late = {rank for rank, process in enumerate(ranks) if process.is_alive()}
        finally:
            for process in ranks:
                if process.is_alive():
                    process.kill()
                if process.pid is not None:
                    process.join()
        return _collect(Path(folder), [process.exitcode for process in ranks], late)


def _main(shape: Shape, rank: int, file: Path, function: Callable[..., Any], args: Sequence[Any]) -> None:
    try:
        host = rank // shape.lanes
        become_host(shape.namespace(host), shape.hostname(host))
        os.environ.update(rank_variables(shape, rank))
        outcome = (True, function(rank, *args))
    except BaseException:
        outcome = (False, traceback.format_exc())
    draft = file.with_suffix(".draft")
    draft.write_bytes(pickle.dumps(outcome))
    draft.rename(file)
    # Not an ordinary end: a clean shutdown could wait for ranks that will never come, and what the parent has
    # registered for its own end (taking the cluster down) is none of a rank's business.
    os._exit(0 if outcome[0] else 1)


def _collect(folder: Path, codes: Sequence[int | None], late: set[int]) -> list[Any]:
    results, failures = [], []
    for rank, code in enumerate(codes):
        file = folder / str(rank)
        good, content = pickle.loads(file.read_bytes()) if file.exists() else (False, "")
        if not good:
            end = "still running at the time limit" if rank in late else f"exit code {code}"
            failures.append(f"--- rank {rank}: {end} ---\n{content}")
        results.append(content)
    if failures:
        raise ClusterError("\n".join([f"{len(failures)} rank(s) failed", *failures]))
    return results
