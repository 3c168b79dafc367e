"""On ranks: tables that are frozen before ``initialize`` or in mid-run, their checkpoints, and what is refused.

The single process trains the same model, with the same rule for the tables that are trained in a step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.core.errors import CheckpointError, ConfigError, TablesReleasedError
from dmt_plugin.core.update_rule import Rule
from tests._util.ranks import run_ranks
from tests.integrations.test_trained_as_the_dense_part import (
    ADAM,
    EPS,
    LR,
    Net,
    batch,
    differences,
    engine_of,
    model,
    train,
)
from tests.test_placement_laws import OneTable

STEPS = 6


def with_frozen(*tables: int) -> Net:
    flat = model()
    for table in tables:
        flat.tables[table].requires_grad_(False)
    return flat


def ds(stage: int = 0) -> dict[str, Any]:
    return {**ADAM, "zero_optimization": {"stage": stage}}


def single(frozen: Any) -> dict[str, Tensor]:
    """Trained with Adam in one process; ``frozen(step)`` names the tables that stand still in a step."""
    flat = model()
    tables = [OneTable(Rule("adam", LR, EPS), table.weight) for table in flat.tables]
    dense = torch.optim.Adam(flat.top.parameters(), lr=LR, eps=EPS)
    for step in range(STEPS):
        flat.zero_grad()
        ids, label = batch(step)
        nn.functional.binary_cross_entropy_with_logits(flat(ids), label).backward()
        dense.step()
        for number, table in enumerate(tables):
            if number not in frozen(step):
                table.step()
    return {name: value.detach() for name, value in flat.state_dict().items()}


def from_the_start() -> list[str]:
    problems = []
    expected = single(lambda step: (1, 2))
    start = model().state_dict()
    for stage in (0, 1, 2):
        flat = with_frozen(1, 2)
        engine = engine_of(flat, ds=ds(stage), model_parameters=[p for p in flat.parameters() if p.requires_grad])
        train(engine, range(STEPS))
        problems += [f"stage {stage}: {problem}" for problem in differences(engine, expected)]
        found = engine.gather_state()
        for name in ("tables.1.weight", "tables.2.weight") if found is not None else ():
            problems += [] if torch.equal(found[name], start[name]) else [f"stage {stage}: {name} has changed"]
        states = {table: bool(engine.dmt.lookup.optimizer_state(table)) for table in engine.dmt.lookup.tables}
        if any(states[t] for t in states if t in ("tables.1", "tables.2")) or not any(states.values()):
            problems.append(f"stage {stage}: {states}")
        sent = engine.dmt.traffic.as_dict()["peers"]
        if 2 * sent["backward"]["other_hosts"] != sent["forward"]["other_hosts"]:
            problems.append(f"stage {stage}: {sent}")
        engine.destroy()
    return problems


def modules_behind_frozen_tables() -> list[str]:
    """Both tables of host 0 are frozen; its tower module is trained, and so is the other's."""
    engine = engine_of(with_frozen(0, 2), {"towers": {"module": "dlrm", "c": 1, "p": 1, "dim": 2}}, ds=ds())
    towers = {n: p.detach().clone() for n, p in engine.module.named_parameters() if "dmt_towers" in n}
    train(engine, range(2))
    still = [n for n, p in engine.module.named_parameters() if n in towers and torch.equal(p.detach(), towers[n])]
    engine.destroy()
    return still + ([] if towers else ["no towers"])


def in_mid_run(backend: str, accumulation: str = "accumulate") -> list[str]:
    lookup = {"backend": backend, "accumulation": accumulation}
    engine = engine_of(model(), {"lookup": lookup}, ds=ds())
    train(engine, range(2))
    frozen = engine.freeze_tables(["tables.[01]", "tables.3.weight"])
    train(engine, range(2, 4))
    left = engine.freeze_tables("tables.1", frozen=False)
    train(engine, range(4, STEPS))
    expected = single(lambda step: {2: (0, 1, 3), 3: (0, 1, 3), 4: (0, 3), 5: (0, 3)}.get(step, ()))
    problems = differences(engine, expected)
    engine.destroy()
    if (frozen, left) != (["tables.0", "tables.1", "tables.3"], ["tables.0", "tables.3"]):
        problems.append(f"{frozen}, {left}")
    return problems


def resumed(folder: str) -> list[str]:
    """A run goes on with what was frozen in it; what is kept for these tables is stored."""
    engine = engine_of(model(), ds=ds())
    train(engine, range(2))
    engine.freeze_tables("tables.0")
    train(engine, range(2, 4))
    engine.save_checkpoint(folder, "half")
    engine.destroy()
    other = engine_of(model(), ds=ds())
    other.freeze_tables("tables.3")  # stays, and is no part of the checkpoint
    other.load_checkpoint(folder, "half")
    if sorted(other.dmt.frozen) != ["tables.0", "tables.3"]:
        return [f"frozen are {sorted(other.dmt.frozen)}"]
    other.freeze_tables("tables.3", frozen=False)
    train(other, range(4, 5))
    other.freeze_tables("*", frozen=False)
    train(other, range(5, STEPS))
    problems = differences(other, single(lambda step: (0,) if step in (2, 3, 4) else ()))
    other.destroy()
    return problems


def checkpoints(folder: str) -> list[str]:
    """Of a frozen table into one that is trained, and back: never silently."""
    saved = {"frozen": with_frozen(0, 1), "trained": model()}
    for name, flat in saved.items():
        engine = engine_of(flat, ds=ds())
        train(engine, range(2))
        engine.save_checkpoint(folder, name)
        engine.destroy()
    problems = []
    words = {
        "frozen": ["(tables.0, tables.1) were frozen, and would be trained by adam", "requires_grad_(False)"],
        "trained": ["(tables.0, tables.1) were trained by adam, and are frozen now", "freeze_tables(['tables.0', 'tab"],
    }
    for name, flat in (("frozen", model()), ("trained", with_frozen(0, 1))):
        engine = engine_of(flat, ds=ds())
        try:
            engine.load_checkpoint(folder, name)
            problems.append(f"{name}: loaded")
        except CheckpointError as error:
            problems += [f"{name}: {error}" for part in words[name] if part not in str(error)]
        engine.load_checkpoint(folder, name, load_optimizer_states=False)
        train(engine, range(2, 3))
        engine.destroy()
    engine = engine_of(with_frozen(0, 1), ds=ds())
    engine.load_checkpoint(folder, "frozen")
    train(engine, range(2, STEPS))
    problems += differences(engine, single(lambda step: (0, 1)))
    engine.destroy()
    return problems


def refused(call: Any, kind: type[Exception], *parts: str) -> list[str]:
    try:
        call()
    except kind as error:
        return [f"{part!r} is not in: {error}" for part in parts if part not in str(error)]
    return [f"not refused: {parts}"]


def refusals() -> list[str]:
    flat = with_frozen(2)
    engine = engine_of(flat, ds=ds())
    train(engine, range(1))
    before, rank = engine.gather_state(ranks="all"), engine.dmt.groups.rank
    offer = "engine.freeze_tables(names)"
    problems = [
        *refused(lambda: flat.tables[0].requires_grad_(False), TablesReleasedError, "of tables.0.weight", offer),
        *refused(lambda: flat.tables[2].weight.requires_grad_(True), TablesReleasedError, "of tables.2.weight", offer),
        *refused(lambda: setattr(flat.tables[1].weight, "requires_grad", False), TablesReleasedError, offer),
        *refused(lambda: engine.freeze_tables("table.1"), ConfigError, "'table.1'", "did you mean 'tables.1'"),
        *refused(lambda: engine.freeze_tables("*", frozen=False), ConfigError, "tables.2 had requires_grad = False"),
        *refused(lambda: engine.freeze_tables(f"tables.{rank}"), ConfigError, "on all ranks", "rank 1 for ['t"),
        *refused(lambda: (flat.tables[1].weight**2).sum(), TablesReleasedError, "tables.1.weight", "weight_decay"),
    ]  # fmt: skip
    flat.tables[0].requires_grad_(True)  # as they are
    flat.tables[2].requires_grad_(False)
    flat.top.bias.requires_grad_(False)
    problems += refused(lambda: train(engine, range(1, 2)), ConfigError, "top.bias was True", offer)
    after = engine.gather_state(ranks="all")
    problems += [name for name in before if not torch.equal(before[name], after[name])]
    flat.top.bias.requires_grad_(True)
    engine.dmt.lookup.zero_grad()
    engine.destroy()
    return problems


def within_a_step() -> list[str]:
    engine = engine_of(model(), ds={**ds(), "gradient_accumulation_steps": 2})
    train(engine, range(1))
    problems = refused(lambda: engine.freeze_tables("tables.0"), Exception, "within a step")
    train(engine, range(1, 2))
    engine.freeze_tables("tables.0")
    engine.destroy()
    return problems


def check_all(rank: int, world_size: int, folder: str) -> list[str]:
    checks = {
        "from the start": from_the_start, "modules": modules_behind_frozen_tables,
        "mid-run": lambda: in_mid_run("auto"), "per micro batch": lambda: in_mid_run("torch", "per_micro_batch"),
        "resumed": lambda: resumed(folder), "checkpoints": lambda: checkpoints(f"{folder}/more"),
        "refusals": refusals, "within a step": within_a_step,
    }  # fmt: skip
    return [f"{name}: {problem}" for name, check in checks.items() for problem in check()]


@pytest.mark.processes
def test_frozen_tables(tmp_path: Path) -> None:
    found = run_ranks(2, check_all, str(tmp_path), timeout=240, env=lambda rank: {"LOCAL_RANK": str(rank)})
    problems = [f"rank {rank}, {problem}" for rank, list_of in enumerate(found) for problem in list_of]
    assert not problems, "\n" + "\n".join(problems)
