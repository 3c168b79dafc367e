"""Tower-decomposed models under DeepSpeed: ``initialize`` and the engine it returns.

This is the only place of the package that imports DeepSpeed.
"""

from __future__ import annotations

from dmt_plugin.integrations.deepspeed.engine import DMTEngine, DMTState
from dmt_plugin.integrations.deepspeed.initialize import initialize

__all__ = ["DMTEngine", "DMTState", "initialize"]
