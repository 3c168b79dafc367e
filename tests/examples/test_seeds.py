"""The comparison over seeds trains what it says it trains."""

from __future__ import annotations

import copy

import pytest
import torch

import dmt_plugin
from dmt_plugin.config.section import load_ds_config
from examples.dlrm import build, example_batch
from examples.seeds import CONFIG, auc, pair
from tests._util.ranks import run_ranks


def test_a_learnable_label_is_learned_by_both() -> None:
    config = {**load_ds_config(CONFIG), "train_micro_batch_size_per_gpu": 16}
    config["optimizer"] = {"params": {"lr": 0.05}}
    torch.manual_seed(0)
    flat = build()
    towers = dmt_plugin.transform(flat, example_batch(), config, "2x2")
    dense, sparse = example_batch(2048)
    part = (dense, sparse, (dense[:, 0] > 0).float())
    before = flat.tables["tailnum"].weight.clone()
    assert auc(copy.deepcopy(towers), part, part, 1, config) > 0.9
    assert torch.equal(flat.tables["tailnum"].weight, before)
    assert auc(flat, part, part, 1, config) > 0.9


def pairs(rank: int, world: int) -> dict[str, tuple[float, float]]:
    config = {**load_ds_config(CONFIG), "train_micro_batch_size_per_gpu": 8}
    dense, sparse = example_batch(2048)
    part = (dense, sparse, (dense[:, 0] > 0).float())
    return {f"{way} {rule}": pair(way, rule, part, part, 1, config) for way, rule in WAYS}


WAYS = (("bf16", "Adagrad"), ("adam", "Adam"))


@pytest.mark.processes
def test_engines_learn_it_too() -> None:
    (found,) = run_ranks(1, pairs, timeout=120, env={"LOCAL_RANK": "0"})
    assert set(found) == {f"{way} {rule}" for way, rule in WAYS}
    for way, (first, other) in found.items():
        assert first > 0.9 and abs(first - other) < 0.05, way
        assert first != other, f"{way} compares a run with itself"
