"""The DeepSpeed engine of one rank of a tower-decomposed model."""

from dmt_plugin.integrations.deepspeed.engine.engine import DMTEngine
from dmt_plugin.integrations.deepspeed.engine.state import DMTState

__all__ = ["DMTEngine", "DMTState"]
