"""DeepSpeed's engine with the five things a tower-decomposed model needs on top.

1. ``step`` also applies and clears the tables' gradients, at the same boundary and only if the dense step was applied.
2. At ZeRO stage 0 DeepSpeed clips with the *average* of the ranks' gradient norms, which is not the norm of all
   parameters once hosts hold different towers. :meth:`DMTEngine.clip_fp32_gradients` uses the exact one: the dense part
   once, plus every tower once. Stages 1 and 2 do so by themselves.
3. At ZeRO 1 and 2 a torch Adagrad keeps its parameter groups (:mod:`.adagrad`).
4. Where the reduction of gradients fails for want of a rank, the error says so, as those of the exchanges do.
5. Checkpoints are refused until they can hold the tables too.

Gradient clipping never covers the tables: their gradients are applied by their own optimizer, in the backward pass
where the backend fuses them, and are no part of the global norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from deepspeed.moe.utils import is_moe_param
from deepspeed.runtime.engine import DeepSpeedEngine
from torch import nn

from dmt_plugin.config import DMTConfig
from dmt_plugin.errors import DMTError
from dmt_plugin.integrations.deepspeed.adagrad import safe_for_zero
from dmt_plugin.topology import RankGroups, Topology


@dataclass
class DMTState:
    """What the plugin keeps beside the engine, as ``engine.dmt``.

    Attributes:
        config: The "dmt" section.
        plan: The tower plan of the model.
        topology: Hosts and ranks per host.
        source: Where the topology was read.
        groups: This rank's process groups.
        transport: Carries the exchanges.
        traffic: Bytes handed to each exchange so far.
        lookup: This rank's tables.
        placed: This rank's model; the engine's ``module``.
    """

    config: DMTConfig
    plan: Any
    topology: Topology
    source: str
    groups: RankGroups
    transport: Any
    traffic: Any
    lookup: Any
    placed: nn.Module


class DMTEngine(DeepSpeedEngine):
    """``DeepSpeedEngine`` for one rank of a tower-decomposed model.

    Args:
        *args: As for ``DeepSpeedEngine``.
        dmt: The plugin's part.
        **kwargs: As for ``DeepSpeedEngine``.

    Attributes:
        dmt: Plan, topology, groups, traffic and tables (:class:`DMTState`).
    """

    def __init__(self, *args: Any, dmt: DMTState, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dmt = dmt

    def _configure_zero_optimizer(self, optimizer: Any) -> Any:
        return super()._configure_zero_optimizer(safe_for_zero(optimizer))

    def step(self, lr_kwargs: dict[str, Any] | None = None) -> None:
        """As DeepSpeed's ``step``; at an accumulation boundary it also updates this rank's tables.

        If DeepSpeed skips the step because a gradient is not finite, the tables' gradients are dropped as well
        (the ``fbgemm`` backend has applied them by then).
        """
        before = self.global_steps
        super().step(lr_kwargs)
        if self.global_steps == before:
            return
        lookup = self.dmt.lookup
        if self.was_step_applied():
            lookup.step()
        lookup.zero_grad()
        self.dmt.transport.step = self.global_steps

    def allreduce_gradients(self, *args: Any, **kwargs: Any) -> None:
        """As DeepSpeed's; a wait that fails is told as those of the exchanges are.

        Raises:
            ExchangeError: A rank is gone, or ``dmt.comm.timeout_s`` is over.
        """
        try:
            super().allreduce_gradients(*args, **kwargs)
        except RuntimeError as error:
            where = "the reduction of the dense gradients"
            raise self.dmt.transport.failure(where, "did not finish", error) from error

    def clip_fp32_gradients(self) -> None:
        """Clips at ZeRO stage 0 by the exact global norm, which ``get_global_grad_norm`` then returns.

        Called by DeepSpeed after gradients were reduced. The norm is that of the gradients of all dense parameters
        and of the tower modules of all hosts, each once, as in a single process that holds them all.
        """
        dense: list[torch.Tensor] = []
        towers: list[torch.Tensor] = []
        for parameter in self.module.parameters():
            if parameter.grad is not None:
                (towers if is_moe_param(parameter) else dense).append(parameter.grad)
        square = _square_norm(dense, self.device)
        if self.has_moe_layers:
            tower_square = _square_norm(towers, self.device)
            dist.all_reduce(tower_square, group=self.dmt.groups.peers)
            square = square + tower_square
        norm = square.sqrt()
        coefficient = (self.gradient_clipping() / (norm + 1e-6)).clamp(max=1.0)
        for gradient in (*dense, *towers):
            gradient.mul_(coefficient.to(gradient.dtype))
        self._global_grad_norm = norm.item()

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not available yet.

        Raises:
            DMTError: Always: DeepSpeed's own checkpoint would leave out the tables.
        """
        _refuse_checkpoint("save_checkpoint")

    def load_checkpoint(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not available yet.

        Raises:
            DMTError: Always: DeepSpeed's own loader would leave the tables as they are.
        """
        _refuse_checkpoint("load_checkpoint")

    def save_16bit_model(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not available yet.

        Raises:
            DMTError: Always: the file would hold neither the tables nor the other hosts' towers.
        """
        _refuse_checkpoint("save_16bit_model")

    def compile(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not available yet.

        Raises:
            DMTError: Always.
        """
        raise DMTError(
            "engine.compile() is not supported for a tower-decomposed model in this version: the exchanges between "
            'ranks have not been made safe to compile. Leave the call out, or train with "dmt": {"enabled": false}.'
        )


def _square_norm(gradients: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Sum of squares of all elements, a scalar in fp32."""
    if not gradients:
        return torch.zeros((), device=device)
    norms = torch.stack([torch.linalg.vector_norm(g.detach(), dtype=torch.float32) for g in gradients])
    return norms.square().sum()


def _refuse_checkpoint(call: str) -> NoReturn:
    raise DMTError(
        f"engine.{call}() is not available yet for a tower-decomposed model: the embedding tables are sharded over the "
        "ranks outside DeepSpeed's sight, and a checkpoint without them would be useless. Nothing was written or read. "
        'Train without it, or with "dmt": {"enabled": false}.'
    )
