"""The DeepSpeed configuration around the "dmt" section: the keys that matter here, each read in this one place.

Keys that are missing have DeepSpeed's defaults. A value is looked at when it is asked for: what DeepSpeed itself
refuses, or replaces before it is used, need not be understood here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MISSING = object()
"""Stands for a key that is not there."""

DEFAULT_BUCKET = 500_000_000
DEFAULT_CLIPPING = 1.0
_MONITORS = ("tensorboard", "wandb", "csv_monitor", "comet")


@dataclass(frozen=True)
class DeepSpeedSettings:
    """A DeepSpeed configuration.

    Attributes:
        given: As the user gave it; it is not changed.
    """

    given: Mapping[str, Any]

    def at(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path, ``default`` where any part of it is missing."""
        value: Any = self.given
        for part in path.split("."):
            value = value.get(part, MISSING) if isinstance(value, Mapping) else MISSING
            if value is MISSING:
                return default
        return value

    @property
    def zero_stage(self) -> int:
        """The ZeRO stage."""
        section = self.given.get("zero_optimization", {})
        return int(section) if isinstance(section, bool) else int(self.at("zero_optimization.stage", 0))

    @property
    def overlap_comm(self) -> bool:
        """Whether ZeRO reduces gradients while the backward pass goes on."""
        return bool(self.at("zero_optimization.overlap_comm", False))

    @property
    def reduce_bucket_size(self) -> int:
        """Entries that ZeRO reduces at once."""
        return int(self.at("zero_optimization.reduce_bucket_size", DEFAULT_BUCKET))

    @property
    def bf16(self) -> bool:
        """Whether towers and the dense part are in bf16."""
        return any(self.at(f"{key}.enabled") is True for key in ("bf16", "bfloat16"))

    @property
    def wire(self) -> str:
        """Format of gradients between ranks."""
        return str(self.given.get("communication_data_type") or ("bf16" if self.bf16 else "fp32")).lower()

    @property
    def prescales(self) -> bool:
        """Whether gradients are divided before they are summed."""
        return bool(self.given.get("prescale_gradients"))

    @property
    def predivide_factor(self) -> float:
        """What gradients are divided by before they are summed."""
        return self.given.get("gradient_predivide_factor", 1.0)

    @property
    def micro_batches(self) -> int:
        """Of a step; 1 where DeepSpeed has to work it out."""
        steps = self.given.get("gradient_accumulation_steps")
        return steps if isinstance(steps, int) else 1

    @property
    def kept_gradients(self) -> str | None:
        """Type in which gradients are kept, where it is named."""
        return self.at("data_types.grad_accum_dtype")

    @property
    def clipping(self) -> float:
        """The norm that gradients are clipped to; 0: they are not."""
        return self.given.get("gradient_clipping", DEFAULT_CLIPPING)

    @property
    def clips_by_default(self) -> bool:
        """Whether nobody said so."""
        return "gradient_clipping" not in self.given

    @property
    def optimizer(self) -> Any:
        """Name of the optimizer; None where the configuration has none."""
        return self.at("optimizer.type")

    @property
    def scheduler(self) -> Any:
        """Name of the learning-rate scheduler; None where the configuration has none."""
        return self.at("scheduler.type")

    @property
    def monitored(self) -> bool:
        """Whether a monitor is on."""
        return any(self.at(f"{name}.enabled", False) for name in _MONITORS)

    @property
    def logs_collectives(self) -> bool:
        """Whether the comms logger is on."""
        return bool(self.at("comms_logger.enabled", False))
