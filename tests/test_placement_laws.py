"""Training with divided tables is training with whole ones: simulated ranks against one process, step after step.

Outputs of every step, all dense and tower parameters, all tables and their optimizers' states after five steps, for
tables in row ranges, in column ranges and mixed, on both backends and under every update rule (which is itself compared
with torch's optimizers in ``tests/nn/test_updates.py``). Tolerance: 2e-6 on values of order one, and of larger outputs
relative to the largest; epsilon is large enough for Adagrad not to blow up rounding where gradients cancel.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.checkpoint import join_tables
from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.model.placed import PlacedModel, place
from dmt_plugin.nn.lookup.updates import new_states, updated
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWire, SimulatedWorld
from tests.test_placed_laws import loss_of, prepared
from tests.zoo.catalogue import CATALOGUE
from tests.zoo.models import ZOO

TOLERANCE = 2e-6
STEPS = 5
DENSE_LR, TABLE_LR, EPS = 0.05, 0.1, 1e-2

PLACEMENTS: dict[str, dict[str, Any]] = {
    "rows": {"strategy": "row_wise"},
    "columns": {"strategy": "column_wise"},
    "mixed": {"strategy": "row_wise", "overrides": {"bags.field_1": "column_wise", "bags.field_2": "table_wise"}},
    "whole": {"strategy": "table_wise"},
    "lanes": {"split_gain": 1.0},
}


def max_bags() -> tuple[nn.Module, Any]:
    """Bags of zero to three ids, half of them pooled by maximum."""
    model, batch = ZOO["multi_hot_dlrm"]()
    for table in list(model.modules()):
        if isinstance(table, nn.EmbeddingBag) and table.mode == "mean":
            table.mode = "max"
    return model, batch


MODELS = {
    **ZOO,
    "max": max_bags,
    "joint": CATALOGUE["joint_dlrm"].build,
    "sequence": CATALOGUE["deepctr_deepfm_sequence"].build,
    **{name: variant.build for name, variant in CATALOGUE.items() if name.startswith("seq_")},
}


def batch_size(step: int, rank: int) -> int:
    return (3, 1, 2, 5)[(step + rank) % 4]


class OneTable:
    """The update of a whole table that has a dense gradient: rows whose gradient is not zero were looked up."""

    def __init__(self, rule: Rule, weight: nn.Parameter) -> None:
        self.rule, self.weight, self.steps = rule, weight, 0
        self.states = new_states(rule, *weight.shape, weight.device)

    @torch.no_grad()
    def step(self) -> None:
        gradient = self.weight.grad
        if self.rule.frozen:
            assert gradient is None
            return
        assert gradient is not None
        self.steps += 1
        seen = gradient.abs().sum(1) > 0
        kept = {key: state[seen] for key, state in self.states.items()}
        self.weight[seen] = updated(self.rule, self.rule.lr, self.steps, self.weight[seen], gradient[seen], kept)
        for key, state in self.states.items():
            state[seen] = kept[key]


State = tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]


def one_process(logical: TowerModel, config: DMTConfig, batches: list[list[Any]]) -> State:
    """Outputs by step and rank, parameters, optimizer states."""
    model = copy.deepcopy(logical).train()
    named = dict(model.named_parameters())
    tables = {
        t.parameter: OneTable(config.lookup.rule_of(t.name, t.parameter, frozen=t.frozen), named[t.parameter])
        for t in model.plan.tables
    }
    dense = torch.optim.SGD([p for n, p in named.items() if n not in tables], lr=DENSE_LR)
    outputs: list[Tensor] = []
    for of_ranks in batches:
        model.zero_grad()
        found = [model(*batch) for batch in of_ranks]
        sum(loss_of(out, 7) for out in found).div(len(of_ranks)).backward()
        dense.step()
        for table in tables.values():
            table.step()
        outputs += [out.detach().reshape(-1) for out in found]
    states = {f"{key} {n}": state for n, table in tables.items() for key, state in table.states.items()}
    return outputs, {n: p.detach() for n, p in named.items()}, states


def many_ranks(logical: TowerModel, config: DMTConfig, topology: Topology, batches: list[list[Any]]) -> State:
    ranks = range(topology.world_size)
    models = [place(copy.deepcopy(logical), config, topology, rank) for rank in ranks]
    for model in models:
        model.train()
        model.lookup.grad_scale = 1 / topology.world_size
    outputs: list[Tensor] = []
    for of_ranks in batches:

        def program(wire: SimulatedWire, of_ranks: list[Any] = of_ranks) -> Tensor:
            model: PlacedModel = models[wire.rank]
            model.bind(wire)
            model.zero_grad()
            output: Tensor = model(*of_ranks[wire.rank])
            loss_of(output, 7).backward()
            model.lookup.step()
            model.lookup.zero_grad()
            return output.detach().reshape(-1)

        outputs += SimulatedWorld(topology).run(program)
        update_dense(models)
    weights: dict[str, Tensor] = {}
    states: dict[str, dict[str, Tensor]] = {}
    for model in models:
        for table in model.lookup.tables:
            weights[table] = model.lookup.table_weight(table)
            for key, state in model.lookup.optimizer_state(table).items():
                states.setdefault(key, {})[table] = state
    found = {n: p.detach() for model in models for n, p in model.named_parameters()}
    joined = {f"{key} {n}": t for key, own in states.items() for n, t in join_tables(logical.plan, own).items()}
    return outputs, {**found, **join_tables(logical.plan, weights)}, joined


@torch.no_grad()
def update_dense(models: list[PlacedModel]) -> None:
    """What the engine's all-reduce and optimizer do: the sum over the ranks that have a gradient, divided by all."""
    named = [dict(model.named_parameters()) for model in models]
    for name in {n for own in named for n in own}:
        holders = [own[name] for own in named if name in own]
        gradient = sum(p.grad for p in holders if p.grad is not None) / len(models)
        for p in holders:
            p -= DENSE_LR * gradient


def differences(found: State, expected: State) -> list[str]:
    wrong = [
        f"output {i}: {worst(a, b):.2e}"
        for i, (a, b) in enumerate(zip(found[0], expected[0], strict=True))
        if not worst(a, b) <= TOLERANCE * max(1.0, worst(b, torch.zeros_like(b)))
    ]
    for kind, a, b in (("", found[1], expected[1]), ("state of ", found[2], expected[2])):
        assert set(a) == set(b)
        wrong += [f"{kind}{n}: {worst(a[n], b[n]):.2e}" for n in a if not worst(a[n], b[n]) <= TOLERANCE]
    return wrong


def worst(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max()) if a.numel() else 0.0


@cache
def compiled(
    name: str, topology: str, frozen: tuple[str, ...], section: str, counted: RowShares | None = None
) -> TowerModel:
    """A tower model, under a rule that goes with every placement; whoever trains it trains a copy."""
    torch.manual_seed(0)
    flat, batch = MODELS[name]()
    for parameter in frozen:
        flat.get_parameter(parameter).requires_grad_(False)
    config = DMTConfig.model_validate({**json.loads(section), "lookup": {"optimizer": "sgd"}})
    return transform(prepared(flat), batch(5, 0), config, topology, row_shares=counted)


def trained(
    name: str,
    topology: str,
    placement: str,
    rule: str,
    backends: Sequence[str],
    towers: dict[str, Any],
    frozen: Sequence[str] = (),
    counted: RowShares | None = None,
    **comm: Any,
) -> list[str]:
    """What differs between one process and ranks, under each of the backends."""
    settings = OPTIONS.get(rule, {"optimizer": rule})
    where = Topology.parse(topology)
    section = {
        "placement": PLACEMENTS.get(placement, {}) if name == "multi_hot_dlrm" or placement != "mixed" else {},
        "towers": towers,
        "comm": comm,
    }
    lookup = {"lr": TABLE_LR, **({} if settings["optimizer"] == "sgd" else {"eps": EPS}), **settings}
    configs = [DMTConfig.model_validate({**section, "lookup": {**lookup, "backend": own}}) for own in backends]
    logical = compiled(name, topology, tuple(frozen), json.dumps(section), counted)
    _, batch = MODELS[name]()
    splits = logical.plan.table_splits.values()
    if counted is not None:
        modulo = where.world_size if placement == "ranks" else where.ranks_per_host
        owners = {(split.ranges[0].step, split.ranges[0].host is None) for split in splits}
        assert (modulo, placement != "ranks") in owners, "no table is in rows by modulo"
    batches = [[batch(batch_size(k, r), 100 * k + r) for r in range(where.world_size)] for k in range(STEPS)]
    expected = one_process(logical, configs[0], batches)
    before = {name: p.detach().clone() for name, p in logical.named_parameters()}
    for table in logical.plan.tables:
        assert table.frozen == (table.parameter in frozen)
        assert table.frozen or worst(expected[1][table.parameter], before[table.parameter]) > 1e-4, "it is not trained"
    wrong = []
    for config in configs:
        found = many_ranks(logical, config, where, batches)
        assert all(torch.equal(found[1][name], before[name]) for name in frozen), "a frozen table has changed"
        wrong += [f"{config.lookup.backend}: {text}" for text in differences(found, expected)]
    return wrong


SPTT = {"module": "none"}
MODULES = {"module": "dlrm", "c": 1, "p": 1, "dim": 4}


# Columns under rules that compute with a whole row are refused (tests/passes/test_table_parts.py).
RULES = [("rows", rule) for rule in ("sgd", "adagrad", "rowwise_adagrad")]
RULES += [(placement, rule) for placement in ("columns", "mixed") for rule in ("sgd", "adagrad")]

# Half of them on one host of four, the other half on hosts of one rank; in a campaign, all on both.
ELSEWHERE: list[Any] = [
    pytest.param(*rule, topology, marks=[pytest.mark.campaign] if (i + turn) % 2 else [])
    for turn, topology in enumerate(("1x4", "2x1"))
    for i, rule in enumerate(RULES)
]

OPTIONS: dict[str, dict[str, Any]] = {
    "momentum sgd": {"optimizer": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "clipped sgd": {"optimizer": "sgd", "clip_value": 0.01},
    "adagrad that begins": {"optimizer": "adagrad", "initial_accumulator_value": 0.5, "weight_decay": 0.1},
    "rowwise that begins": {"optimizer": "rowwise_adagrad", "initial_accumulator_value": 0.5, "clip_norm": 0.02},
    "adam": {"optimizer": "adam", "betas": [0.8, 0.95], "weight_decay": 0.1},
    "adamw": {"optimizer": "adam", "weight_decay": 0.1, "decoupled_weight_decay": True},
    "partial_rowwise_adam": {"optimizer": "partial_rowwise_adam"},
    "lamb": {"optimizer": "lamb", "weight_decay": 0.1, "trust_ratio": [0.1, 5.0]},
    "by table": {"optimizer": "sgd", "tables": {"*1": {"optimizer": "adam", "lr": 0.02}, "bags.field_2": {"lr": 0.3}}},
}
BY_ENTRY = ("momentum sgd", "clipped sgd", "adagrad that begins", "adam", "adamw", "by table")


@pytest.mark.parametrize(
    ("placement", "rule"), [("rows", r) for r in OPTIONS] + [("mixed", r) for r in BY_ENTRY] + [("whole", "adam")]
)
def test_every_option(placement: str, rule: str) -> None:
    assert trained("multi_hot_dlrm", "2x2", placement, rule, ("torch", "auto"), MODULES) == []


@pytest.mark.parametrize(("placement", "rule", "topology"), [(*rule, "2x2") for rule in RULES] + ELSEWHERE)
def test_every_update_rule(placement: str, topology: str, rule: str) -> None:
    assert trained("multi_hot_dlrm", topology, placement, rule, ("torch", "fbgemm"), MODULES) == []


@pytest.mark.parametrize(
    ("name", "topology", "placement", "towers", "comm"),
    [
        ("dlrm", "2x2", "rows", SPTT, {}),
        ("dlrm", "1x4", "columns", MODULES, {"route": "flat"}),
        ("deepfm", "2x2", "rows", MODULES, {"route": "flat"}),
        ("deepfm", "2x3", "columns", SPTT, {"overlap": False}),
        ("joint", "2x2", "rows", MODULES, {}),
        ("joint", "1x4", "columns", SPTT, {"micro_blocks": 3}),
        ("sequence", "2x2", "rows", SPTT, {}),
        ("sequence", "2x2", "whole", SPTT, {}),
        ("max", "2x2", "columns", MODULES, {}),
        ("max", "1x4", "rows", SPTT, {"micro_blocks": 2}),
    ],
    ids=str,
)
def test_models(name: str, topology: str, placement: str, towers: dict[str, Any], comm: dict[str, Any]) -> None:
    assert trained(name, topology, placement, "adagrad", ("torch",), towers, **comm) == []


FROZEN = {
    "some": ["bags.field_0.weight", "bags.field_2.weight", "bags.field_3.weight"],
    "all of a host": [f"bags.field_{i}.weight" for i in (0, 2, 4)],
    "all": [f"bags.field_{i}.weight" for i in range(6)],
}


@pytest.mark.parametrize(
    ("frozen", "topology", "placement", "towers", "comm"),
    [
        ("some", "2x2", "mixed", SPTT, {}),
        ("some", "1x4", "rows", MODULES, {"route": "flat"}),
        ("some", "2x2", "columns", MODULES, {"micro_blocks": 2, "intra_dtype": "fp32"}),
        ("some", "2x2", "whole", {"module": "dlrm", "c": 1, "p": 0, "dim": 4}, {}),
        ("all of a host", "2x2", "whole", SPTT, {}),
        ("all of a host", "2x2", "rows", {"module": "dlrm", "c": 1, "p": 0, "dim": 4}, {}),
        ("all", "2x2", "columns", MODULES, {}),
    ],
    ids=str,
)  # fmt: skip
def test_frozen_tables(
    frozen: str, topology: str, placement: str, towers: dict[str, Any], comm: dict[str, Any]
) -> None:
    names, backends = FROZEN[frozen], ("torch", "fbgemm")
    assert trained("multi_hot_dlrm", topology, placement, "adagrad", backends, towers, names, **comm) == []


@pytest.mark.parametrize("towers", [SPTT, MODULES], ids=str)
def test_a_frozen_joint_table(towers: dict[str, Any]) -> None:
    """All fields share it: nothing at all is sent back."""
    assert trained("joint", "2x2", "rows", "adagrad", ("torch",), towers, ["embedding.weight"]) == []
