"""Bytes of gradient sums: the formula, who sums by the configuration, and what engines really count."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dmt_plugin.config.section import DMTConfig, read_dmt_config
from dmt_plugin.planner.gradient_cost import gradient_costs, gradient_sums
from dmt_plugin.report.run.traffic import ring_all_reduce
from dmt_plugin.topology.shape import Topology
from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env
from tests.zoo.models import ZOO

OVERLAP, WITHOUT = DMTConfig(), read_dmt_config({"dmt": {"comm": {"overlap": False}}})

CONFIGS: dict[str, tuple[dict[str, Any], bool]] = {
    "defaults": ({}, True),
    "no overlap": ({}, False),
    "stage 1": ({"zero_optimization": {"stage": 1}}, True),
    "short": ({"communication_data_type": "fp16"}, True),
    "prescaled": ({"prescale_gradients": True}, True),
    "predivided": ({"gradient_predivide_factor": 2.0}, True),
    "bf16": ({"bf16": {"enabled": True}}, True),
}
"""DeepSpeed's keys, and whether dmt.comm.overlap is on."""


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_by_way_of_the_hosts(hosts: int, lanes: int) -> None:
    entries = 12 * 5
    dense, towers = gradient_costs(gradient_sums({}, OVERLAP), entries, 24, Topology(hosts, lanes))
    assert dense.other_hosts * lanes == 2 * (hosts - 1) * entries * 4 // hosts
    assert dense.same_host == 2 * (lanes - 1) * entries * 4 // lanes
    assert (towers.other_hosts, towers.same_host) == (0, 2 * (lanes - 1) * 24 * 4 // lanes)
    assert [row.name for row in gradient_costs(gradient_sums({}, OVERLAP), entries, 0, Topology(2, 2))] == ["dense"]


@pytest.mark.parametrize("topology", [Topology(1, 3), Topology(2, 2), Topology(3, 4)])
def test_by_deepspeed(topology: Topology) -> None:
    world, lanes = topology.world_size, topology.ranks_per_host
    entries = 12 * 12 * 100
    assert WITHOUT is not None
    sums = gradient_sums({}, WITHOUT)
    (dense,) = gradient_costs(sums, entries, 0, topology)
    assert dense.other_hosts * world == ring_all_reduce(entries, topology.hosts, lanes)
    assert (dense.other_hosts + dense.same_host) * world == 2 * (world - 1) * entries * 4
    half = gradient_costs(gradient_sums({"communication_data_type": "fp16"}, OVERLAP), entries, 0, topology)
    assert [2 * row.other_hosts for row in half] == [dense.other_hosts]
    bf16 = {"bf16": {"enabled": True}, "zero_optimization": {"stage": 1}}
    short = gradient_costs(gradient_sums(bf16, OVERLAP), entries, 0, topology)
    assert [2 * row.other_hosts for row in short] == [dense.other_hosts, dense.other_hosts // 2]
    assert all("bf16" in row.shape for row in short)
    gradients, parameters, *towers = gradient_costs(
        gradient_sums({"zero_optimization": {"stage": 2}}, OVERLAP), entries, 100, topology
    )
    assert gradients == dense and (parameters.other_hosts, parameters.phase) == (dense.other_hosts // 2, "step")
    assert {row.name for row in towers} == {"towers"} and {row.other_hosts for row in towers} == {0}


def test_what_the_note_says() -> None:
    assert "2(H-1)/H" in gradient_sums({}, OVERLAP).note
    assert "ZeRO stage 1), once per step" in gradient_sums({"zero_optimization": {"stage": 1}}, OVERLAP).note
    both = gradient_sums({"prescale_gradients": True, "gradient_accumulation_steps": 4}, WITHOUT or OVERLAP)
    assert "comm.overlap is off, prescale_gradients is on" in both.note and "in one of its 4 micro-batches" in both.note
    every = gradient_sums({"zero_optimization": {"stage": 2}, "gradient_accumulation_steps": 4}, OVERLAP)
    assert every.by == "partitions" and "in every micro-batch" in every.note


def trained(rank: int, world: int) -> list[tuple[str, bool, bool, list[Any], dict[str, Any]]]:
    """Of every configuration: who was set to sum, who does, what was predicted and what was counted in one step."""
    import dmt_plugin
    from dmt_plugin.report.explain.explanation import gradient_costs_of

    found = []
    for name, (keys, overlap) in CONFIGS.items():
        torch.manual_seed(0)
        flat, batch = ZOO["dlrm"]()
        config = {
            "train_micro_batch_size_per_gpu": 4,
            "optimizer": {"type": "Adam", "params": {"lr": 0.01, "torch_adam": True}},
            "gradient_clipping": 0.0,
            **keys,
            "dmt": {"comm": {"overlap": overlap}, "towers": {"module": "dlrm", "c": 1, "p": 0, "dim": 4}},
        }
        engine, *_ = dmt_plugin.initialize(model=flat, config=config, example_batch=batch(5, 0))
        dense, ids = batch(4, rank)
        engine.backward(engine(dense.bfloat16() if name == "bf16" else dense, ids).sum())
        engine.step()
        sums = gradient_sums(config, engine.dmt.config)
        counted = {key: value for key, value in engine.dmt.traffic.as_dict().items() if key in ("dense", "towers")}
        told = [(c.name, c.other_hosts, c.same_host) for c in gradient_costs_of(engine.dmt.placed, sums)]
        found.append((name, sums.by == "hosts", engine._reduction is not None, told, counted))
        engine.destroy()
    return found


@pytest.mark.processes
def test_engines_sum_as_told() -> None:
    for found in run_ranks(4, trained, timeout=240, env=lambda rank: launcher_env("2x2", rank)):
        for name, told_ours, ours, told, counted in found:
            assert told_ours == ours, name
            assert bool(counted) == ours, name
            for key, phases in counted.items():
                row = phases["backward"]
                assert (key, row["other_hosts"], row["same_host"]) in told, (name, told, counted)
            assert not ours or len(counted) == len(told) == 2, (name, told, counted)
