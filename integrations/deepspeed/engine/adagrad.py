"""Adagrad under ZeRO 1 and 2 with more than one parameter group.

ZeRO replaces an optimizer's parameters by flat partitions. ``torch.optim.Adagrad`` makes its
state when it is built, so DeepSpeed builds it again over the partitions, and hands it one
parameter group for all of them: with several groups, and towers are a group of their own,
the run ends in an IndexError, and group options are lost. An Adagrad that makes its state at
the first step needs no rebuilding. The update is torch's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.adagrad import adagrad

from dmt_plugin.core.errors import ConfigError

_RULE = ("lr", "weight_decay", "lr_decay", "eps", "maximize", "foreach", "fused")
"""Options of a group that torch's update takes."""


class LazyAdagrad(torch.optim.Optimizer):
    """``torch.optim.Adagrad`` whose state appears at the first step.

    Args:
        groups: parameter groups with Adagrad's options (``lr``, ``lr_decay``, ``weight_decay``,
            ``initial_accumulator_value``, ``eps``, ``maximize``, ``foreach``, ``fused``).
        defaults: Adagrad's defaults.
    """

    def __init__(self, groups: list[dict[str, Any]], defaults: dict[str, Any]) -> None:
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            for parameter in parameters:
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), device=parameter.device if group["fused"] else "cpu")
                    state["sum"] = torch.full_like(parameter, group["initial_accumulator_value"])
            sums, steps = ([self.state[p][name] for p in parameters] for name in ("sum", "step"))
            rule = {name: group[name] for name in _RULE}
            adagrad(parameters, [p.grad for p in parameters], sums, steps, **rule, has_sparse_grad=False)
        return loss


def safe_for_zero(optimizer: Any) -> Any:
    """The optimizer that ZeRO may take apart: a torch Adagrad with several groups becomes a :class:`LazyAdagrad`.

    Raises:
        ConfigError: gradients are to flow through its steps.
    """
    if type(optimizer) is not torch.optim.Adagrad or len(optimizer.param_groups) < 2:
        return optimizer
    if any(group.get("differentiable") for group in optimizer.param_groups):
        raise ConfigError(
            "optimizer Adagrad with differentiable = True: at ZeRO stages 1 and 2 its steps are taken on partitions "
            "that no gradient flows through. Remove it, or use zero_optimization.stage = 0"
        )
    return LazyAdagrad([dict(group) for group in optimizer.param_groups], dict(optimizer.defaults))
