"""The norm of all gradients where hosts hold different towers.

DeepSpeed averages the ranks' norms at ZeRO stage 0 (in fp32), or leaves the towers out (in bf16, unless the optimizer
is fused). Here every dense gradient counts once, and every tower's once, as in a single process that holds them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.moe.utils import is_moe_param
from torch import Tensor, nn


def exact_norm(parameters: Iterable[nn.Parameter], device: torch.device, peers: dist.ProcessGroup | None) -> Tensor:
    """A scalar in fp32; a collective of the ranks that hold different towers.

    Args:
        parameters: this rank's, with the gradients that all replicas have.
        device: of the gradients.
        peers: group of the ranks that hold one tower each; None: no towers anywhere.
    """
    dense: list[Tensor] = []
    towers: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            (towers if is_moe_param(parameter) else dense).append(parameter.grad)
    square = _square_norm(dense, device)
    if peers is not None:
        tower_square = _square_norm(towers, device)
        dist.all_reduce(tower_square, group=peers)
        square = square + tower_square
    return square.sqrt()


def clip(engine: Any, parameters: Iterable[nn.Parameter], norm: Tensor, limit: float) -> None:
    """Scale gradients down to a norm, which the engine's ``get_global_grad_norm`` then returns as it was.

    Args:
        engine: DeepSpeed's.
        parameters: whose gradients.
        norm: of all of them.
        limit: the norm they may have.
    """
    coefficient = (limit / (norm + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(coefficient.to(parameter.grad.dtype))
    engine._global_grad_norm = norm.item()


def say_infinite(engine: Any) -> None:
    """Let ``get_global_grad_norm`` of DeepSpeed's engine say that a gradient of the last step was not finite."""
    engine._global_grad_norm = float("inf")


def clip_by(keeper: Any, norm_of: Callable[[list[nn.Parameter]], Tensor]) -> None:
    """Let DeepSpeed's keeper of fp32 masters, which is not fused, clip by another norm than its own.

    Args:
        keeper: a ``FP16_UnfusedOptimizer``.
        norm_of: the norm of the gradients of parameters.
    """
    stock = keeper.unscale_and_clip_grads

    def unscale_and_clip_grads(total_norm: Any, apply_scale: bool = True) -> Any:
        norm = norm_of([p for group in keeper.fp16_groups for p in group])
        keeper._global_grad_norm = norm.item()
        return stock(keeper._global_grad_norm, apply_scale)

    keeper.unscale_and_clip_grads = unscale_and_clip_grads


def _square_norm(gradients: list[Tensor], device: torch.device) -> Tensor:
    """Sum of squares of all elements, a scalar in fp32."""
    if not gradients:
        return torch.zeros((), device=device)
    norms = torch.stack([torch.linalg.vector_norm(g.detach(), dtype=torch.float32) for g in gradients])
    return norms.square().sum()
