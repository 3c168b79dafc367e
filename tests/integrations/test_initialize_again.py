"""Engines one after the other in one process, and ranks that make different plans."""

from __future__ import annotations

import gc
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env


def left_over() -> dict[str, int]:
    """What an engine takes from the process."""
    gc.collect()
    hooks, hook = 0, sys.excepthook
    while hook is not sys.__excepthook__:
        hooks, hook = hooks + 1, hook.args[1] if hasattr(hook, "func") else sys.__excepthook__
    threads = len(list(Path("/proc/self/task").iterdir())) if sys.platform == "linux" else 0
    return {"groups": len(dist.distributed_c10d._world.pg_map), "threads": threads, "hooks": hooks}


def one_after_the_other(rank: int, world: int, folder: str) -> list[Any]:
    from tests.integrations.runs import make, train

    found: list[Any] = [left_over()]
    for number in range(4):
        more = {"csv_monitor": {"enabled": True, "output_path": f"{folder}/{rank}", "job_name": "x"}}
        dmt = {"report": {"dir": f"{folder}/report", "every": 1}, "comm": {"prefetch": True}}
        engine, batch = make("2x1", "dcn_v2", stage=number % 2, ds=more, dmt=dmt)
        losses = train(engine, batch, 2)
        calls = [name for name in ("forward", "backward", "step") if name in vars(engine)]
        engine.destroy()
        engine.destroy()  # nothing more to do
        calls += [name for name in ("forward", "backward", "step") if name in vars(engine)]
        found.append({"calls": len(calls), "finite": all(bool(loss.isfinite()) for loss in losses)})
        del engine, losses
        found[-1] |= left_over()
    return found


@pytest.mark.processes
def test_destroyed_engines_leave_nothing_behind(tmp_path: Path) -> None:
    env = partial(launcher_env, "2x1")
    for rank, found in enumerate(run_ranks(2, one_after_the_other, str(tmp_path), timeout=200, env=env)):
        before, _, second, *later = found  # DeepSpeed keeps groups and threads of its own for the next engine
        assert second["hooks"] == before["hooks"] and second["calls"] == 3 and second["finite"]
        for one in later:
            assert {**one, "threads": 0} == {**second, "threads": 0}, (rank, found)
            assert one["threads"] <= second["threads"], (rank, found)


def different_plans(rank: int, world: int) -> list[str]:
    import dmt_plugin
    from dmt_plugin.integrations.deepspeed import weight_sync
    from tests.integrations.runs import make

    said: list[str] = []
    stock = weight_sync._message
    weight_sync._message = lambda *args: (said.append("rows were sent"), stock(*args))
    try:
        tables = {"placement": {"strategy": "row_wise" if rank else "table_wise"}}
        make("1x2", "dlrm", dmt={**tables, "comm": {"timeout_s": 30}, "towers": {"module": "none"}})
    except dmt_plugin.DMTError as error:
        said.append(f"{type(error).__name__}: {error}")
    return said


@pytest.mark.processes
def test_plans_are_compared_before_tables_are_sent() -> None:
    for said in run_ranks(2, different_plans, timeout=120, env=partial(launcher_env, "1x2")):
        assert len(said) == 1 and said[0].startswith("PlanError: rank 1 has made the tower plan"), said
