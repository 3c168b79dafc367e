"""One batch ahead on real ranks: DeepSpeed's loader, smaller last batches, ranks that run out early, the position."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import TensorDataset

from dmt_plugin.core.errors import DataError
from dmt_plugin.data import prefetched
from dmt_plugin.doctor import tiny
from dmt_plugin.topology.shape import Topology
from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env

pytestmark = pytest.mark.processes

BATCH, SAMPLES = 4, 11
"""Samples of a batch and of an epoch, on one rank: the last batch has three."""


def make() -> Any:
    import dmt_plugin

    config = tiny.config({"module": "dlrm", "dim": 4}, Topology(2, 1), 60.0)
    config["train_micro_batch_size_per_gpu"] = BATCH
    model = tiny.build()
    engine, *_ = dmt_plugin.initialize(
        model=model, model_parameters=model.parameters(), config=config, example_batch=tiny.batch(0, BATCH)[:2]
    )
    return engine


def train(engine: Any, batches: Any) -> list[float]:
    losses = []
    for dense, ids, label in batches:
        loss = binary_cross_entropy_with_logits(engine(dense, ids), label)
        engine.backward(loss)
        engine.step()
        losses.append(float(loss.detach()))
    return losses


def inputs(batch: Any) -> Any:
    return tuple(batch[:2])


def use(rank: int, world: int) -> dict[str, Any]:
    said: dict[str, Any] = {}
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(0, tiny.ROWS, (world * SAMPLES, tiny.TABLES), generator=random)
    dense = torch.randn(world * SAMPLES, tiny.DENSE, generator=random)
    data = TensorDataset(dense, ids, (dense.sum(1) > 0).float())

    def loader_of(engine: Any) -> Any:
        return engine.deepspeed_io(data, num_local_io_workers=0)

    engine = make()
    plain = train(engine, [*loader_of(engine), *loader_of(engine)])
    engine = make()
    loader = prefetched(loader_of(engine), engine, inputs)
    announced = []
    announce = engine.dmt.placed.prefetcher.announce
    engine.dmt.placed.prefetcher.announce = lambda *args: (announced.append(args), announce(*args))
    ahead = train(engine, loader)
    said["length"] = len(loader)
    iterator = iter(loader)
    ahead += train(engine, [next(iterator)])
    state = loader.state_dict()
    again = prefetched(loader_of(engine), engine, inputs)  # as after a restart
    again.load_state_dict(state)
    ahead += train(engine, again)
    said["the same"] = plain == ahead
    said["announced"] = len(announced)
    said["epoch"] = again.epoch

    batches = [tuple(part[k * BATCH : (k + 1) * BATCH] for part in data.tensors) for k in range(4)]
    own = batches if rank == 0 else batches[:2]
    for kind, source in (("known", lambda: own), ("stream", lambda: iter(own))):
        said[kind, "stop"] = len(train(engine, prefetched(source(), engine, inputs, uneven="stop")))
        try:
            train(engine, prefetched(source(), engine, inputs))
        except DataError as error:
            said[kind, "error"] = str(error)
    said["then"] = len(train(engine, prefetched(batches, engine, inputs)))
    return said


def test_ranks_take_the_same_steps() -> None:
    for said in run_ranks(2, use, env=partial(launcher_env, "2x1"), timeout=120):
        assert said["the same"] and said["length"] == 3
        # Of the first epoch two, one behind the batch before the restart, one behind it.
        assert said["announced"] == 2 + 1 + 1
        assert said["epoch"] == 2
        assert said["known", "stop"] == said["stream", "stop"] == 2
        assert said["known", "error"].startswith("the ranks have different numbers of batches: 4 on rank 0; 2 on ")
        assert said["stream", "error"].startswith("rank(s) 1 ran out after 2 batches while others have more.")
        assert said["then"] == 4, "the engine goes on"
