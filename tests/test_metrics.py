"""NE and AUC over ranks equal those of all samples in one process."""

from __future__ import annotations

import pytest
import torch

from tests._util.ranks import run_ranks


def data() -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(101, generator=random)
    return logits, (torch.rand(101, generator=random) < (logits + 0.5).sigmoid()).long()


def over_ranks(rank: int, world: int, shares: list[int]) -> tuple[float, float]:
    from dmt_plugin.metrics import click_metrics

    logits, labels = data()
    metrics = click_metrics()
    own = (part.split(shares)[rank] for part in (logits.sigmoid(), labels))
    for p, y in zip(*(part.split(20) for part in own), strict=True):
        metrics.update(p, y)
    found = metrics.compute()
    return float(found["auc"]), float(found["ne"])


def expected() -> tuple[float, float]:
    from sklearn.metrics import log_loss, roc_auc_score

    logits, labels = data()
    rate = labels.float().mean().item()
    entropy = log_loss(labels, torch.full_like(logits, rate))
    return roc_auc_score(labels, logits), log_loss(labels, logits.double().sigmoid()) / entropy


@pytest.mark.processes
@pytest.mark.parametrize("shares", [[40, 41, 20], [1, 99, 1]])
def test_over_ranks_as_in_one_process(shares):
    for found in run_ranks(3, over_ranks, shares):
        assert found == pytest.approx(expected(), abs=1e-6)


def test_logits_and_probabilities_give_the_same():
    from dmt_plugin.metrics import NormalizedEntropy

    logits, labels = data()
    by_logits, by_probability = NormalizedEntropy(), NormalizedEntropy()
    by_logits.update(logits, labels)
    by_probability.update(logits.double().sigmoid(), labels)
    assert float(by_logits.compute()) == pytest.approx(float(by_probability.compute()), abs=1e-6)
    assert float(by_logits.compute()) == pytest.approx(expected()[1], abs=1e-6)


def test_equal_labels_have_no_entropy():
    from dmt_plugin.metrics import NormalizedEntropy

    metric = NormalizedEntropy()
    metric.update(torch.rand(5), torch.ones(5))
    assert torch.isnan(metric.compute())
    with pytest.raises(ValueError, match="one shape"):
        metric.update(torch.rand(5), torch.ones(5, 1))
