"""Two ranks: too little memory on one of them stops both before a table is there; what is needed is what is taken."""

from __future__ import annotations

import gc
import warnings
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch

from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.core.errors import MemoryNeedError
from dmt_plugin.core.memory import MemoryLimit
from dmt_plugin.doctor import tiny
from dmt_plugin.model.memory import memory_need_of
from dmt_plugin.model.placed import place_graph
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from dmt_plugin.tables.released import is_released
from dmt_plugin.topology.shape import Topology
from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env

TOPOLOGY = Topology(2, 1)
LIMITS = "dmt_plugin.integrations.deepspeed.memory_need.memory_limits"


def settings(stage: int) -> dict[str, Any]:
    config = tiny.config({"module": "dlrm", "dim": 4}, TOPOLOGY, 60.0)
    adam = {"type": "Adam", "params": {"lr": 0.01, "torch_adam": True}}
    return config | {"optimizer": adam, "zero_optimization": {"stage": stage}}


def initialized(stage: int) -> Any:
    import dmt_plugin

    model = tiny.build()
    inputs = tiny.batch(0, tiny.SAMPLES)[:2]
    return dmt_plugin.initialize(
        model=model, model_parameters=model.parameters(), config=settings(stage), example_batch=inputs
    )[0]


def alive() -> dict[int, int]:
    """Bytes of every storage that a tensor is on, by its address."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensors = [x for x in gc.get_objects() if isinstance(x, torch.Tensor) and x.layout is torch.strided]
    storages = [x.untyped_storage() for x in tensors if not x.is_meta and not is_released(x)]
    return {s.data_ptr(): s.nbytes() for s in storages}


def refused(rank: int) -> tuple[str, int]:
    """The error where rank 1 has 1,000 bytes, and how many lookups were made."""
    limit = MemoryLimit("a small machine", 1000 if rank else 2**50, "small")
    with mock.patch(LIMITS, return_value=[limit]), mock.patch.object(ShardedLookup, "__init__") as made:
        try:
            initialized(0)
        except MemoryNeedError as error:
            return str(error), made.call_count
    return "", made.call_count


def taken(stage: int, rank: int) -> tuple[int, int, int]:
    """Bytes that a run of two steps has taken, the need, and the part of it that stays between steps."""
    before = alive()
    engine = initialized(stage)
    for step in range(2):
        dense, ids, label = tiny.batch(step, tiny.SAMPLES)
        engine.backward(torch.nn.functional.binary_cross_entropy_with_logits(engine(dense, ids), label))
        engine.step()
    del dense, ids, label
    size = sum(n for where, n in alive().items() if where not in before)
    placed = engine.dmt.placed
    graph = place_graph(placed.logical, engine.dmt.config, TOPOLOGY, rank)
    need = memory_need_of(graph, engine.dmt.config, DeepSpeedSettings(settings(stage)), tiny.SAMPLES).ranks[rank]
    engine.destroy()
    return size, need.total, need.tables + need.table_states + (need.towers + need.dense) // 3


def both(rank: int, world: int) -> tuple[tuple[str, int], list[tuple[int, int, int]]]:
    return refused(rank), [taken(stage, rank) for stage in (0, 1)]


@pytest.mark.processes
def test_too_little_is_refused_and_enough_is_enough() -> None:
    found = run_ranks(2, both, env=partial(launcher_env, str(TOPOLOGY)))
    (message, made), other = found[0][0], found[1][0]
    assert (message, made) == other and made == 0
    assert message.startswith("ranks 0 to 1 together need") and "a small machine has 1000 B left" in message
    for _, runs in found:
        for size, need, least in runs:
            assert least <= size <= need
