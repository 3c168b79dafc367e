"""All ranks of a placed model in one process, as threads over a simulated wire."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.model.placed import PlacedModel, place
from dmt_plugin.plan.tables import assembled
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWire, SimulatedWorld

TOLERANCE = 1e-6
"""Of the largest value of a tensor, or of one: sums over ranks are added in another order."""

LR = 1.0


@dataclass
class Step:
    """What one rank computed: outputs, and gradients by logical name (tables: summed over ranks already)."""

    output: Tensor
    dense: dict[str, Tensor]
    tables: dict[str, Tensor]


def settings(backend: str = "torch", **dmt: Any) -> DMTConfig:
    lookup = {"backend": backend, "optimizer": "sgd", "lr": LR}
    return DMTConfig.model_validate({"lookup": lookup, "partition": {"strategy": "contiguous"}, **dmt})


def without_dropout(model: nn.Module) -> nn.Module:
    """Ranks draw other numbers than one process; and no batch norm divides by what is hardly more than rounding."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.BatchNorm1d):
            module.eps = 0.1
    return model


def loss_of(output: Tensor) -> Tensor:
    weights = torch.linspace(0.5, 1.5, output.numel()).reshape(output.shape)
    return (output.sigmoid() * weights).sum()


def _output(result: Any) -> Tensor:
    (output,) = pytree.tree_leaves(result)
    return output


def run_placed(
    logical: TowerModel, config: DMTConfig, world: SimulatedWorld, batches: Sequence[tuple[Any, ...]]
) -> list[Step]:
    """One forward and backward on every rank."""
    ranks = range(world.topology.world_size)
    models = [place(copy.deepcopy(logical), config, world.topology, rank) for rank in ranks]

    def program(wire: SimulatedWire) -> Step:
        model: PlacedModel = models[wire.rank]
        model.bind(wire)
        model.train()
        model.lookup.grad_scale = 1.0 / len(models)
        before = {t: model.lookup.table_weight(t).clone() for t in model.lookup.tables}
        output = _output(model(*batches[wire.rank]))
        loss_of(output).backward()
        model.lookup.step()
        tables = {t: (before[t] - model.lookup.table_weight(t)) / LR for t in before}
        dense = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        return Step(output.detach(), dense, tables)

    return world.run(program)


def run_logical(logical: TowerModel, batches: Sequence[tuple[Any, ...]]) -> list[Step]:
    """The same batches through the logical model: one step that holds the mean gradient of all."""
    model = copy.deepcopy(logical).train()
    outputs = [_output(model(*batch)) for batch in batches]
    (sum(loss_of(out) for out in outputs) / len(batches)).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    found = {n: g.to_dense() if g.is_sparse else g for n, g in found.items()}
    own = [t for t in model.plan.tables if t.parameter in found]
    tables = {t.name: found[t.parameter][t.first_row : t.first_row + t.rows] for t in own}
    names = {t.parameter for t in model.plan.tables}
    return [Step(torch.cat([o.detach() for o in outputs]), {n: g for n, g in found.items() if n not in names}, tables)]


def differences(logical: TowerModel, placed: list[Step], batches: Sequence[tuple[Any, ...]]) -> list[str]:
    """What differs by more than the tolerance; names of outputs and parameters."""
    (expected,) = run_logical(logical, batches)
    wrong = []

    def compare(name: str, a: Tensor, b: Tensor) -> None:
        if a.shape != b.shape:
            wrong.append(f"{name}: shape")
        elif a.numel() and float((a - b).abs().max()) > TOLERANCE * max(1.0, float(b.abs().max())):
            wrong.append(name)

    compare("outputs", torch.cat([step.output for step in placed]), expected.output)
    for name, gradient in expected.dense.items():
        parts = [step.dense[name] for step in placed if name in step.dense]
        compare(name, torch.stack(parts).sum(0) / len(placed), gradient)
    held = [(logical.plan.shard(name), values) for step in placed for name, values in step.tables.items()]
    for table, gradient in expected.tables.items():
        compare(table, assembled({shard: values for shard, values in held if shard.table.name == table}), gradient)
    assert len({shard for shard, _ in held}) == len(held), "two ranks hold the same shard"
    return wrong


def towered(model: nn.Module, example: tuple[Any, ...], topology: str, config: DMTConfig) -> TowerModel:
    return transform(without_dropout(model), example, config, Topology.parse(topology))
