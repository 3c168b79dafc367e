"""Compiled tower modules compute what eager ones do, for any batch; no name changes, and the logical model is eager."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._dynamo.utils import counters

from dmt_plugin.fxtools.names import tower_number
from dmt_plugin.model.placed import PlacedModel, place
from dmt_plugin.nn.towers import DCNTower, DLRMTower, compiled
from dmt_plugin.passes.rank.compile_towers import CompileTowers
from dmt_plugin.topology.shape import Topology
from tests._util.ranks import run_ranks
from tests.nn.test_towers import Own
from tests.passes.test_place import DLRM, case
from tests.test_placed_laws import ADAGRAD, LOCAL, launcher_env, loss_of, prepared, section
from tests.zoo.models import ZOO

TOLERANCE = 1e-5
"""Of the largest value of a tensor, or of one."""


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    if not a.numel():
        return a.shape == b.shape
    return float((a - b).detach().abs().max()) <= TOLERANCE * max(1.0, float(b.detach().abs().max()))


def tower(kind: str) -> nn.Module:
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {
        "dlrm": DLRMTower(5, 8, 4, 1, 2), "dcn": DCNTower(5, 8, 4, "torch"), "own": Own(5, 8, 4)
    }  # fmt: skip
    return made[kind]


def _step(module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, gradients, and output without gradients."""
    module.zero_grad()
    own = x.clone().requires_grad_()
    out = module(own)
    out.square().mean().backward() if len(x) else out.sum().backward()
    with torch.no_grad():
        again = module(x)
    grads = [p.grad for p in (own, *module.parameters())]
    assert all(grad is not None for grad in grads)
    return [out, again, *(grad for grad in grads if grad is not None)]


@contextmanager
def compiles_by(backend: str) -> Iterator[None]:
    """Not by inductor, the default, which has a C++ compiler work for most of a minute: by another backend."""
    stock = nn.Module.compile
    with mock.patch.object(nn.Module, "compile", lambda self, **options: stock(self, **options, backend=backend)):
        yield


@pytest.mark.parametrize(
    ("kind", "backend"),
    [
        pytest.param("dlrm", "inductor", marks=pytest.mark.slow),
        *((kind, "aot_eager") for kind in ("dcn", "own")),
        *(pytest.param(kind, "inductor", marks=pytest.mark.campaign) for kind in ("dcn", "own")),
    ],
)
def test_compiled_is_eager_for_every_batch_in_train_and_eval(kind: str, backend: str) -> None:
    eager = tower(kind)
    with compiles_by(backend):
        twin = compiled(tower(kind))
    counters.clear()
    for training in (True, False):
        eager.train(training)
        twin.train(training)
        for rows in (7, 5, 300, 64) if kind == "own" else (7, 1, 300, 0, 64):  # "own" norms over the batch
            x = torch.randn(rows, 5, 8)
            found, expected = ([*_step(module, x), *module.buffers()] for module in (twin, eager))
            assert all(close(a, b) for a, b in zip(found, expected, strict=True))
    assert 0 < counters["stats"]["unique_graphs"] <= 12  # not one for every batch size
    assert not counters["recompile_limit"]


def test_a_twin_shares_everything_but_its_calls() -> None:
    eager = tower("own")
    twin = compiled(eager)
    assert type(twin) is type(eager) and list(twin.state_dict()) == list(eager.state_dict())
    assert all(a is b for a, b in zip(twin.parameters(), eager.parameters(), strict=True))
    assert all(a is b for a, b in zip(twin.buffers(), eager.buffers(), strict=True))
    assert twin._compiled_call_impl is not None and eager._compiled_call_impl is None


def test_many_towers_of_one_class_are_all_compiled() -> None:
    counters.clear()
    for features in range(2, 14):
        with compiles_by("aot_eager"):
            twin = compiled(DLRMTower(features, 8, 4))
        with torch.no_grad():
            twin(torch.randn(3, features, 8))
    assert counters["stats"]["unique_graphs"] == 12


def placed(route: str, **towers: Any) -> tuple[PlacedModel, Any]:
    logical, config, _ = case("dlrm", "2x2", {**DLRM, **towers}, comm={"route": route})
    return place(logical, config, Topology(2, 2), 0), logical


@pytest.mark.parametrize(("route", "count"), [("hierarchical", 1), ("flat", 2)])
def test_the_towers_of_a_rank_and_no_other_module(route: str, count: int) -> None:
    model, logical = placed(route, compile=True)
    eager, _ = placed(route)
    (result,) = [r for r in model.passes if r.name == CompileTowers.name]
    assert (result.matched, result.changed) == (count, count)
    (result,) = [r for r in eager.passes if r.name == CompileTowers.name]
    assert (result.matched, result.changed) == (count, 0)
    marked = [path for path, module in model.named_modules() if module._compiled_call_impl is not None]
    assert len(marked) == count and all(tower_number(path) is not None for path in marked)
    assert not any(module._compiled_call_impl for module in [*logical.modules(), *eager.modules()])
    assert list(model.state_dict()) == list(eager.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in eager.named_parameters()]
    for path in marked:
        assert all(
            a is b for a, b in zip(model.get_submodule(path).parameters(), logical.get_submodule(path).parameters(),
                                   strict=True)
        )  # fmt: skip


# -- under the engine --------------------------------------------------------------------------


def trained(rank: int, compile_towers: bool) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], int]:
    import dmt_plugin
    from dmt_plugin.checkpoint import gather_state

    torch.manual_seed(0)
    flat, batch = ZOO["dlrm"]()
    towers = {"module": "dcn", "compile": compile_towers}
    config = {
        "train_micro_batch_size_per_gpu": LOCAL,
        "optimizer": {"type": "SGD", "params": {"lr": 0.05}},
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "dmt": section(ADAGRAD[0], {"towers": towers}, "2x1", "torch"),
    }
    engine, *_ = dmt_plugin.initialize(model=prepared(flat), config=config, example_batch=batch(5, 0))
    outputs = []
    for step in range(4):
        out = engine(*batch(LOCAL + step * (rank + 1), 100 * step + rank))
        engine.backward(loss_of(out, step))
        engine.step()
        outputs.append(out.detach())
        engine.eval()
        with torch.no_grad():
            outputs.append(engine(*batch(3 + step, step)).detach())
        engine.train()
    state = gather_state(engine.dmt.placed, engine.dmt.groups)
    names = [name for name, _ in engine.module.named_parameters()] + list(engine.module.own_state())
    assert not any("_orig_mod" in name for name in names)
    engine.destroy()
    return outputs, state, counters["stats"]["unique_graphs"]


def both(rank: int, world: int, backend: str) -> list[str]:
    outputs, state, graphs = trained(rank, False)
    assert graphs == 0
    with compiles_by(backend):
        found, found_state, graphs = trained(rank, True)
    dist.barrier()
    wrong = [] if 1 <= graphs <= 4 else [f"{graphs} graphs were compiled on rank {rank}"]
    if list(found_state) != list(state):
        wrong.append("the names of the state differ")
    pairs = [*zip(found, outputs, strict=True), *((found_state[name], state[name]) for name in state)]
    worst = max(float((a - b).abs().max()) for a, b in pairs)
    return [*wrong, f"differs by {worst:.2e}"] if not worst <= TOLERANCE else wrong


@pytest.mark.processes
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.campaign)])
def test_under_the_engine_in_train_and_eval(backend: str) -> None:
    for wrong in run_ranks(2, both, backend, timeout=300, env=partial(launcher_env, "2x1")):
        assert wrong == []
