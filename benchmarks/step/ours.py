"""This project's variants, as a user has them: ``dmt_plugin.initialize`` and the engine it returns."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

import dmt_plugin
from benchmarks.step.model import Batch, loss_of, make_batch, make_model
from benchmarks.step.setting import Setting
from dmt_plugin.explain import costs_of


class OursVariant:
    """One route and kind of towers.

    Args:
        setting: what is measured.
        section: keys of the ``"dmt"`` section.
    """

    def __init__(self, setting: Setting, section: dict[str, Any]) -> None:
        config = {
            "train_micro_batch_size_per_gpu": setting.batch,
            "optimizer": {"type": "SGD", "params": {"lr": setting.lr}},
            "zero_optimization": {"stage": 0},
            "gradient_clipping": 0.0,
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
            "dmt": {
                "topology": {"hosts": setting.hosts, "ranks_per_host": setting.lanes},
                "lookup": {"optimizer": "sgd", "lr": setting.table_lr},
                **copy.deepcopy(section),
            },
        }
        example = make_batch(setting, 0, 0)
        self.engine, *_ = dmt_plugin.initialize(
            model=make_model(setting), config=config, example_batch=(example.dense[:8], example.ids[:8])
        )
        self._batch = setting.batch

    def prepare(self, batch: Batch) -> Any:
        """Batches are taken as they are."""
        return batch

    def step(self, batch: Batch) -> Tensor:
        """One optimiser step; the rank's loss before it."""
        loss = loss_of(self.engine(batch.dense, batch.ids), batch.labels)
        self.engine.backward(loss)
        self.engine.step()
        return loss.detach()

    def tables(self) -> dict[int, Tensor]:
        """Tables that this rank owns, by feature."""
        lookup = self.engine.dmt.lookup
        return {int(name.rpartition(".")[2]): lookup.table_weight(name) for name in lookup.tables}

    def formula_bytes(self) -> int:
        """Bytes that this rank sends to other hosts in the exchanges of one step, as ``dmt explain`` has them."""
        return sum(cost.other_hosts for cost in costs_of(self.engine.dmt.placed, self._batch))
