"""On ranks: tables that are trained by the rule of the script's optimizer, its groups and its schedule, and resumed.

The single process trains the same model with torch's optimizer for the rest and the same rule for the tables. Epsilon
is large enough for Adam not to blow up what rounding leaves where gradients cancel.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.core.update_rule import Rule
from tests._util.ranks import run_ranks
from tests.test_placement_laws import OneTable

LR, EPS, STEPS, SAMPLES = 0.01, 1e-4, 20, 8


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(12, 4) for _ in range(4))
        self.top = nn.Linear(16, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.top(torch.cat([t(ids[:, i]) for i, t in enumerate(self.tables)], 1)).squeeze(1)


def model() -> Net:
    torch.manual_seed(0)
    return Net()


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 12, (SAMPLES, 4), generator=generator)
    return ids, (ids[:, 0] % 2).float()


def engine_of(flat: Net, dmt: dict[str, Any] | None = None, **given: Any) -> Any:
    import dmt_plugin

    config = {
        "train_micro_batch_size_per_gpu": SAMPLES // 2,
        "gradient_clipping": 0.0,
        "steps_per_print": 100000,
        "dmt": {"topology": {"hosts": 2, "ranks_per_host": 1}, "towers": {"module": "none"}, **(dmt or {})},
        **given.pop("ds", {}),
    }
    engine, *_ = dmt_plugin.initialize(model=flat, config=config, example_batch=(batch(0)[0],), **given)
    return engine


ADAM = {"optimizer": {"type": "Adam", "params": {"lr": LR, "torch_adam": True, "weight_decay": 0.0, "eps": EPS}}}


def train(engine: Any, steps: range) -> None:
    rank = engine.dmt.groups.rank
    for step in steps:
        ids, label = (x.chunk(2)[rank] for x in batch(step))
        engine.backward(nn.functional.binary_cross_entropy_with_logits(engine(ids), label))
        engine.step()


def single(
    flat: Net, *optimizers: torch.optim.Optimizer, tables: Any = (), factor: Any = lambda step: 1.0
) -> dict[str, Tensor]:
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    for step in range(STEPS):
        flat.zero_grad()
        ids, label = batch(step)
        nn.functional.binary_cross_entropy_with_logits(flat(ids), label).backward()
        for optimizer, own in zip(optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, own, strict=True):
                group["lr"] = rate * factor(step)
            optimizer.step()
        for table in tables:
            table.step()
    return {name: value.detach() for name, value in flat.state_dict().items()}


def differences(engine: Any, expected: dict[str, Tensor], tolerance: float = 2e-6) -> list[str]:
    found = engine.gather_state()
    if found is None:
        return []
    worst = {name: float((found[name] - value).abs().max()) for name, value in expected.items()}
    return [f"{name}: {off:.1e}" for name, off in worst.items() if not off <= tolerance]


def adam_for_everything() -> list[str]:
    engine = engine_of(model(), ds=ADAM)
    train(engine, range(STEPS))
    flat = model()
    tables = [OneTable(Rule("adam", LR, EPS), table.weight) for table in flat.tables]
    expected = single(flat, torch.optim.Adam(flat.top.parameters(), lr=LR, eps=EPS), tables=tables)
    problems = differences(engine, expected)
    engine.destroy()
    return problems


def groups_and_schedule() -> list[str]:
    """Tables 1 to 3 in a group of their own, with another rate; a scheduler of torch moves both."""

    def groups(flat: Net) -> list[dict[str, Any]]:
        tables = [table.weight for table in flat.tables]
        return [{"params": [*flat.top.parameters(), tables[0]]}, {"params": tables[1:], "lr": 5 * LR}]

    def factor(step: int) -> float:
        return 1.0 / (1 + step)

    flat = model()
    optimizer = torch.optim.Adagrad(groups(flat), lr=LR, initial_accumulator_value=0.1)
    engine = engine_of(flat, optimizer=optimizer, lr_scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, factor))
    train(engine, range(STEPS))
    other = model()
    problems = differences(
        engine, single(other, torch.optim.Adagrad(groups(other), lr=LR, initial_accumulator_value=0.1), factor=factor)
    )
    engine.destroy()
    return problems


def resumed(folder: str) -> list[str]:
    """Ten steps, saved, and ten more in a new engine are twenty, bit for bit; another rule is refused by name."""
    from dmt_plugin import DMTError

    whole = engine_of(model(), ds=ADAM)
    train(whole, range(STEPS))
    first = engine_of(model(), ds=ADAM)
    train(first, range(10))
    first.save_checkpoint(folder)
    second = engine_of(model(), ds=ADAM)
    second.load_checkpoint(folder)
    train(second, range(10, STEPS))
    states = [engine.gather_state() for engine in (whole, second)]
    problems = []
    if states[0] is not None and states[1] is not None:
        problems += [f"resumed: {n}" for n, v in states[0].items() if not torch.equal(v, states[1][n])]
    other = engine_of(model(), {"lookup": {"optimizer": "rowwise_adagrad"}}, ds=ADAM)
    try:
        other.load_checkpoint(folder)
        problems.append("loaded under another rule")
    except DMTError as error:
        for part in ("4 table(s) (tables.0", "trained by adam", "by rowwise_adagrad", '"optimizer": "adam"'):
            if part not in str(error):
                problems.append(f"{part!r} is not in: {error}")
    other.load_checkpoint(folder, load_optimizer_states=False)
    for engine in (whole, first, second, other):
        engine.destroy()
    return problems


def refusals() -> list[str]:
    problems = []
    for ds, given, part in (
        ({}, {}, "there is no optimizer"),
        ({"optimizer": {"type": "Lion", "params": {"lr": 0.1}}}, {}, "'Lion'"),
        (ADAM, {"model_parameters": "top"}, "model_parameters"),
        (ADAM, {"dmt": {"lookup": {"tables": {"no_such": {}}}}}, "no_such"),
    ):
        flat = model()
        if given.get("model_parameters") == "top":
            given = {"model_parameters": list(flat.top.parameters())}
        try:
            engine_of(flat, ds=ds, **copy.copy(given)).destroy()
            problems.append(f"{part}: not refused")
        except ValueError as error:
            if part not in str(error) or "dmt.lookup" not in str(error):
                problems.append(f"{part}: {error}")
    return problems


def penalty_in_the_loss() -> list[str]:
    flat = model()
    engine = engine_of(flat, ds=ADAM)
    try:
        sum(table.weight.pow(2).sum() for table in flat.tables)
        return ["a penalty over tables that are not there"]
    except RuntimeError as error:
        return [] if "dmt.lookup.weight_decay" in str(error) else [str(error)]
    finally:
        engine.destroy()


def check_all(rank: int, world_size: int, folder: str) -> list[str]:
    checks = (adam_for_everything, groups_and_schedule, lambda: resumed(folder), refusals, penalty_in_the_loss)
    return [f"{getattr(check, '__name__', 'resumed')}: {problem}" for check in checks for problem in check()]


@pytest.mark.processes
def test_tables_are_trained_as_the_script_says(tmp_path: Path) -> None:
    found = run_ranks(2, check_all, str(tmp_path), timeout=240, env=lambda rank: {"LOCAL_RANK": str(rank)})
    problems = [f"rank {rank}, {problem}" for rank, list_of in enumerate(found) for problem in list_of]
    assert not problems, "\n" + "\n".join(problems)
