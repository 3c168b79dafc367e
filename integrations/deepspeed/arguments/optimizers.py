"""An optimizer that the user built on the flat model, built again on the placed one.

1. An optimizer that has taken a step is refused: its state is that of parameters that may be gone. So is a
   learning-rate scheduler that holds it.
2. Its parameter groups are translated as ``model_parameters`` are (:mod:`.parameters`): each keeps its options.
3. One of the same class and defaults is built over what came of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from dmt_plugin.core.errors import ConfigError

_WAY_OUT = (
    'Name it in the DeepSpeed configuration ("optimizer": {"type": ..., "params": ...}), or pass a callable that '
    "builds it, optimizer=lambda params: torch.optim.Adam(params, lr=...)"
)


def is_built(optimizer: Any) -> bool:
    """Whether it is an optimizer, and not a callable that makes one, or nothing."""
    return hasattr(optimizer, "param_groups")


def check_built(optimizer: Any, lr_scheduler: Any) -> None:
    """Refuse what cannot be built again.

    Raises:
        ConfigError: Naming the argument.
    """
    name = type(optimizer).__name__
    if getattr(optimizer, "state", None) and any(_stepped(state) for state in optimizer.state.values()):
        raise ConfigError(
            f"optimizer is a {name} that has taken steps on the flat model: it is built again over the parameters that "
            f"the transform leaves, and what it has learned of others would be lost. Pass it before its first step. "
            f"{_WAY_OUT}"
        )
    if getattr(lr_scheduler, "optimizer", None) is optimizer:
        raise ConfigError(
            f"lr_scheduler is a {type(lr_scheduler).__name__} on the {name} of the flat model, which is built again "
            "over the parameters that the transform leaves: it would go on scheduling the old one. Pass a callable, "
            f"lr_scheduler=lambda optimizer: {type(lr_scheduler).__name__}(optimizer, ...)"
        )


def _stepped(state: Any) -> bool:
    """Whether a parameter's state is more than a fresh one, which some optimizers make when they are built."""
    count = state.get("step", 1) if isinstance(state, dict) else 1
    return float(count) > 0


def built_again(optimizer: Any, groups: Sequence[dict[str, Any]]) -> Any:
    """An optimizer of the same class and defaults over other groups.

    Args:
        optimizer: the user's; not changed.
        groups: parameters with the options of each group.

    Raises:
        ConfigError: its class cannot be called with its own defaults.
    """
    kind = type(optimizer)
    accepted = inspect.signature(kind.__init__).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    options = {key: value for key, value in optimizer.defaults.items() if anything or key in accepted}
    try:
        return kind([dict(group) for group in groups], **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"optimizer is a {kind.__name__} built on the flat model, which holds tables and layers that the transform "
            f"replaces; it cannot be built again from its defaults {sorted(options)}: {error}. {_WAY_OUT}"
        ) from error
