"""Every way of training that the engine offers is the single-process logical graph: the factors, pairwise.

Four optimizer steps of each case through ``dmt_plugin.initialize`` on its topology, against the same steps of the
logical graph in one process: all dense and tower parameters (their fp32 masters in bf16), all tables, and the norm of
the gradients of dense part and towers. Everything is trained by SGD, so that an error in a gradient shows at its own
size, towards targets far away, so that gradients of samples do not cancel; batches of unequal size in one step. At
stage 0 the norm is also that of the gradients at hand, to 1e-5: rounding hides nothing there.

Tolerances. fp32: 2e-6 on parameters, 1e-5 of the norm (sums over ranks are added in another order). bf16: what the
entries of a parameter have moved by differs by at most 2 % (as a vector), the norm by 1 %: gradients are rounded to
bf16 on each rank and in each sum over ranks, 0.4 % each time, and the reference rounds them nowhere. An exchange, scale
or sum that is wrong is off by a quarter or more.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from deepspeed.runtime.lr_schedules import WarmupLR
from torch import Tensor, nn

from tests._util.pairs import all_pairs, pairs_of, pairwise
from tests._util.ranks import run_ranks
from tests.test_placed_laws import labels, launcher_env, prepared
from tests.zoo.models import ZOO

STEPS, LOCAL, WIDTH = 4, 4, 8
DENSE_LR, TABLE_LR, CLIP = 0.02, 0.2, 1.0
WARMUP = {"warmup_min_lr": 0.005, "warmup_max_lr": DENSE_LR, "warmup_num_steps": 6, "warmup_type": "linear"}
LOOP = "the loop's own, right before a step"

FACTORS: dict[str, list[Any]] = {
    "topology": ["2x2", "1x4", "4x1", "2x1"],
    "stage": [0, 1, 2],
    "precision": ["fp32", "bf16"],
    "accumulation": [1, 2],
    "clip": [0.0, CLIP],
    "placement": ["table_wise", "row_wise", "column_wise"],
    "towers": ["equal", "unequal"],
    "backend": ["fbgemm", "torch"],
}
PLAIN: dict[str, Any] = {
    "topology": "2x2", "stage": 1, "precision": "fp32", "accumulation": 2, "clip": CLIP, "placement": "table_wise",
    "towers": "unequal", "backend": "fbgemm",
}  # fmt: skip
TWO = {**PLAIN, "topology": "2x1"}
MORE: list[dict[str, Any]] = [
    {**PLAIN, "lookup": {"accumulation": "per_micro_batch"}},
    {**PLAIN, "lookup": {"accumulation": "per_micro_batch"}, "backend": "torch", "stage": 0},
    {**PLAIN, "unmanaged": True, "stage": 0},
    {**PLAIN, "precision": "bf16", "kept": "fp32"},
    {**PLAIN, "precision": "bf16", "kept": "fp32", "stage": 2},
    {**PLAIN, "precision": "bf16", "comm": {"peer_dtype": "bf16", "intra_dtype": "bf16", "route": "flat"}},
    {**PLAIN, "zero": {"overlap_comm": True}},
    {**PLAIN, "zero": {"overlap_comm": True}, "stage": 2, "precision": "bf16"},
    {**PLAIN, "topology": "4x1", "hosts": "2x2", "placement": "row_wise"},
    {**TWO, "scheduler": "WarmupLR", "lookup": {"schedule": "follow"}},
    {**TWO, "scheduler": "WarmupLR", "lookup": {"schedule": "follow"}, "backend": "torch", "precision": "bf16"},
    {**PLAIN, "scheduler": "of the caller", "lookup": {"schedule": "follow"}, "accumulation": 1, "stage": 0},
    {**TWO, "scheduler": "of the caller", "lookup": {"schedule": "follow", "accumulation": "per_micro_batch"}},
    {**TWO, "scheduler": "of the caller", "accumulation": 1},
    {**TWO, "scheduler": LOOP, "lookup": {"schedule": "follow"}},
]
"""What the factors leave out: updates per micro-batch, steps that the caller decides, gradients kept in fp32 beside
bf16, the flat route, overlapped reduction, two machines that count as one host, learning rates that change, for tables
too or not."""
CASES = pairwise(FACTORS) + MORE
FP32, BF16, NORM = 2e-6, 0.02, {"fp32": 1e-5, "bf16": 1e-2}

Outcome = tuple[dict[str, Tensor], list[float | None]]
"""Parameters and tables by logical name; the norm of each step."""


def test_every_pair_is_in_a_case() -> None:
    covered = set().union(*(pairs_of(case) for case in pairwise(FACTORS)))
    assert covered == all_pairs(FACTORS)
    assert len(pairwise(FACTORS)) <= 20
    assert pairwise(FACTORS) == pairwise(FACTORS)


def shape_of(case: Mapping[str, Any]) -> str:
    """Hosts and lanes of the model, where they are not those of the machines."""
    return case.get("hosts", case["topology"])


def section(case: Mapping[str, Any]) -> dict[str, Any]:
    hosts, lanes = map(int, shape_of(case).split("x"))
    towers: dict[str, Any] = {"count": max(2, hosts), "module": "dlrm", "c": 1, "p": 0, "dim": 4}
    if case["towers"] == "unequal":
        towers["overrides"] = {"1": {"p": 2}}
    return {
        "towers": towers,
        "topology": {"hosts": hosts, "ranks_per_host": lanes},
        "placement": {"strategy": case["placement"]},
        "lookup": {"optimizer": "sgd", "lr": TABLE_LR, "backend": case["backend"], **case.get("lookup", {})},
        "comm": case.get("comm", {}),
    }


def model_of(case: Mapping[str, Any]) -> tuple[nn.Module, Any]:
    """Eight features, or seven, which no number of towers divides; smooth: no rounding turns a unit on or off."""
    torch.manual_seed(0)
    features = 8 if case["towers"] == "equal" else 7
    flat, batch = ZOO["dlrm"](features, WIDTH)
    for module in list(flat.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    dtype = torch.bfloat16 if case["precision"] == "bf16" else torch.float32
    return prepared(flat), lambda n, seed: tuple(x.to(dtype) if x.is_floating_point() else x for x in batch(n, seed))


def loss_of(out: Tensor, seed: int) -> Tensor:
    return nn.functional.mse_loss(out.float(), 2 + labels(len(out), seed).to(out.device))


def batches(case: Mapping[str, Any], batch: Any, rank: int) -> list[tuple[Any, int]]:
    """One item per micro-batch: the call, and the seed of its labels."""
    count = STEPS * case["accumulation"]
    return [(batch(LOCAL + (rank if i == 1 else 0), 100 * i + rank), 100 * i + rank) for i in range(count)]


def falling(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1.0 / (1 + done))


def rates(case: Mapping[str, Any]) -> list[float]:
    """For each step, what the dense part's learning rate is to the first; the same for tables that follow."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=DENSE_LR)
    scheduler = None
    if case.get("scheduler") in ("of the caller", LOOP):
        scheduler = falling(optimizer)
    elif case.get("scheduler") == "WarmupLR":
        scheduler = WarmupLR(optimizer, **WARMUP)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"] / DENSE_LR)
        if scheduler is not None:
            optimizer.step()
            scheduler.step()
    assert scheduler is None or len(set(found)) >= STEPS - 1  # WarmupLR takes its first rate twice
    return found


def alone(case: Mapping[str, Any], world: int) -> tuple[dict[str, Tensor], dict[str, Tensor], list[float]]:
    """The logical graph in one process, before and after training, and its norms; gradients are added up in fp32."""
    from dmt_plugin.compiler import transform

    flat, batch = model_of({**case, "precision": "fp32"})
    model = transform(flat, batch(5, 0), {"dmt": section(case)}, shape_of(case)).train()
    _, batch = model_of(case)
    tables = {t.parameter for t in model.plan.tables}
    dense = {n: p for n, p in model.named_parameters() if n not in tables}
    held = {n: p for n, p in model.named_parameters() if n in tables}
    if case["precision"] == "bf16":
        for p in dense.values():
            p.data = p.data.bfloat16()  # what DeepSpeed's masters start from
        for module in model.modules():
            if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
                module.register_forward_hook(lambda m, args, out: out.bfloat16())
    start = {n: p.detach().float().clone() for n, p in model.named_parameters()}
    masters = {n: start[n].clone() for n in dense}
    every, data = case["accumulation"], [batches(case, batch, rank) for rank in range(world)]
    often = case.get("lookup", {}).get("accumulation") == "per_micro_batch"
    follow = case.get("lookup", {}).get("schedule") == "follow"
    by_step = rates(case)
    norms: list[float] = []
    total = {n: torch.zeros_like(p, dtype=torch.float32) for n, p in model.named_parameters()}
    for micro in range(STEPS * every):
        for inputs, seed in (of_rank[micro] for of_rank in data):
            (loss_of(model(*inputs), seed) / every).backward()
            for n, p in model.named_parameters():
                total[n] += p.grad.float() / world
                p.grad = None
        ends, rate = (micro + 1) % every == 0, by_step[micro // every]
        with torch.no_grad():
            if ends or often:
                for n, p in held.items():
                    p -= TABLE_LR * (rate if follow else 1.0) * total[n]
                    total[n].zero_()
            if ends:
                norm = float(torch.stack([total[n].square().sum() for n in dense]).sum().sqrt())
                factor = min(1.0, case["clip"] / norm) if case["clip"] else 1.0
                norms.append(norm)
                for n, p in dense.items():
                    masters[n] -= DENSE_LR * rate * factor * total[n]
                    p.copy_(masters[n])
                    total[n].zero_()
    return start, {**masters, **{n: p.detach().clone() for n, p in held.items()}}, norms


def ds_config(case: Mapping[str, Any]) -> dict[str, Any]:
    config = {
        "train_micro_batch_size_per_gpu": LOCAL,
        "gradient_accumulation_steps": case["accumulation"],
        "optimizer": {"type": "SGD", "params": {"lr": DENSE_LR}},
        "zero_optimization": {"stage": case["stage"], **case.get("zero", {})},
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": case["clip"],
        "steps_per_print": 10**6,
        "bf16": {"enabled": case["precision"] == "bf16"},
        "dmt": section(case),
    }
    if "kept" in case:
        config["data_types"] = {"grad_accum_dtype": case["kept"]}
    if case.get("scheduler") == "WarmupLR":
        config["scheduler"] = {"type": "WarmupLR", "params": WARMUP}
    if "unmanaged" in case:
        config["managed_gradient_accumulation"] = False
    return config


def train(rank: int, case: Mapping[str, Any]) -> Outcome:
    import dmt_plugin
    from dmt_plugin.checkpoint import gather_state

    flat, batch = model_of({**case, "precision": "fp32"})
    if rank > 0:  # other ranks start from rank 0's weights
        for p in flat.parameters():
            p.data.add_(1.0)
    scheduler = falling if case.get("scheduler") == "of the caller" else None
    engine, *_ = dmt_plugin.initialize(
        model=flat, config=ds_config(case), example_batch=batch(5, 0), lr_scheduler=scheduler
    )
    _, batch = model_of(case)
    norms: list[float | None] = []
    for i, (inputs, seed) in enumerate(batches(case, batch, rank)):
        ends = (i + 1) % case["accumulation"] == 0
        loss = loss_of(engine(*(x.to(engine.device) for x in inputs)), seed)
        engine.backward(loss)
        summed = case["stage"] == 0 and ends and "unmanaged" not in case
        right = norm_of_gradients(engine) if summed else None
        if ends and case.get("scheduler") == LOOP:
            for group in engine.optimizer.param_groups:
                group["lr"] = DENSE_LR / (1 + engine.global_steps)
        if "unmanaged" not in case or ends:
            engine.step()
        if engine.global_steps > len(norms):
            norm = engine.get_global_grad_norm()
            norms.append(None if norm is None else float(norm))
            if norm is not None and right is not None:  # of the very gradients, rounded or not
                assert abs(float(norm) - right) <= 1e-5 * right, f"{case}: the norm is {norm} instead of {right}"
    state = gather_state(engine.dmt.placed, engine.dmt.groups)
    state |= masters_of(engine)
    engine.destroy()
    return state, norms


def norm_of_gradients(engine: Any) -> float:
    """Norm of the gradients that stage 0 has summed: the dense part once, the towers of each host once."""
    from deepspeed.moe.utils import is_moe_param

    squares = [0.0, 0.0]
    for p in engine.module.parameters():
        if p.grad is not None:
            squares[is_moe_param(p)] += float(p.grad.double().square().sum())
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, (engine.dmt.groups.host, squares[1]))
    return (squares[0] + sum(dict(everyone).values())) ** 0.5


def masters_of(engine: Any) -> dict[str, Tensor]:
    """What the optimizer keeps in fp32 for parameters in bf16, of all hosts."""
    from deepspeed.utils import safe_get_full_fp32_param

    from dmt_plugin.checkpoint import logical_name

    optimizer, found = engine.optimizer, {}
    if not engine.bfloat16_enabled():
        return {}
    pairs = {}
    if engine.zero_optimization_stage() == 0:
        groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        pairs = {id(p): m for ps, ms in groups for p, m in zip(ps, ms, strict=True)}
    for name, p in engine.module.named_parameters():
        master = pairs[id(p)] if pairs else safe_get_full_fp32_param(p)
        found[logical_name(name)] = master.detach().cpu().float().view(p.shape).clone()
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    return {name: value for of_rank in reversed(everyone) for name, value in of_rank.items()}


def compare(rank: int, world: int, cases: list[dict[str, Any]]) -> list[str]:
    wrong: list[str] = []
    for case in cases:
        state, norms = train(rank, case)
        all_norms: list[Any] = [None] * world
        dist.all_gather_object(all_norms, norms)
        if rank == 0:
            said = ", ".join(f"{key} {value}" for key, value in case.items())
            wrong += [f"{said}: {text}" for text in differences(case, (state, norms), all_norms, world)]
    return wrong


def differences(case: Mapping[str, Any], found: Outcome, all_norms: list[Any], world: int) -> list[str]:
    start, expected, norms = alone(case, world)
    wrong = []
    for name, value in expected.items():
        move, error = value - start[name], found[0][name].float() - value
        if case["precision"] == "bf16" and not float(error.norm()) <= BF16 * float(move.norm()):
            wrong.append(f"{name} differs by {float(error.norm() / move.norm()):.1%} of its move, {move.norm():.2e}")
        if case["precision"] == "fp32" and not float(error.abs().max()) <= FP32:
            wrong.append(f"{name} differs by {float(error.abs().max()):.2e}")
    if case["clip"] and not max(norms) > case["clip"]:
        wrong.append(f"nothing is clipped: norms {norms}")
    for own in all_norms:
        if case["stage"] == 0 and case["precision"] == "fp32" and not case["clip"]:
            wrong += [f"a norm without clipping: {own}"] if own != [None] * STEPS else []
            continue
        if not all(abs(a - b) <= NORM[case["precision"]] * b for a, b in zip(own, norms, strict=True)):
            wrong.append(f"norms {own} instead of {norms}")
    return wrong


@pytest.mark.processes
@pytest.mark.parametrize("topology", FACTORS["topology"])
def test_each_case_is_the_single_process_graph(topology: str) -> None:
    hosts, lanes = map(int, topology.split("x"))
    cases = [case for case in CASES if case["topology"] == topology]
    wrong, *_ = run_ranks(hosts * lanes, compare, cases, timeout=240, env=partial(launcher_env, topology))
    assert not wrong, "\n".join(wrong[:30])
