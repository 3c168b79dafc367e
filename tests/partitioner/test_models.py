"""From a model and its data to towers: rows of captured models, warm-up, the choice by training, the whole flow."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dmt_plugin
from dmt_plugin.config.section import DMTConfig, PartitionConfig
from dmt_plugin.core.errors import ConfigError, PlanError
from dmt_plugin.partitioner import Partition, make_partition
from dmt_plugin.partitioning.feature_rows import FeatureRows
from dmt_plugin.partitioning.partition_model import choose_by_training, measure_affinity, plan_data, with_partition
from dmt_plugin.partitioning.short_training import loss_named, mean_loss, warm_up

FEATURES = 8
ROWS = 30


class Net(nn.Module):
    """Bags with a first-order weight beside each of two features, a dropout that must keep its mode."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(ROWS, width, mode="sum") for _ in range(FEATURES))
        self.first = nn.ModuleList(nn.Embedding(ROWS, 1) for _ in range(2))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(FEATURES * width, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.cat([t(ids[:, i]) for i, t in enumerate(self.tables)], dim=1)
        extra = self.first[0](ids[:, 0, 0]) + self.first[1](ids[:, 1, 0])
        return (self.head(self.drop(x)) + extra).squeeze(1)


def batches(count: int = 6, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Features 2k and 2k+1 carry the same id; the label depends on feature 0."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        ids = torch.randint(0, ROWS, (40, FEATURES // 2, 2), generator=generator).repeat_interleave(2, dim=1)
        yield ids, (ids[:, 0, 0] % 2).float()


def test_rows_are_what_the_model_looks_up() -> None:
    model = Net()
    batch = next(batches())
    rows = FeatureRows(model, batch)
    assert [f.name for f in rows.features] == [f"tables.{i}" for i in range(FEATURES)] or len(rows.features) >= FEATURES
    found = rows(batch)
    shown = [found[f.name] for f in rows.features if "tables." in f.name]
    for i, part in enumerate(shown):
        assert torch.equal(part, model.tables[i](batch[0][:, i]))
    assert model.training and model.drop.training
    plan = dmt_plugin.transform(model, batch, DMTConfig.model_validate({"towers": {"count": 2, "module": "none"}})).plan
    assert rows.fingerprint == plan.model


def test_later_weights_are_seen() -> None:
    model = Net()
    batch = next(batches())
    rows = FeatureRows(model, batch)
    name = rows.features[2].name
    before = rows(batch)[name].clone()
    with torch.no_grad():
        for table in model.tables:
            table.weight.mul_(2)
    torch.testing.assert_close(rows(batch)[name], before * 2)


def test_a_model_without_data_is_refused() -> None:
    with pytest.raises(PlanError, match="meta device"):
        FeatureRows(Net().to("meta"), next(batches()))


@pytest.mark.parametrize("samples", [100, 240, 1000])
def test_samples_are_counted(samples: int) -> None:
    rows = FeatureRows(Net(), next(batches()))
    found = measure_affinity(rows, batches(), samples=samples)
    assert found.samples == min(samples, 240) and found.model == rows.fingerprint
    ids = measure_affinity(rows, batches(), "mutual_information", samples=samples, missing="zero")
    assert ids.samples == min(samples, 240)


def test_mutual_information_pairs_what_carries_the_same_ids() -> None:
    rows = FeatureRows(Net(), next(batches()))
    affinity = measure_affinity(rows, batches(40), "mutual_information", missing="zero")
    shown = [f for f in rows.features if f.name.startswith("tables.")]
    values = affinity.select([f.name for f in shown])
    assert all(values[i, i + 1] > 0.9 for i in range(0, len(shown), 2))
    assert all(values[i, j] < 0.2 for i in range(len(shown)) for j in range(i) if i // 2 != j // 2)


def test_warm_up_trains_in_place_and_says_its_losses() -> None:
    torch.manual_seed(0)
    model = Net().eval()
    loss = loss_named("logits")
    before = mean_loss(model, batches(seed=5), loss)
    losses = warm_up(model, batches(), loss, 20, learning_rate=0.1)
    assert len(losses) == 20  # six batches, gone through again
    assert mean_loss(model, batches(seed=5), loss) < before - 0.05
    assert not model.training
    model.train().head.eval()  # a module in a mode of its own
    modes = [module.training for module in model.modules()]
    mean_loss(model, batches(seed=5), loss)
    warm_up(model, batches(), loss, 1)
    assert [module.training for module in model.modules()] == modes

    def broken(out: Tensor, batch: Any) -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        mean_loss(model, batches(), broken)
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(RuntimeError, match="broken"):
        warm_up(model.eval(), batches(), broken, 1)
    assert not any(module.training for module in model.modules())
    with pytest.raises(PlanError, match="no batch"):
        warm_up(model, [], loss, 3)
    with pytest.raises(PlanError, match="loss is nan after 0 steps"):
        warm_up(model, batches(), lambda out, _: out.sum() * float("nan"), 3)


def test_losses_by_name() -> None:
    out, label = torch.tensor([0.3, 0.7]), torch.tensor([0.0, 1.0])
    ids = torch.zeros(2)
    assert loss_named("logits")(out, (ids, label)) == F.binary_cross_entropy_with_logits(out, label)
    assert loss_named("probabilities")(out[:, None], (ids, label)) == F.binary_cross_entropy(out, label)
    assert loss_named("output")((out.sum(), out), None) == out.sum()
    with pytest.raises(ConfigError, match="unknown loss 'mse'"):
        loss_named("mse")
    with pytest.raises(ConfigError, match="last item of the batch; found dict"):
        loss_named("logits")(out, {"x": ids})
    with pytest.raises(ConfigError, match="a model that returns its loss"):
        loss_named("output")(out, None)


def partition_of(model: Net, towers: int = 2, **config: Any) -> tuple[Partition, FeatureRows]:
    rows = FeatureRows(model, next(batches()))
    affinity = measure_affinity(rows, batches(), missing="zero")
    settings = PartitionConfig.model_validate({"strategy": "learned", **config})
    return make_partition(rows.features, rows.tables, towers, settings, affinity=affinity, model=rows.fingerprint), rows


def test_a_transform_with_a_partition_says_where_it_came_from() -> None:
    model = Net()
    partition, _ = partition_of(model)
    section = DMTConfig.model_validate({"towers": {"module": "none"}})
    towers = with_partition(model, next(batches()), section, partition)
    assert towers.plan.towers == partition.towers
    assert towers.plan.provenance["strategy"] == "learned" and towers.plan.provenance["layout"]["stress_1"] >= 0
    ids = next(batches())[0]
    assert torch.equal(towers.eval()(ids), model.eval()(ids))


def test_a_partition_from_the_config(tmp_path: Path) -> None:
    model = Net()
    rows = FeatureRows(model, next(batches()))
    file = measure_affinity(rows, batches(), missing="zero").save(tmp_path / "a.npz")
    section = {"strategy": "learned", "affinity": str(file), "objective": "diverse", "seed": 3}
    config = DMTConfig.model_validate({"towers": {"count": 2, "module": "none"}, "partition": section})
    plan = dmt_plugin.transform(model, next(batches()), config).plan
    assert plan.provenance["objective"] == "diverse" and plan.provenance["seed"] == 3
    assert plan.provenance["affinity"]["file"] == str(file)
    assert dmt_plugin.TowerPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    with pytest.raises(PlanError, match=r"a\.npz was measured on (another|the) model"):
        dmt_plugin.transform(Net(width=4), next(batches()), config)


def test_a_partition_file_keeps_its_story(tmp_path: Path) -> None:
    model = Net()
    partition, rows = partition_of(model)
    file = tmp_path / "towers.json"
    file.write_text(json.dumps(plan_data(partition, rows.fingerprint)))
    config = {"towers": {"count": 2, "module": "none"}, "partition": {"strategy": "file", "file": str(file)}}
    for topology in ("2x1", "1x4"):
        plan = dmt_plugin.transform(model, next(batches()), DMTConfig.model_validate(config), topology).plan
        assert plan.towers == partition.towers
        assert plan.provenance["strategy"] == "file" and plan.provenance["made"]["objective"] == "coherent"
    with pytest.raises(PlanError, match=r"towers\.json was made for the model"):
        dmt_plugin.transform(Net(width=4), next(batches()), DMTConfig.model_validate(config))


def test_the_choice_by_training_is_the_least_held_out_loss() -> None:
    torch.manual_seed(0)
    model = Net()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    candidates = {o: partition_of(model, objective=o)[0] for o in ("coherent", "diverse")}
    section = DMTConfig.model_validate({"towers": {"module": "dlrm", "c": 0, "p": 1}})
    best, losses = choose_by_training(
        model, candidates, next(batches()), section, batches(), batches(2, seed=9), loss_named("logits"), 4
    )
    assert best == min(losses, key=lambda name: losses[name]) and set(losses) == set(candidates)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert np.isfinite(list(losses.values())).all()
