"""Hugging Face's ``Trainer`` trains towers as ``dmt_plugin.initialize`` does."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import Dataset

from dmt_plugin.checkpoint import gather_state
from dmt_plugin.doctor import tiny
from dmt_plugin.integrations import accelerate as ours
from dmt_plugin.topology.shape import Topology
from tests._util.ranks import run_ranks
from tests.test_placed_laws import launcher_env

pytestmark = pytest.mark.processes

STEPS, BATCH = 3, tiny.SAMPLES
SCHEDULES = {"constant": "constant", "linear": "follow"}
"""The trainer's, and what the tables' rate does beside it."""


def config(schedule: str) -> dict[str, Any]:
    """Where the rate falls, that of the tables does too."""
    made = tiny.config({"module": "dlrm", "dim": 4, "count": "auto"}, Topology(2, 1), 60.0)
    made["dmt"]["lookup"] = {**made["dmt"].get("lookup", {}), "schedule": SCHEDULES[schedule]}
    return made | {"train_micro_batch_size_per_gpu": BATCH, "gradient_accumulation_steps": 1}


class Own(Dataset):
    """A rank's own samples: without an accelerator nobody deals them out."""

    def __init__(self, rank: int) -> None:
        size = STEPS * BATCH
        dense, ids, label = tiny.batch(0, 2 * size)
        own = slice(rank * size, (rank + 1) * size)
        self.parts = {"dense": dense[own], "ids": ids[own], "labels": label[own]}

    def __len__(self) -> int:
        return STEPS * BATCH

    def __getitem__(self, k: int) -> dict[str, torch.Tensor]:
        return {name: part[k] for name, part in self.parts.items()}


def by_trainer(rank: int, world: int, folder: str, schedule: str) -> dict[str, Any]:
    from safetensors.torch import load_file
    from transformers import Trainer, TrainingArguments

    losses: list[float] = []

    def loss_of(outputs: Any, labels: Any, **_: Any) -> torch.Tensor:
        loss = binary_cross_entropy_with_logits(outputs, labels)
        losses.append(loss.item())
        return loss

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    def run(resume: bool) -> Any:
        arguments = TrainingArguments(
            output_dir=folder, deepspeed=copy.deepcopy(config(schedule)), per_device_train_batch_size=BATCH,
            num_train_epochs=1, learning_rate=tiny.LR, max_grad_norm=0.0, save_strategy="steps", save_steps=2,
            report_to=[], remove_unused_columns=False, disable_tqdm=True, label_names=["labels"],
            lr_scheduler_type=schedule,
        )  # fmt: skip
        trainer = InOrder(model=tiny.build(), args=arguments, train_dataset=Own(rank), compute_loss_func=loss_of)
        trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-2" if resume else None)
        return trainer

    with ours.towers(example_batch=tiny.batch(0, BATCH)[:2]):
        trainer = run(False)
        trainer.save_model(f"{folder}/saved")
    whole = gather_state(trainer.model_wrapped.dmt.placed, trainer.model_wrapped.dmt.groups)
    saved = load_file(f"{folder}/saved/model.safetensors") if rank == 0 else whole
    with ours.towers(example_batch=tiny.batch(0, BATCH)[:2]):
        first, again = list(losses), run(True)
    resumed = gather_state(again.model_wrapped.dmt.placed, again.model_wrapped.dmt.groups)
    return {
        "resumed": losses[len(first) :] == first[2:] and all(torch.equal(resumed[n], v) for n, v in whole.items()),
        "engine": type(trainer.model_wrapped).__name__,
        "losses": first,
        "steps": trainer.state.global_step,
        "table rate": trainer.model_wrapped.dmt.lookup.lr,
        "saved": set(saved) == set(whole) and all(torch.equal(value, whole[name]) for name, value in saved.items()),
    }


def falling(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: (STEPS - done) / STEPS)


def by_hand(rank: int, world: int, schedule: str) -> list[float]:
    import dmt_plugin

    model, parts, losses = tiny.build(), Own(rank).parts, []
    engine, *_ = dmt_plugin.initialize(
        model=model, model_parameters=model.parameters(), config=config(schedule),
        example_batch=tiny.batch(0, BATCH)[:2], lr_scheduler=falling if schedule == "linear" else None,
    )  # fmt: skip
    for k in range(STEPS):
        dense, ids, labels = (part[k * BATCH : (k + 1) * BATCH] for part in parts.values())
        loss = binary_cross_entropy_with_logits(engine(dense, ids), labels)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def env_of(rank: int) -> dict[str, str]:
    return {**launcher_env("2x1", rank), "ACCELERATE_USE_DEEPSPEED": "true"}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_trainer_trains_towers(schedule: str, tmp_path: Any) -> None:
    found = run_ranks(2, by_trainer, str(tmp_path), schedule, env=env_of)
    expected = run_ranks(2, by_hand, schedule, env=partial(launcher_env, "2x1"))
    assert [one["engine"] for one in found] == ["DMTEngine"] * 2
    assert [(one["steps"], one["saved"], one["resumed"]) for one in found] == [(STEPS, True, True)] * 2
    last = config(schedule)["dmt"]["lookup"]["lr"] / {"constant": 1, "linear": STEPS}[schedule]
    assert [one["table rate"] for one in found] == [pytest.approx(last)] * 2
    assert [one["losses"] for one in found] == [pytest.approx(losses, abs=1e-6) for losses in expected]
