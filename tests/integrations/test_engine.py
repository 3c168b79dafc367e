"""The engine on real gloo ranks against one process that holds everything.

The placed model here is made by hand (``standin.py``), so that what is tested is the DeepSpeed side: reduction of
unequal towers at ZeRO 0, 1 and 2, the exact norm, clipping, accumulation, tables, and what happens to errors.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests._util.ranks import run_ranks
from tests.integrations import standin

TOLERANCE = 1e-6
STEPS, BATCH = 3, 4

#: stage, gradient clipping, accumulation, optimizer, equal towers, extra zero keys, form of model_parameters
CASES: list[dict[str, Any]] = [
    {"stage": 0},
    {"stage": 0, "clip": 0.1, "gas": 2},
    {"stage": 0, "clip": 0.05, "optimizer": "SGD", "equal": True},
    {"stage": 0, "clip": 0.1, "optimizer": "callable", "form": "groups"},
    {"stage": 1, "form": "list"},
    {"stage": 1, "clip": 0.1, "optimizer": "built", "form": "groups"},
    {"stage": 0, "optimizer": "built"},
    {"stage": 1, "clip": 0.1, "gas": 2},
    {"stage": 1, "clip": 0.1, "zero": {"overlap_comm": True}, "form": "groups"},
    {"stage": 2, "optimizer": "SGD"},
    {"stage": 2, "optimizer": "SGD", "clip": "default"},
    {"stage": 2, "clip": 0.1, "gas": 2, "optimizer": "callable"},
    {"stage": 2, "clip": 0.1, "equal": True, "zero": {"reduce_bucket_size": 60}},
]


def launcher_env(hosts: int, lanes: int):
    def env(rank: int) -> dict[str, str]:
        return {
            "CROSS_RANK": str(rank // lanes),
            "CROSS_SIZE": str(hosts),
            "LOCAL_SIZE": str(lanes),
            "LOCAL_RANK": str(rank % lanes),
            "RANK": str(rank),
            "WORLD_SIZE": str(hosts * lanes),
        }

    return env


def make_optimizer(name: str, parameters: Any) -> torch.optim.Optimizer:
    if name == "SGD":
        return torch.optim.SGD(parameters, lr=0.05)
    return torch.optim.Adam(parameters, lr=0.01)


def ds_config(case: dict[str, Any], world_size: int) -> dict[str, Any]:
    gas = case.get("gas", 1)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": BATCH,
        "gradient_accumulation_steps": gas,
        "zero_optimization": {"stage": case["stage"], **case.get("zero", {})},
        "zero_allow_untested_optimizer": "tested" not in case,
        "steps_per_print": 100000,
    }
    if case.get("clip") != "default":
        config["gradient_clipping"] = case.get("clip", 0.0)
    name = case.get("optimizer", "Adam")
    if name == "SGD":
        config["optimizer"] = {"type": "SGD", "params": {"lr": 0.05}}
    elif name == "Adam":
        config["optimizer"] = {"type": "Adam", "params": {"lr": 0.01, "torch_adam": True, "adam_w_mode": False}}
    return config


def parameters_in(form: str | None, whole: nn.Module) -> Any:
    if form == "list":
        return list(whole.parameters())
    if form == "groups":
        biases = [p for name, p in whole.named_parameters() if name.endswith("bias")]
        others = [p for name, p in whole.named_parameters() if not name.endswith("bias")]
        return [{"params": others}, {"params": biases, "lr": 0.01}]
    return None


def start(case: dict[str, Any], hosts: int, lanes: int, rank: int) -> Any:
    """An engine on this rank, from a random state of its own that only rank 0 and the first lanes are right about."""
    from dmt_plugin.config.deepspeed import DeepSpeedSettings
    from dmt_plugin.config.section import DMTConfig
    from dmt_plugin.integrations.deepspeed.arguments.parameters import read_parameters
    from dmt_plugin.integrations.deepspeed.initialize import Call, connect, launch, to_optimize
    from dmt_plugin.integrations.deepspeed.weight_sync import sync_tables
    from dmt_plugin.topology.discovery import discover_topology
    from dmt_plugin.topology.groups import create_groups

    connect(29500, None, 60.0)
    resolved = discover_topology()
    assert str(resolved.topology) == f"{hosts}x{lanes}"
    groups = create_groups(resolved.topology, timeout_s=60.0)
    whole = standin.Whole(hosts, case.get("equal", False))
    right = copy.deepcopy(whole)
    if rank != 0:
        standin.scramble(nn.ModuleList([whole.bottom, whole.over, whole.tables]), rank)
    if rank % lanes != 0:
        standin.scramble(whole.towers, 100 + rank)
    options: dict[str, Any] = {"model": whole, "model_parameters": parameters_in(case.get("form"), whole)}
    if case.get("optimizer") == "callable":
        options["optimizer"] = lambda parameters: make_optimizer("Adam", parameters)
    if case.get("optimizer") == "built":
        options["optimizer"] = make_optimizer("Adam", options.pop("model_parameters") or list(whole.parameters()))
    flat = read_parameters(whole, to_optimize(options))
    placed = standin.Standin(whole, resolved.topology, rank)
    sync_tables(placed.lookup, lambda name: right.get_parameter(f"{name}.weight"), groups, chunk_elements=5)
    config = ds_config(case, hosts * lanes)
    before = copy.deepcopy(config)
    options |= {"config": config, "optimizer": options.get("optimizer")}
    engine, *_ = launch(placed, Call(options, DeepSpeedSettings(config)), DMTConfig(), groups, resolved.source, flat)
    assert config == before, "the user's configuration is not changed"
    return engine


def train(rank: int, world_size: int, hosts: int, lanes: int, cases: list[dict[str, Any]]) -> list[str]:
    problems = []
    for case in cases:
        problems += [f"{case}: {p}" for p in train_one(rank, world_size, hosts, lanes, case)]
    return problems


def train_one(rank: int, world_size: int, hosts: int, lanes: int, case: dict[str, Any]) -> list[str]:
    gas, clip = case.get("gas", 1), case.get("clip", 0.0)
    if clip == "default":
        clip = 1.0  # what DeepSpeed does when the key is missing
    data = standin.batches(STEPS * gas, world_size, BATCH)
    name = case.get("optimizer", "Adam")
    expected, norms = standin.train_whole(
        hosts, data, gas, clip, lambda p: make_optimizer(name, p), case.get("equal", False)
    )
    engine = start(case, hosts, lanes, rank)
    problems = []
    mine = slice(rank * BATCH, (rank + 1) * BATCH)
    found_norms = []
    for x, ids, label in data:
        engine.backward(standin.loss_of(engine(x[mine], ids[mine]), label[mine]))
        engine.step()
        if engine.global_steps > len(found_norms):
            found_norms.append(engine.get_global_grad_norm())
    host = rank // lanes
    pairs = {}
    module = engine.module
    for part, prefix in ((module.bottom, "bottom"), (module.over, "over"), (tower_of(module), f"towers.{host}")):
        pairs.update({f"{prefix}.{k}": v for k, v in part.state_dict().items()})
    pairs.update({f"{k}.weight": v for k, v in engine.dmt.lookup.weights.items()})
    for key, value in pairs.items():
        difference = float((value.detach() - expected[key]).abs().max())
        if not difference <= TOLERANCE:
            problems.append(f"{key} differs by {difference:.2g}")
    if clip or case["stage"] > 0:
        for found, norm in zip(found_norms, norms, strict=True):
            if abs(float(found) - norm) > 1e-5 * norm:
                problems.append(f"norm {float(found)} instead of {norm}")
        if clip and not max(norms) > clip:
            problems.append(f"the case does not clip: norms {norms}")
    if engine.dmt.lookup.steps != STEPS or engine.dmt.transport.step != STEPS:
        problems.append(f"{engine.dmt.lookup.steps} table steps, transport at {engine.dmt.transport.step}")
    engine.destroy()
    return problems


def tower_of(module: nn.Module) -> nn.Module:
    tower = module.local["tower"]
    return getattr(tower, "tower", tower)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("hosts", "lanes", "cases"),
    [(2, 2, CASES), (2, 1, [CASES[1], CASES[5], CASES[9]]), (1, 2, [CASES[1], CASES[5], CASES[9]])],
)
def test_training_equals_one_process(hosts, lanes, cases):
    world_size = hosts * lanes
    found = run_ranks(world_size, train, hosts, lanes, cases, timeout=240, env=launcher_env(hosts, lanes))
    problems = [f"rank {rank}, {problem}" for rank, list_of in enumerate(found) for problem in list_of]
    assert not problems, "\n" + "\n".join(problems)


def other_behaviour(rank: int, world_size: int) -> dict[str, Any]:
    """Everything that needs an engine but no training, in one go."""
    import deepspeed

    from dmt_plugin.core.errors import ConfigError, DMTError
    from dmt_plugin.integrations.deepspeed import DMTEngine, initialize
    from dmt_plugin.integrations.deepspeed.tower_shell import TowerShell
    from dmt_plugin.integrations.deepspeed.weight_sync import sync_tables
    from dmt_plugin.topology.agreement import together

    stock = deepspeed.DeepSpeedEngine
    engine = start({"stage": 1}, 2, 1, rank)
    seen: dict[str, Any] = {"engine": type(engine) is DMTEngine, "restored": deepspeed.DeepSpeedEngine is stock}
    seen["shell"] = isinstance(engine.module.local["tower"], TowerShell)
    for refused in ({"schedule": [(0, [])]}, {"compiled_autograd_enabled": True}):
        with pytest.raises(DMTError, match="have to stay out of what is compiled"):
            engine.compile(**refused)
    with pytest.raises(ConfigError, match='"zero_allow_untested_optimizer": true'):
        start({"stage": 1, "optimizer": "SGD", "tested": True}, 2, 1, rank)
    groups = engine.dmt.groups

    def fails_on_one():
        with together(groups, "trying"):
            if rank == 1:
                raise ValueError("just here")

    with pytest.raises(ValueError if rank == 1 else DMTError, match="just here") as caught:
        fails_on_one()
    seen["together"] = str(caught.value)

    smaller = standin.StandinLookup({"tables.0": torch.zeros(3, standin.DIM)} if rank == 1 else {})
    with pytest.raises(ConfigError, match=r"tables.0 has rows and columns \(8, 4\) on its owner, rank 1, and \(3, 4\)"):
        sync_tables(smaller, lambda name: torch.zeros(3, 4), groups)

    with pytest.raises(ConfigError, match="reduce_bucket_size = 20"):
        start({"stage": 2, "zero": {"reduce_bucket_size": 20}}, 2, 1, rank)

    # without the section: the stock engine, the model itself
    for section in ({}, {"dmt": {"enabled": False}}):
        model = nn.Linear(3, 1)
        names = [type(m) for m in model.modules()]
        config = {**ds_config({"stage": 1}, world_size), **section}
        engine, optimizer, loader, _ = initialize(
            model=model,
            config=config,
            training_data=TensorDataset(torch.rand(16, 3)),
            model_parameters=model.parameters(),
        )
        seen[f"stock {section}"] = (
            type(engine) is stock
            and engine.module is model
            and [type(m) for m in model.modules()] == names
            and optimizer is engine.optimizer
            and loader is not None
        )
        engine.destroy()
    return seen


@pytest.mark.processes
def test_other_behaviour():
    first, second = run_ranks(2, other_behaviour, timeout=120, env=launcher_env(2, 1))
    said = [seen.pop("together") for seen in (first, second)]
    assert said == ["rank 1 failed while trying, so all ranks stop: ValueError: just here", "just here"]
    for seen in (first, second):
        assert all(seen.values()), seen
