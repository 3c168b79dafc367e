"""Checks that a rewritten graph gives the outputs of the model it came from, bit for bit, on the example batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dmt_plugin.capture import ExampleBatch
from dmt_plugin.core.equality import differences, same, say_differences
from dmt_plugin.core.errors import TransformError
from dmt_plugin.core.findings import Finding
from dmt_plugin.core.modes import in_mode


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
    changed = differences(expected, found)
    if not changed:
        return
    what = f"{stage} changed the outputs on the example batch ({say_differences(changed)})"
    if same(expected, _run(flat, example)):
        hint = 'this is a defect of the compiler; please report it, and set "enabled": false to train the flat model'
    else:
        what += ", and the model itself gives other outputs each time it is called with that batch in eval mode"
        hint = (
            "make it give the same: draw no random numbers in eval mode, and hand in with the batch what changes from "
            "call to call (a step, a temperature); a graph keeps the value of one call"
        )
    raise TransformError([Finding("DMT402", "error", "", what, hint)])


def _run(model: nn.Module, example: ExampleBatch) -> Any:
    with in_mode(model, training=False), torch.no_grad():
        return model(*example.args, **example.kwargs)
