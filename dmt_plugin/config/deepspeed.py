"""The DeepSpeed configuration around the "dmt" section: the keys that matter here, read once, each in this one place.

Keys that are missing have DeepSpeed's defaults. What DeepSpeed itself refuses, or replaces before it is used, need not
be understood here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dmt_plugin.core.update_rule import WeightType

MISSING = object()
"""Stands for a key that is not there."""

DEFAULT_BUCKET = 500_000_000
DEFAULT_CLIPPING = 1.0
_MONITORS = ("tensorboard", "wandb", "csv_monitor", "comet")


class DeepSpeedSettings:
    """A DeepSpeed configuration.

    Args:
        given: As the user gave it.

    Attributes:
        given: The same; it is not changed.
        zero_stage: The ZeRO stage.
        overlap_comm: Whether ZeRO reduces gradients while the backward pass goes on.
        reduce_bucket_size: Entries that ZeRO reduces at once, as given.
        bf16: Whether towers and the dense part are in bf16.
        wire: Format of gradients between ranks.
        prescales: Whether gradients are divided before they are summed.
        predivide_factor: What by, as given.
        micro_batches: Of a step; 1 where DeepSpeed has to work it out.
        kept_gradients: Type in which gradients are kept; None where none is named.
        clipping: The norm that gradients are clipped to, as given; 0: they are not.
        optimizer: Name of the optimizer; None where there is none.
        scheduler: Name of the learning-rate scheduler; None where there is none.
        monitored: Whether a monitor is on.
        logs_collectives: Whether the comms logger is on.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        zero = given.get("zero_optimization")
        self.zero_stage = int(zero) if isinstance(zero, bool) else _whole(self.at("zero_optimization.stage", 0))
        self.overlap_comm = bool(self.at("zero_optimization.overlap_comm", False))
        self.reduce_bucket_size: Any = self.at("zero_optimization.reduce_bucket_size", DEFAULT_BUCKET)
        self.bf16 = any(self.at(f"{key}.enabled") is True for key in ("bf16", "bfloat16"))
        self.wire = str(given.get("communication_data_type") or ("bf16" if self.bf16 else "fp32")).lower()
        self.prescales = bool(given.get("prescale_gradients"))
        self.predivide_factor: Any = given.get("gradient_predivide_factor", 1.0)
        steps = given.get("gradient_accumulation_steps")
        self.micro_batches: int = steps if isinstance(steps, int) else 1
        self.kept_gradients: Any = self.at("data_types.grad_accum_dtype")
        self.clipping: Any = given.get("gradient_clipping", DEFAULT_CLIPPING)
        self.optimizer: Any = self.at("optimizer.type")
        self.scheduler: Any = self.at("scheduler.type")
        self.monitored = any(self.at(f"{name}.enabled", False) for name in _MONITORS)
        self.logs_collectives = bool(self.at("comms_logger.enabled", False))

    def row_dtype(self, of_model: WeightType) -> WeightType:
        """Type in which rows leave the tables.

        Args:
            of_model: that of the rows that the flat model looks up.
        """
        return "bf16" if self.bf16 else of_model

    def at(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path, ``default`` where any part of it is missing."""
        value: Any = self.given
        for part in path.split("."):
            value = value.get(part, MISSING) if isinstance(value, Mapping) else MISSING
            if value is MISSING:
                return default
        return value


def _whole(value: Any) -> int:
    """A whole number; 0 for what DeepSpeed refuses."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        return 0
