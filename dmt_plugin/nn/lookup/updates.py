"""The update rules in torch operations, over the rows that a step looked up: the reference for every backend.

Rows, gradients and what the rule keeps come in as blocks ``(n, columns)``, or ``(n,)`` where one number per row is
kept, and go out as such. Nothing is read of other rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dmt_plugin.core.update_rule import Rule


def new_states(rule: Rule, rows: int, columns: int, device: torch.device) -> dict[str, Tensor]:
    """What a rule keeps of a table before its first update: ``(rows,)`` or ``(rows, columns)``, fp32."""
    start = rule.initial_accumulator_value if rule.name in ("adagrad", "rowwise_adagrad") else 0.0
    sizes = {"row": (rows,), "entry": (rows, columns)}
    return {key: torch.full(sizes[kind], start, device=device) for key, kind in rule.states.items()}


def updated(rule: Rule, lr: float, step: int, rows: Tensor, gradient: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
    """The rows after one update; ``kept`` is updated in place.

    Args:
        rule: the rule.
        lr: learning rate of this update.
        step: which update of the table it is, from 1.
        rows: ``(n, columns)`` values, fp32; not changed.
        gradient: ``(n, columns)``; may be changed.
        kept: by name what the rule keeps of these rows.
    """
    gradient = _clipped(rule, gradient)
    if rule.weight_decay and not rule.decoupled and rule.name != "lamb":
        gradient = gradient.add(rows, alpha=rule.weight_decay)
    if rule.weight_decay and rule.decoupled and rule.name != "lamb":
        rows = rows * (1 - lr * rule.weight_decay)
    if rule.name == "sgd":
        return rows.sub(_with_momentum(rule, gradient, kept), alpha=lr)
    if rule.name == "adagrad":
        total = kept["sum"].add_(gradient.square())
        return rows - lr * gradient / (total.sqrt() + rule.eps)
    if rule.name == "rowwise_adagrad":
        total = kept["sum"].add_(gradient.square().mean(dim=1))
        return rows - gradient * (lr / (total.sqrt() + rule.eps)).unsqueeze(1)
    direction = _adam_direction(rule, step, gradient, kept)
    if rule.name == "lamb":
        if rule.weight_decay:
            direction = direction.add(rows, alpha=rule.weight_decay)
        direction = direction * _trust_ratio(rule, rows, direction)
    return rows.sub(direction, alpha=lr)


def _clipped(rule: Rule, gradient: Tensor) -> Tensor:
    if rule.clip_value is not None:
        gradient = gradient.clamp(-rule.clip_value, rule.clip_value)
    if rule.clip_norm is not None:
        norm = gradient.norm(dim=1, keepdim=True)
        gradient = gradient * (rule.clip_norm / norm.clamp(min=rule.clip_norm))
    return gradient


def _with_momentum(rule: Rule, gradient: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
    if not rule.momentum:
        return gradient
    buffer = kept["momentum_buffer"].mul_(rule.momentum).add_(gradient)
    return gradient.add(buffer, alpha=rule.momentum) if rule.nesterov else buffer


def _adam_direction(rule: Rule, step: int, gradient: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
    first, second = rule.betas
    mean = kept["exp_avg"].lerp_(gradient, 1 - first)
    square = gradient.square()
    if rule.name == "partial_rowwise_adam":
        square = square.mean(dim=1)
    spread = kept["exp_avg_sq"].mul_(second).add_(square, alpha=1 - second)
    root = (spread.sqrt() / math.sqrt(1 - second**step)).add_(rule.eps)
    return (mean / (1 - first**step)) / (root.unsqueeze(1) if root.dim() == 1 else root)


def _trust_ratio(rule: Rule, rows: Tensor, direction: Tensor) -> Tensor:
    """``(n, 1)``; 1 where a row or its direction is zero."""
    own, other = rows.norm(dim=1, keepdim=True), direction.norm(dim=1, keepdim=True)
    ratio = (own / other).clamp(*rule.trust_ratio)
    return torch.where((own > 0) & (other > 0), ratio, torch.ones_like(ratio))
