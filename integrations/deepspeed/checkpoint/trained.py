"""The interface of an engine that checkpoints are saved from and loaded into.

Saving and loading take this protocol, so that they need not import the engine, which imports them.
"""

from __future__ import annotations

from typing import Any, Protocol

from dmt_plugin.integrations.deepspeed.checkpoint.behind import Behind
from dmt_plugin.integrations.deepspeed.checkpoint.rank_state import Registered
from dmt_plugin.integrations.deepspeed.engine.state import DMTState


class Trained(Protocol):
    """An engine, as a checkpoint sees it.

    Attributes:
        dmt: the plugin's part.
        checkpointed: the user's objects whose state belongs to a checkpoint.
        behind: the checkpoint that is written behind the steps.
        optimizer: of the dense part and the towers; None without one.
        lr_scheduler: its scheduler; None without one.
        global_steps: steps so far, skipped ones too.
        micro_steps: micro-batches so far.
    """

    dmt: DMTState
    checkpointed: Registered
    behind: Behind
    optimizer: Any
    lr_scheduler: Any
    global_steps: int
    micro_steps: int

    def gradient_accumulation_steps(self) -> int:
        """Micro-batches of a step."""

    def managed_gradient_accumulation(self) -> bool:
        """Whether DeepSpeed counts them."""

    def zero_optimization_stage(self) -> int:
        """0, 1 or 2."""

    def bfloat16_enabled(self) -> bool:
        """Whether the model is in bf16."""
