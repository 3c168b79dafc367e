"""What users call: transform a model, initialise an engine, get the flat model back."""

from __future__ import annotations

from typing import Any

from dmt_plugin.checkpoint.logical import to_flat
from dmt_plugin.compiler import build_placed, read_config, transform
from dmt_plugin.integrations.deepspeed.initialize import initialize as deepspeed_initialize

__all__ = ["build_placed", "initialize", "read_config", "to_flat", "transform"]


def initialize(*args: Any, **kwargs: Any) -> Any:
    """``deepspeed.initialize`` with towers: the same arguments and the same four results.

    Accepts ``example_batch=``, ``weights=``, ``table_init=`` and ``shares_from=`` besides.
    Without a ``"dmt"`` section, or with ``"enabled": false``, the stock engine is returned.
    See :func:`dmt_plugin.integrations.deepspeed.initialize`.
    """
    return deepspeed_initialize(*args, **kwargs)
