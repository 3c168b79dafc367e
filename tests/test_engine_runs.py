"""An engine in use: evaluation, uneven and empty batches, bad ids, the way back to the flat model, a rank that dies."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dmt_plugin.checkpoint.state import own_buffers
from dmt_plugin.plan.tower_plan import TowerPlan
from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env, loss_of
from tests.zoo.models import ZOO


def make_engine(
    name: str, towers: dict[str, Any], strategy: str = "strided", **comm: Any
) -> tuple[Any, nn.Module, Any]:
    import dmt_plugin

    torch.manual_seed(0)
    flat, batch = ZOO[name]()
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "optimizer": {"type": "Adagrad", "params": {"lr": 0.05}},
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "dmt": {
            "towers": towers,
            "comm": comm,
            "partition": {"strategy": strategy},
            "lookup": {"optimizer": "adagrad", "lr": 0.05},
            "report": {"dir": os.environ.get("REPORT_DIR")},
        },
    }
    engine, *_ = dmt_plugin.initialize(model=flat, config=config, example_batch=batch(5, 0))
    return engine, flat, batch


def step(engine: Any, batch: Any, samples: int, seed: int) -> None:
    out = engine(*batch(samples, seed))
    loss = loss_of(out, seed) if samples else out.sum()
    engine.backward(loss)
    engine.step()


def use(rank: int, world: int) -> dict[str, Any]:
    import dmt_plugin

    said: dict[str, Any] = {}
    engine, flat, batch = make_engine("deepfm", {"module": "none"})
    for k in range(3):
        step(engine, batch, 4 if k < 2 else 3 * (rank > 0), 10 * k + rank)  # rank 0 has nothing in the last step
    engine.eval()
    with torch.no_grad():
        placed = engine(*batch(5, 77))
        empty = engine(*batch(2 if rank else 0, 5))
    said["empty"] = tuple(empty.shape)
    trained = dmt_plugin.to_flat(engine, ranks="all")
    said["one rank"] = (dmt_plugin.to_flat(engine, ranks=[2]) is None) == (rank != 2)
    said["same class"] = type(trained) is type(flat)
    with torch.no_grad():
        said["flat differs by"] = float((trained.eval()(*batch(5, 77)) - placed).abs().max())
    torch.manual_seed(0)
    first = ZOO["deepfm"]()[0].vectors[0].weight
    said["moved"] = float((trained.vectors[0].weight - first).detach().abs().max())
    dense, sparse = batch(4, 1)
    if rank == 2:
        sparse[1, 3] = 10_000
    try:
        engine(dense, sparse)
    except dmt_plugin.DMTError as error:
        said["bad id"] = f"{type(error).__name__}: {error}"
    engine.train()
    step(engine, batch, 4, 123 + rank)  # a refused batch leaves the engine usable
    towers, _, batch = make_engine("dcn_v2", {"module": "dlrm"})
    for k in range(2):
        step(towers, batch, 4, 10 * k + rank)
    towers.eval()
    with torch.no_grad():
        placed = towers(*batch(5, 78))
    single = dmt_plugin.to_flat(towers, ranks="all").eval()
    single.load_state_dict(own_buffers(towers.module), strict=False)  # running statistics are each rank's own
    with torch.no_grad():
        said["towers differ by"] = float((single(*batch(5, 78)) - placed).abs().max())
    os.environ.pop("REPORT_DIR", None)
    try:
        make_engine("deepfm", {"module": "none"}, "contiguous" if rank == 3 else "strided")
    except dmt_plugin.DMTError as error:
        said["another plan"] = f"{type(error).__name__}: {error}"
    return said


@pytest.mark.processes
def test_engine_in_use(tmp_path: Path) -> None:
    def env(rank: int) -> dict[str, str]:
        return {**launcher_env("2x2", rank), "REPORT_DIR": str(tmp_path)}

    reports = run_ranks(4, use, timeout=240, env=env)
    plan = TowerPlan.load(tmp_path / "plan.json")
    assert plan.topology == "2x2" and plan.module.kind == "dlrm"
    assert json.loads((tmp_path / "transform.json").read_text())["plan_fingerprint"] == plan.fingerprint
    for rank, said in enumerate(reports):
        assert said["same class"] and said["one rank"]
        assert said["empty"] == ((2,) if rank else (0,))
        assert said["flat differs by"] <= 2e-6, said
        assert said["towers differ by"] <= 2e-5, said
        assert said["moved"] > 0
        for part in ("IdRangeError", "rank 2", "vectors.3", "10000", "32 rows"):
            assert part in said["bad id"], said["bad id"]
        assert said["bad id"] == reports[0]["bad id"]
        assert said["another plan"].startswith("PlanError: rank 3 has made the tower plan"), said["another plan"]


def dies(rank: int, world: int, last: int) -> tuple[str, float]:
    engine, _, batch = make_engine("dlrm", {"module": "dlrm"}, timeout_s=20)
    for k in range(last):
        step(engine, batch, 4, k)
    if rank == 3:
        os._exit(7)
    start = time.monotonic()
    try:
        for k in range(50):
            step(engine, batch, 4, k)
    except Exception as error:
        return f"{type(error).__name__}: {error}", time.monotonic() - start
    return "nothing was noticed", time.monotonic() - start


@pytest.mark.processes
def test_a_dead_rank_ends_all_others_with_one_message() -> None:
    reports = run_ranks(4, dies, 2, timeout=150, env=partial(launcher_env, "2x2"), may_die=[3])
    for rank in range(3):
        message, seconds = reports[rank]
        assert seconds < 60
        assert message.startswith("ExchangeError") and f"rank {rank}" in message, message
        assert "step 2" in message, message
