"""What makes a step fast changes no number: overlap, ids that travel ahead and micro-blocks, each on and off.

Ten steps of four ranks (2 x 2) through ``dmt_plugin.initialize`` against the logical graph in one process: the losses
of every rank and step, every dense, tower and table parameter. SPTT, towers that send a quarter, and a model with bags
of varying length; batches of unequal size. Tolerance: 2e-6 on values of order one, all trained by SGD, so that an error
in a gradient shows at its own size. With and without ids that travel ahead the numbers are the same, bit for bit.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from dmt_plugin.data import prefetched
from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env, loss_of, prepared
from tests.zoo.catalogue import CATALOGUE
from tests.zoo.models import ZOO

TOLERANCE = 2e-6
STEPS = 10
LOCAL = 5

TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sptt": ("dlrm", {"module": "none"}),
    "towers of CR 4": ("dlrm", {"module": "dlrm", "c": 1, "p": 0, "dim": 2}),
    "jagged": ("torchrec_dlrm", {"module": "none"}),
    "sequences": ("seq_din", {"module": "none"}),
}
MODELS = {**ZOO, "seq_din": CATALOGUE["seq_din"].build}
COMBINATIONS = [
    {"overlap": overlap, "prefetch": prefetch, "micro_blocks": blocks}
    for overlap, blocks, prefetch in itertools.product((True, False), (1, 2), (True, False))
]
SHOWN = {
    "towers of CR 4": [comm for comm in COMBINATIONS if comm["overlap"] == (comm["micro_blocks"] == 1)],
    "sptt": [comm for comm in COMBINATIONS if comm["overlap"] != (comm["micro_blocks"] == 1)],
    "jagged": [comm for comm in COMBINATIONS if comm["overlap"] and comm["micro_blocks"] == 2],
}
"""What every run of the tests shows of each, always with and without ids that travel ahead."""
Case = tuple[str, dict[str, Any], int, int]
"""Towers, comm section, ZeRO stage, accumulated batches per step."""

REST: list[Case] = [
    (name, comm, 0, 1) for name, shown in SHOWN.items() for comm in COMBINATIONS if comm not in shown
]
CASES: list[Case] = [
    *((name, comm, 0, 1) for name, shown in SHOWN.items() for comm in shown),
    *(("towers of CR 4", comm, 0, 2) for comm in COMBINATIONS[:2]),
    ("sptt", {"micro_blocks": 3}, 1, 1),
    ("sptt", {"dedup": "on"}, 0, 2),
    ("sptt", {"dedup": "on", "micro_blocks": 3, "prefetch": False}, 1, 1),
    ("jagged", {"dedup": "on", "micro_blocks": 1, "overlap": False}, 0, 1),
    ("jagged", {"dedup_features": {"*1": "on"}, "micro_blocks": 2}, 0, 1),
    ("towers of CR 4", {"route": "flat"}, 0, 1),
    ("sequences", {}, 0, 2),
    ("sequences", {"dedup": "off", "micro_blocks": 3}, 1, 1),
]

Trained = tuple[list[float], dict[str, Tensor]]


def batch_size(step: int, rank: int) -> int:
    """Unequal over ranks in some steps, as the last batch of an epoch is."""
    return LOCAL + (rank if step % 4 == 1 else 0)


def section(name: str, comm: dict[str, Any]) -> dict[str, Any]:
    return {
        "towers": TOWERS[name][1],
        "topology": {"hosts": 2, "ranks_per_host": 2},
        "lookup": {"optimizer": "sgd", "lr": 0.5},
        "comm": comm,
    }


def dataset(batch: Any, rank: int, every: int) -> list[tuple[Any, int]]:
    seeds = [100 * step + rank for step in range(STEPS * every)]
    return [(batch(batch_size(step, rank), seed), seed) for step, seed in enumerate(seeds)]


def alone(name: str, world: int, every: int) -> Trained:
    """Losses by step and rank, and parameters, of the logical graph in one process."""
    from dmt_plugin.compiler import transform

    torch.manual_seed(0)
    flat, batch = MODELS[TOWERS[name][0]]()
    model = transform(prepared(flat), batch(5, 0), {"dmt": section(name, {})}, "2x2").train()
    tables = {t.parameter for t in model.plan.tables}
    named = dict(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in named.items() if n not in tables], "lr": 0.05},
        {"params": [p for n, p in named.items() if n in tables], "lr": 0.5},
    ]
    optimizer = torch.optim.SGD(groups)
    data = [dataset(batch, rank, every) for rank in range(world)]
    losses = []
    for step in range(STEPS * every):
        parts = [loss_of(model(*inputs), seed) for inputs, seed in (of_rank[step] for of_rank in data)]
        (sum(parts) / world / every).backward()
        losses += [float(part) for part in parts]
        if (step + 1) % every == 0:
            optimizer.step()
            optimizer.zero_grad()
    return losses, {n: p.detach().clone() for n, p in model.named_parameters()}


def train(rank: int, case: Case) -> tuple[Trained, list[str]]:
    """The same on this rank of four, and what was not as the case says."""
    import dmt_plugin
    from dmt_plugin.checkpoint import gather_state
    from dmt_plugin.fxtools.names import BLOCK_META

    name, comm, stage, every = case
    torch.manual_seed(0 if rank == 0 else 1000 + rank)  # other ranks start from rank 0's weights
    flat, batch = MODELS[TOWERS[name][0]]()
    config = {
        "train_micro_batch_size_per_gpu": LOCAL,
        "gradient_accumulation_steps": every,
        "optimizer": {"type": "SGD", "params": {"lr": 0.05}},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        "steps_per_print": 10**6,
        "dmt": section(name, comm),
    }
    engine, *_ = dmt_plugin.initialize(model=prepared(flat), config=config, example_batch=batch(5, 0))
    placed = engine.dmt.placed
    ahead = []
    if placed.prefetcher is not None:
        run = placed.prefetcher.run
        placed.prefetcher.run = lambda inputs: (ahead.append(run(inputs)), ahead[-1])[1]
    losses = []
    for inputs, seed in prefetched(dataset(batch, rank, every), engine, lambda item: item[0]):
        loss = loss_of(engine(*inputs), seed)
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
    blocks = {node.meta[BLOCK_META] for node in placed.graph.nodes if BLOCK_META in node.meta}
    wanted = {"overlap": True, "prefetch": True, "micro_blocks": 2, **comm}
    facts = {
        "ids ahead": (sum(came for came, _ in ahead), wanted["prefetch"] * (STEPS * every - 1)),
        "blocks": (len(blocks) or 1, wanted["micro_blocks"]),
        "sums in backward": (engine._reduction is not None, wanted["overlap"] and stage == 0),
        "steps": (engine.global_steps, STEPS),
    }
    state = gather_state(placed, engine.dmt.groups)
    engine.destroy()
    strange = [f"{what}: {is_} instead of {right}" for what, (is_, right) in facts.items() if is_ != right]
    return (losses, state), strange


def compare(rank: int, world: int, cases: list[Case]) -> list[str]:
    wrong: list[str] = []
    references: dict[tuple[str, int], Trained] = {}
    twins: dict[str, Trained] = {}
    for case in cases:
        name, comm, stage, every = case
        (losses, state), strange = train(rank, case)
        everyone: list[Any] = [None] * world
        dist.all_gather_object(everyone, (losses, strange))
        if rank > 0:
            continue
        said = f"{name}, {comm}, ZeRO {stage}, {every} batch(es) a step"
        wrong += [f"{said}: rank {r}: {text}" for r, (_, texts) in enumerate(everyone) for text in texts]
        of_all = [loss for step in zip(*(losses for losses, _ in everyone), strict=True) for loss in step]
        if (name, every) not in references:
            references[name, every] = alone(name, world, every)
        wrong += [f"{said}: {text}" for text in differences((of_all, state), references[name, every], TOLERANCE)]
        twin = str((name, {k: v for k, v in comm.items() if k != "prefetch"}, stage, every))
        twins.setdefault(twin, (of_all, state))
        wrong += [f"{said}, with and without ids ahead: {t}" for t in differences((of_all, state), twins[twin], 0.0)]
    return wrong


def differences(found: Trained, expected: Trained, tolerance: float) -> list[str]:
    losses = enumerate(zip(found[0], expected[0], strict=True))
    pairs = {f"loss {i}": (torch.tensor(a), torch.tensor(b)) for i, (a, b) in losses}
    pairs |= {name: (found[1][name], value) for name, value in expected[1].items()}
    worst = {name: float((a - b).abs().max()) for name, (a, b) in pairs.items()}
    return [f"{name} differs by {value:.2e}" for name, value in worst.items() if not value <= tolerance]


@pytest.mark.processes
@pytest.mark.parametrize("cases", [CASES, pytest.param(REST, marks=pytest.mark.campaign)], ids=["pairs", "rest"])
def test_fast_steps_are_the_same_steps(cases: list[Case]) -> None:
    wrong, *_ = run_ranks(4, compare, cases, timeout=480, env=partial(launcher_env, "2x2"))
    assert not wrong, "\n".join(wrong[:20])
