"""TorchRec under its own ``TrainPipelineSparseDist``: ids of the next batch travel during this one's step.

The pipeline draws batches itself, two ahead of the one it trains: from the same batches, in the same order, as
everyone else is given them one by one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.streamable import Pipelineable

from benchmarks.step.messages import messages_everywhere
from benchmarks.step.model import Batch, loss_of
from benchmarks.step.parts import Part
from benchmarks.step.setting import Setting
from benchmarks.step.torchrec_trainer import dense_parameters, keyed, parts_of


@dataclass
class _Batch(Pipelineable):  # which the pipeline tests for
    """A batch as the pipeline wants it."""

    dense: Tensor
    features: Any
    labels: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> _Batch:
        """Everything is where it is needed."""
        return self

    def record_stream(self, stream: Any) -> None:
        """There are no streams on a CPU."""


class Training(nn.Module):
    """A model with its loss, which the pipeline differentiates.

    Args:
        model: takes dense features and a ``KeyedJaggedTensor``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: _Batch) -> tuple[Tensor, Tensor]:
        """The loss, twice: to differentiate, and to tell."""
        loss = loss_of(self.model(batch.dense, batch.features), batch.labels)
        return loss, loss.detach()


class PipelinedTrainer:
    """A sharded model under the pipeline.

    Args:
        setting: what is measured.
        model: a sharded ``Training``.
    """

    def __init__(self, setting: Setting, model: nn.Module) -> None:
        from torchrec.distributed.train_pipeline import TrainPipelineSparseDist

        self._setting, self._model = setting, model
        self._pipeline = TrainPipelineSparseDist(
            model,
            torch.optim.SGD(dense_parameters(model), lr=setting.lr),
            device=torch.device("cpu"),
            execute_all_batches=True,
        )
        self._batches: Iterator[_Batch] | None = None

    def prepare(self, batch: Batch) -> Any:
        """Ids as TorchRec takes them."""
        return _Batch(batch.dense, keyed(self._setting, batch.ids), batch.labels)

    def look_ahead(self, batches: Iterator[Any]) -> None:
        """The batches of all steps to come."""
        self._batches = batches

    def step(self, prepared: Any) -> Tensor:
        """One optimizer step on the next batch; the rank's loss before it."""
        if self._batches is None:
            raise RuntimeError("a pipelined variant draws its batches itself; give it them by look_ahead()")
        with messages_everywhere(self._setting.lanes):
            return self._pipeline.progress(self._batches)

    def tables(self) -> dict[int, list[Part]]:
        """What this rank holds of the tables, by feature."""
        return parts_of(self._model)

    def formula_bytes(self) -> int:
        """Not told."""
        return 0
