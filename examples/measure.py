"""What the training script measures: predictions of a whole part, scores, parameters, bytes on the wire.

Everything here is called by all ranks together and works for a plain DeepSpeed engine as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

Part = tuple[Tensor, Tensor, Tensor]  # dense (rows, 9) float32, sparse (rows, 21) int64, label (rows,) float32


@torch.no_grad()
def predict(engine: deepspeed.DeepSpeedEngine, part: Part, batch: int = 2048) -> Tensor:
    """Logits `(rows,)` of a whole part on the CPU, complete on every rank; the ranks share the work.

    Rank `r` of `G` takes rows `r, r + G, ...`: all take the same number of steps, the last with fewer rows.
    """
    dense, sparse, label = part
    rank, world = dist.get_rank(), dist.get_world_size()
    engine.eval()
    logits = []
    for rows in torch.arange(len(label)).split(batch * world):
        mine = rows[rank::world]
        logits.append(engine(dense[mine].to(engine.device), sparse[mine].to(engine.device)).float().cpu())
    engine.train()
    gathered: list[Tensor] = [torch.empty(0)] * world
    dist.all_gather_object(gathered, torch.cat(logits))
    whole = torch.empty(len(label))
    for source, values in enumerate(gathered):
        whole[source::world] = values  # holds because batch * world is a multiple of world
    return whole


def score(logits: Tensor, label: Tensor) -> dict[str, float]:
    """Area under the ROC curve (`auc`) and log loss (`logloss`) of logits `(rows,)` and labels `(rows,)`."""
    from torchmetrics.classification import BinaryAUROC  # seconds of imports, for the rank that asks

    return {
        "auc": float(BinaryAUROC()(logits, label.long())),
        "logloss": float(binary_cross_entropy_with_logits(logits.double(), label.double())),
    }


def count_tables(model: nn.Module) -> int:
    """Numbers in the embedding tables of a model."""
    return sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag))


def count_dense(engine: deepspeed.DeepSpeedEngine) -> dict[str, Any]:
    """Trained numbers outside the tables: what every rank holds, and for each rank what only its host holds."""
    replicated = own = 0
    for parameter in engine.module.parameters():
        if getattr(parameter, "allreduce", True):
            replicated += parameter.numel()
        else:  # DeepSpeed's mark of a parameter that the hosts do not share: a tower module's
            own += parameter.numel()
    by_rank = [0] * dist.get_world_size()
    dist.all_gather_object(by_rank, own)
    return {"replicated": replicated - count_tables(engine.module), "own_by_rank": by_rank}


@dataclass
class TrafficMeter:
    """Bytes that `dmt_plugin` handed to its exchanges during training; stays empty for a plain engine.

    Attributes:
        engine: what `initialize` returned; `engine.dmt` exists when the JSON switched the plugin on.
        counted: sums so far, `{exchange: {phase: {"other_hosts": bytes, "same_host": bytes, ...}}}`.
    """

    engine: deepspeed.DeepSpeedEngine
    counted: dict[str, dict[str, dict[str, int]]] = field(default_factory=dict)

    def drop(self) -> None:
        """Forgets what was exchanged since the last call (an evaluation)."""
        if hasattr(self.engine, "dmt"):
            self.engine.dmt.traffic.reset()

    def take(self) -> None:
        """Counts what was exchanged since the last call (training steps)."""
        if hasattr(self.engine, "dmt"):
            add(self.counted, self.engine.dmt.traffic.as_dict())
        self.drop()

    def total(self) -> dict[str, dict[str, dict[str, int]]]:
        """The sum over all ranks."""
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, self.counted)
        whole: dict[str, dict[str, dict[str, int]]] = {}
        for part in parts:
            add(whole, part)
        return whole


def add(total: dict, part: dict) -> None:
    """Adds the numbers of the nested dictionary `part` to those of `total`, in place."""
    for key, value in part.items():
        if isinstance(value, dict):
            add(total.setdefault(key, {}), value)
        else:
            total[key] = total.get(key, 0) + value
