"""Checks a rewritten graph against the model it came from, on the user's own batch."""

from __future__ import annotations

from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from dmt_plugin.capture import ExampleBatch
from dmt_plugin.core.errors import TransformError
from dmt_plugin.core.findings import Finding


def can_run(model: nn.Module) -> bool:
    """False for models whose weights hold no data."""
    return not any(p.is_meta for p in model.parameters())


def check_same_outputs(flat: nn.Module, rewritten: nn.Module, example: ExampleBatch, stage: str) -> None:
    """Runs both models on the example batch in eval mode; outputs must be equal bit for bit.

    Args:
        flat: the user's model.
        rewritten: the model that must compute the same.
        example: the batch.
        stage: what was done to the model, for the message.

    Raises:
        TransformError: outputs differ (finding DMT402).
    """
    expected, found = _run(flat, example), _run(rewritten, example)
    worst = 0.0
    same = len(expected) == len(found)
    for a, b in zip(expected, found, strict=False):
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if a.shape != b.shape:
                same = False
            elif not (torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())):
                same, worst = False, max(worst, float((a.double() - b.double()).nan_to_num().abs().max()))
    if not same:
        raise TransformError([_finding(flat, expected, example, stage, worst)])


def _finding(flat: nn.Module, expected: list[Any], example: ExampleBatch, stage: str, worst: float) -> Finding:
    """What is to blame: the model, if it does not even agree with itself."""
    again = _run(flat, example)
    alike = all(torch.equal(a, b) for a, b in zip(expected, again, strict=True) if isinstance(a, Tensor))
    found = f"{stage} changed the outputs on the example batch (largest difference {worst:.3g})"
    if not alike:
        return Finding(
            "DMT402",
            "error",
            "",
            f"{found}, and the model itself gives other outputs each time it is called with that batch in eval mode",
            "make it give the same: draw no random numbers in eval mode, and hand in with the batch what changes from "
            "call to call (a step, a temperature); a graph keeps the value of one call",
        )
    return Finding(
        "DMT402",
        "error",
        "",
        found,
        'this is a defect of the compiler; please report it, and set "enabled": false to train the flat model',
    )


def _run(model: nn.Module, example: ExampleBatch) -> list[Any]:
    states = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return pytree.tree_leaves(model(*example.args, **example.kwargs))
    finally:
        for module, training in states:
            module.training = training
