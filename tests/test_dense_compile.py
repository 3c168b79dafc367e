"""``engine.compile()``: towers and dense part compiled between the exchanges compute what they did before.

Three steps of two ranks, on two hosts, in fp32: losses, dense and tower parameters and tables to 1e-5, with ids that
travel ahead and without, through aot_eager, whose pieces are counted; for a release, through inductor as well.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from dmt_plugin.data import prefetched
from tests._util.ranks import run_ranks
from tests.test_matrix_laws import DENSE_LR, PLAIN, WIDTH, loss_of, section
from tests.test_placed_laws import launcher_env, prepared
from tests.zoo.models import ZOO

STEPS, LOCAL, TOLERANCE = 3, 5, 1e-5
CASE = {**PLAIN, "topology": "2x1", "backend": "fbgemm"}


def train(rank: int, backend: Any, ahead: bool) -> dict[str, Tensor]:
    import dmt_plugin
    from dmt_plugin.checkpoint import gather_state

    torch.manual_seed(0)
    flat, batch = ZOO["dlrm"](6, WIDTH)
    config = {
        "train_micro_batch_size_per_gpu": LOCAL,
        "optimizer": {"type": "SGD", "params": {"lr": DENSE_LR}},
        "gradient_clipping": 0.0,
        "dmt": section(CASE),
    }
    engine, *_ = dmt_plugin.initialize(model=prepared(flat), config=config, example_batch=batch(5, 0))
    if backend is not None:
        engine.compile(backend=backend)
        engine.compile(backend=backend)  # a second call changes nothing
        assert engine.is_compiled
    data = [(batch(LOCAL + (rank if i == 1 else 0), 10 * i + rank), 10 * i + rank) for i in range(STEPS)]
    losses = []
    for inputs, seed in prefetched(data, engine, lambda item: item[0]) if ahead else data:
        loss = loss_of(engine(*inputs), seed)
        engine.backward(loss)
        engine.step()
        losses.append(loss.detach())
    found = gather_state(engine.dmt.placed, engine.dmt.groups) | {"losses": torch.stack(losses)}
    engine.destroy()
    return found


def compare(rank: int, world: int, inductor: bool) -> list[str]:
    from torch._dynamo.backends.debugging import aot_eager

    pieces: list[int] = []

    def counted(graph: Any, inputs: Any) -> Any:
        pieces.append(sum(node.op.startswith("call") for node in graph.graph.nodes))
        return aot_eager(graph, inputs)

    wrong = []
    right = train(rank, None, False)
    for backend, ahead in (("inductor", False),) if inductor else ((counted, False), (counted, True)):
        pieces.clear()
        found = train(rank, backend, ahead)
        for name, value in right.items():
            worst = float((found[name] - value).abs().max())
            if not worst <= TOLERANCE:
                wrong.append(f"rank {rank}, {backend}, ids ahead {ahead}: {name} differs by {worst:.2e}")
        if backend is counted and not (len(pieces) >= 2 and max(pieces) >= 5):
            wrong.append(f"rank {rank}, ids ahead {ahead}: compiled pieces of {pieces} operations")
        torch._dynamo.reset()
    return wrong


@pytest.mark.processes
@pytest.mark.parametrize("inductor", [False, pytest.param(True, marks=pytest.mark.campaign)])
def test_compiled_steps_are_the_same_steps(inductor: bool) -> None:
    found = run_ranks(2, compare, inductor, timeout=240, env=partial(launcher_env, "2x1"))
    assert found == [[], []], "\n".join(itertools.chain(*found))
