"""Accelerate's own ``prepare`` makes towers and trains as ``dmt_plugin.initialize`` does; without a section not."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import accelerate
import deepspeed
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from dmt_plugin.checkpoint import gather_state
from dmt_plugin.core.errors import DMTError
from dmt_plugin.doctor import tiny
from dmt_plugin.integrations import accelerate as ours
from dmt_plugin.topology.shape import Topology
from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env


def env_of(rank: int) -> dict[str, str]:
    return {**launcher_env("2x1", rank), "ACCELERATE_USE_DEEPSPEED": "true"}


def config_with(section: bool) -> dict[str, Any]:
    config = tiny.config({"module": "dlrm", "dim": 4, "count": "auto"}, Topology(2, 1), 60.0)
    config["gradient_accumulation_steps"] = "auto"  # Accelerate's to fill in, as that of the section is not
    config["dmt"]["topology"] = {"hosts": 2, "ranks_per_host": "auto"}
    if not section:
        del config["dmt"]
    return config


def by_accelerate(
    rank: int, world: int, section: bool, instance: bool = False, folder: str | None = None
) -> dict[str, Any]:
    from accelerate import Accelerator, DeepSpeedPlugin
    from accelerate.utils import DummyOptim

    dense, ids, label = tiny.batch(0, 2 * tiny.SAMPLES)
    model = tiny.build()
    example = tiny.batch(0, tiny.SAMPLES)[:2]
    config = config_with(section)
    if instance:
        del config["optimizer"]
    if folder is not None:
        config["dmt"]["checkpoint"] = {"asynchronous": True}
    with ours.towers(example_batch=example):
        accelerator = Accelerator(deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=copy.deepcopy(config)))
        # Accelerate has no ranks on a CPU, and deals out no data there; with an accelerator it does.
        own = slice(rank * tiny.SAMPLES, (rank + 1) * tiny.SAMPLES)
        loader = DataLoader(TensorDataset(dense[own], ids[own], label[own]), batch_size=tiny.SAMPLES)
        chosen = torch.optim.SGD(model.parameters(), lr=tiny.LR) if instance else DummyOptim(model.parameters())
        model, optimizer, loader = accelerator.prepare(model, chosen, loader)
    losses = []
    for _ in range(3):
        for x, i, y in loader:
            with accelerator.accumulate(model):
                loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x, i), y)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
    found = {"engine": type(model).__name__, "losses": losses}
    if section:
        whole = accelerator.get_state_dict(model)
        expected = gather_state(model.dmt.placed, model.dmt.groups)
        tables = [table.parameter for table in model.dmt.plan.tables]
        found["whole"] = set(whole) == set(expected) > set(tables) and all(
            torch.equal(value, expected[name]) for name, value in whole.items()
        )
        if folder is not None:
            accelerator.save_state(folder)
            model.backward(model(dense[own], ids[own]).sum())
            model.step()
            accelerator.load_state(folder)  # waits for what is being written
            again = gather_state(model.dmt.placed, model.dmt.groups)
            found["loaded"] = all(torch.equal(value, again[name]) for name, value in expected.items())
    else:
        found["whole"] = set(accelerator.get_state_dict(model)) == set(tiny.build().state_dict())
    return found


def by_hand(rank: int, world: int) -> list[float]:
    import dmt_plugin

    dense, ids, label = tiny.batch(0, 2 * tiny.SAMPLES)
    own = slice(rank * tiny.SAMPLES, (rank + 1) * tiny.SAMPLES)
    model = tiny.build()
    config = config_with(True) | {"gradient_accumulation_steps": 1}
    engine, *_ = dmt_plugin.initialize(
        model=model, model_parameters=model.parameters(), config=config, example_batch=(dense[own], ids[own])
    )
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(engine(dense[own], ids[own]), label[own])
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


@pytest.mark.processes
def test_prepare_makes_towers_and_trains_as_initialize_does(tmp_path):
    found = run_ranks(2, by_accelerate, True, False, str(tmp_path), env=env_of)
    assert all(of_rank["loaded"] for of_rank in found)
    with_instance = run_ranks(2, by_accelerate, True, True, env=env_of)
    expected = run_ranks(2, by_hand, env=partial(launcher_env, "2x1"))
    for one in (found, with_instance):
        assert [(of_rank["engine"], of_rank["whole"]) for of_rank in one] == [("DMTEngine", True)] * 2
        assert [of_rank["losses"] for of_rank in one] == [pytest.approx(losses, abs=1e-6) for losses in expected]


@pytest.mark.processes
def test_without_a_section_accelerate_trains_as_ever():
    for one in run_ranks(2, by_accelerate, False, env=env_of):
        assert one["engine"] == "DeepSpeedEngine" and len(one["losses"]) == 3 and one["whole"]


def test_what_was_patched_is_put_back():
    plugin = accelerate.DeepSpeedPlugin
    before = deepspeed.initialize, plugin.fill_match
    with pytest.raises(KeyError), ours.towers():
        assert deepspeed.initialize is not before[0] and plugin.fill_match is not before[1]
        raise KeyError
    assert (deepspeed.initialize, plugin.fill_match) == before


def test_accelerate_would_stop_at_auto_in_the_section():
    """Why the section is kept from it: if this no longer raises, the integration can be simpler."""
    plugin = accelerate.DeepSpeedPlugin(hf_ds_config={**config_with(True), "gradient_accumulation_steps": 1})
    with pytest.raises(ValueError, match="dmt"):
        plugin.deepspeed_config_process()
    with ours.towers():
        plugin.deepspeed_config_process()
    assert plugin.deepspeed_config["dmt"]["topology"]["ranks_per_host"] == "auto"


def test_another_accelerate_is_refused(monkeypatch):
    monkeypatch.delattr(accelerate.DeepSpeedPlugin, "fill_match")
    with pytest.raises(DMTError, match="fill_match"), ours.towers():
        pass
