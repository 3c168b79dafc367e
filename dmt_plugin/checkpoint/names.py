"""Names of parameters in the logical model, which every checkpoint and every flat state goes by."""

from __future__ import annotations


def logical_name(name: str) -> str:
    """A parameter's name in the logical model; the engine's wrapper around towers adds to it."""
    return name.replace("deepspeed_moe.experts.deepspeed_experts.0.", "")
