"""Normalised entropy and AUC over all ranks, with torchmetrics (an extra: ``pip install 'dmt-plugin[metrics]'``).

1. ``NormalizedEntropy`` is the log loss of the predictions over that of always predicting the rate of positives: below
   1 is better than that. Three sums are kept, and added up over ranks.
2. ``click_metrics`` puts it beside torchmetrics' exact AUC, which keeps predictions and labels until it is computed.

``update`` stays on the rank and its device; ranks may see different numbers of samples, or none. ``compute`` is a
collective that every rank has to call.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dmt_plugin.core.errors import DMTError

try:
    from torchmetrics import Metric, MetricCollection
    from torchmetrics.classification import BinaryAUROC
except ImportError as error:
    raise DMTError(
        "dmt_plugin.metrics needs torchmetrics, which is not installed: pip install 'dmt-plugin[metrics]'"
    ) from error

_SMALLEST = 1e-12


class NormalizedEntropy(Metric):
    """Log loss over the entropy of the labels' mean.

    ``update`` takes predictions and labels of any one shape; predictions outside 0..1 in a batch are logits, as for
    torchmetrics' binary metrics. ``compute`` gives a scalar, nan where all labels seen are equal.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False

    loss: Tensor
    positives: Tensor
    samples: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("loss", "positives", "samples"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Count a batch."""
        if predictions.shape != labels.shape:
            raise ValueError(
                f"predictions {tuple(predictions.shape)} and labels {tuple(labels.shape)} have to be of one shape"
            )
        if not predictions.numel():
            return
        p, y = predictions.detach().double(), labels.detach().double()
        # Chosen on the device: asking would wait for it.
        p = torch.where(((p < 0) | (p > 1)).any(), p.sigmoid(), p).clamp(_SMALLEST, 1 - _SMALLEST)
        self.loss += -(y * p.log() + (1 - y) * (1 - p).log()).sum()
        self.positives += y.sum()
        self.samples += y.numel()

    def compute(self) -> Tensor:
        """Of all samples of all ranks."""
        rate = self.positives / self.samples
        entropy = -(torch.xlogy(rate, rate) + torch.xlogy(1 - rate, 1 - rate))
        return torch.where(entropy > 0, self.loss / self.samples / entropy, torch.nan).float()


def click_metrics() -> MetricCollection:
    """``{"auc": ..., "ne": ...}`` over all ranks; move it to the engine's device before the first update."""
    # Not grouped: their states have nothing in common.
    return MetricCollection({"auc": BinaryAUROC(thresholds=None), "ne": NormalizedEntropy()}, compute_groups=False)
