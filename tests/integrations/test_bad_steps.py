"""A step with a gradient that is not finite on one rank: on none does it change tables, parameters or optimizer states.

A run with a bad step in its middle is compared, bit for bit, with itself before that step and with a run without it.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from tests._util.ranks import run_ranks
from tests.integrations import runs

MICRO = {"gradient_accumulation_steps": 2}
BF16 = {"bf16": {"enabled": True}}
BAD = {"dense": float("inf"), "sum": 3e38}  # as a gradient of rank 1, of both
TOWERS_CR4 = {"towers": {"module": "dlrm", "c": 4, "p": 1, "dim": 4}}

#: stage, backend of the tables, what is bad, more of the configuration
CASES: list[dict[str, Any]] = [
    {"stage": 0, "backend": "auto", "bad": "loss"},
    {"stage": 0, "backend": "torch", "bad": "rows"},
    {"stage": 0, "backend": "auto", "bad": "rows", "dmt": TOWERS_CR4},
    {"stage": 0, "backend": "auto", "bad": "dense", "ds": MICRO},
    {"stage": 0, "backend": "auto", "bad": "dense", "dmt": {"comm": {"overlap": False}}},
    {"stage": 0, "backend": "auto", "bad": "sum", "dmt": TOWERS_CR4},
    {"stage": 0, "backend": "auto", "bad": "loss", "ds": BF16},
    {"stage": 1, "backend": "auto", "bad": "loss"},
    {"stage": 1, "backend": "torch", "bad": "dense"},
    {"stage": 1, "backend": "auto", "bad": "rows", "ds": BF16},
    {"stage": 2, "backend": "auto", "bad": "rows", "ds": MICRO},
    {"stage": 2, "backend": "torch", "bad": "loss"},
]


def one_backward(engine: Any, batch: Any, seed: int, bad: str | None) -> None:
    """A micro-batch; with ``bad``, a gradient of rank 1 is not finite, or only the sum of all ranks' is not."""
    rank, world = engine.dmt.groups.rank, engine.dmt.topology.world_size
    spoils = bad if rank == 1 else None
    handle = None
    if spoils == "rows":
        handle = engine.dmt.lookup.register_forward_hook(infinite_gradient)
    elif spoils == "dense" or bad == "sum":
        parameter = next(p for p in engine.module.parameters() if p.requires_grad)
        handle = parameter.register_hook(lambda gradient: torch.full_like(gradient, BAD[bad]))
    out = engine(*runs.part_of(batch(runs.GLOBAL, seed), rank, world)).reshape(-1).float()
    loss = out.square().mean() * (float("nan") if spoils == "loss" else 1.0)
    engine.backward(loss)
    engine.step()
    if handle is not None:
        handle.remove()


def infinite_gradient(lookup: Any, inputs: Any, rows: Any) -> Any:
    rows = rows.clone()
    rows.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
    return rows


def one_step(engine: Any, batch: Any, seed: int, bad: str | None = None) -> None:
    count = engine.gradient_accumulation_steps()
    for micro in range(count):
        one_backward(engine, batch, seed + micro, bad if micro == 0 else None)


def engine_of(case: dict[str, Any], **lookup: Any) -> Any:
    tables = {"backend": case["backend"], **lookup}
    # No dropout, which draws in a bad step too, and no running statistics, which its forward pass changes.
    return runs.make("2x1", "dlrm", stage=case["stage"], tables=tables, dmt=case.get("dmt"), ds=case.get("ds"))


def values_of(engine: Any) -> dict[str, Any]:
    """All but the counters, which a skipped step counts."""
    return {name: value for name, value in runs.everything(engine).items() if name != "counters"}


class Said(logging.Handler):
    """What the verdicts said."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def check_all(rank: int, world_size: int, cases: list[dict[str, Any]]) -> list[str]:
    said = Said()
    logging.getLogger("dmt_plugin.integrations.deepspeed.engine.bad_steps").addHandler(said)
    problems: list[str] = []
    for case in cases:
        said.lines.clear()
        problems += [f"{case}: {problem}" for problem in check_case(rank, case, said)]
    problems += a_backward_pass_without_step()
    return [*problems, *unchecked_tables_are_lost(), *bad_micro_batch_updates_no_table(rank, said)]


def check_case(rank: int, case: dict[str, Any], said: Said) -> list[str]:
    engine, batch = engine_of(case)
    one_step(engine, batch, 10)
    before = values_of(engine)
    one_step(engine, batch, 20, case["bad"])
    problems = [f"the bad step changed {name}" for name in runs.differences(values_of(engine), before)]
    if engine.skipped_steps != 1 or engine.was_step_applied():
        problems.append(f"{engine.skipped_steps} skipped steps, applied {engine.was_step_applied()}")
    if engine.get_global_grad_norm() != float("inf"):
        problems.append(f"norm {engine.get_global_grad_norm()}")
    dense = "gradients of the dense part"
    words = {"loss": "dense part", "rows": "rows of tables on rank(s) 1", "dense": dense, "sum": dense}
    expected = [word in line for line in said.lines for word in (words[case["bad"]], "step 2 ")]
    if rank == 0 and expected != [True, True]:
        problems.append(f"said {said.lines}")
    one_step(engine, batch, 30)
    after = values_of(engine)
    engine.destroy()
    other, batch = engine_of(case)
    one_step(other, batch, 10)
    one_step(other, batch, 30)
    problems += [f"after the next step: {name}" for name in runs.differences(after, values_of(other))]
    if not runs.differences(after, before):
        problems.append("the next step changed nothing")
    other.destroy()
    return problems


def a_backward_pass_without_step() -> list[str]:
    """Its gradients are dropped, and its verdict with them: the step after the next backward pass is applied."""
    engine, batch = engine_of(CASES[0])
    rank, world = engine.dmt.groups.rank, engine.dmt.topology.world_size
    engine.backward(engine(*runs.part_of(batch(runs.GLOBAL, 10), rank, world)).mean() * float("nan"))
    engine.zero_grad()
    engine.dmt.lookup.zero_grad()
    one_step(engine, batch, 20)
    skipped = engine.skipped_steps
    engine.destroy()
    return [f"{skipped} skipped steps behind a backward pass that was dropped"] if skipped else []


def unchecked_tables_are_lost() -> list[str]:
    """Without the check: DeepSpeed skips the dense step, and PyTorch's tables with it; FBGEMM has updated its own."""
    problems = []
    for backend in ("fbgemm", "torch"):
        engine, batch = engine_of({"stage": 1, "backend": backend}, check_finite=False)
        one_step(engine, batch, 10, "loss")
        tables = [engine.dmt.lookup.table_weight(name) for name in engine.dmt.lookup.tables]
        kept = all(bool(table.isfinite().all()) for table in tables)
        if kept != (backend == "torch") or engine.skipped_steps != 1:
            problems.append(f"{backend}: tables kept: {kept}, {engine.skipped_steps} skipped steps without the check")
        engine.destroy()
    return problems


def bad_micro_batch_updates_no_table(rank: int, said: Said) -> list[str]:
    """Each micro-batch updates tables: a bad one none, on no rank; the other one does, and so does the dense step."""
    problems = []
    for backend in ("auto", "torch"):
        said.lines.clear()
        case = {"stage": 0, "backend": backend, "ds": MICRO}
        engine, batch = engine_of(case, accumulation="per_micro_batch")
        lookup = engine.dmt.lookup
        tables = {name: lookup.table_weight(name).clone() for name in lookup.tables}
        one_backward(engine, batch, 10, "rows")
        problems += [f"{name} changed" for name in tables if not torch.equal(tables[name], lookup.table_weight(name))]
        one_backward(engine, batch, 11, None)
        values = [lookup.table_weight(name) for name in tables]
        if not all(bool(v.isfinite().all()) for v in values) or all(map(torch.equal, values, tables.values())):
            problems.append("the good micro-batch did not update the tables, or not well")
        if engine.skipped_steps or (rank == 0 and "micro-batch 0 " not in said.lines[0]):
            problems.append(f"{engine.skipped_steps} skipped steps, said {said.lines}")
        engine.destroy()
    return problems


@pytest.mark.processes
def test_a_bad_step_changes_nothing():
    found = run_ranks(2, check_all, CASES, timeout=240, env=lambda rank: {"LOCAL_RANK": str(rank)})
    problems = [f"rank {rank}, {problem}" for rank, list_of in enumerate(found) for problem in list_of]
    assert not problems, "\n" + "\n".join(problems)
