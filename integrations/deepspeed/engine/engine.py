"""DeepSpeed's engine with the seven things a tower-decomposed model needs on top.

1. ``step`` also applies and clears the tables' gradients, at the same boundary and only if the dense step was applied.
   Where other micro-batches belong to the step, gradients of tables that FBGEMM would update in the backward pass are
   held back until then; with ``dmt.lookup.accumulation`` = "per_micro_batch" all tables are updated after every
   backward pass instead.
2. At ZeRO stage 0 DeepSpeed clips with the *average* of the ranks' gradient norms, which is not the norm of all
   parameters once hosts hold different towers. :meth:`DMTEngine.clip_fp32_gradients` uses the exact one: the dense part
   once, plus every tower once. In bf16 at stage 0 it leaves the towers out of the norm, unless the optimizer is fused;
   then :meth:`DMTEngine.exact_norm` is taken there too. Stages 1 and 2 do so by themselves.
3. At ZeRO 1 and 2 a torch Adagrad keeps its parameter groups (:mod:`.adagrad`).
4. Where the reduction of gradients fails for want of a rank, the error says so, as those of the exchanges do.
5. At ZeRO stage 0 gradients are summed while the backward pass goes on, by way of the hosts (:mod:`.reduction`).
6. Checkpoints hold the tables and all hosts' towers too (:mod:`.checkpointed`).
7. The learning rate of the tables can follow that of the dense part (:mod:`.table_rate`).

Gradient clipping never covers the tables: their gradients are applied by their own optimizer, in the backward pass
where the backend fuses them, and are no part of the global norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.moe.utils import is_moe_param
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.utils import is_zero_supported_optimizer

from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError, DMTError, ExchangeError
from dmt_plugin.integrations.deepspeed.checkpoint.rank_state import Registered
from dmt_plugin.integrations.deepspeed.engine.adagrad import safe_for_zero
from dmt_plugin.integrations.deepspeed.engine.checkpoint_calls import CheckpointedEngine
from dmt_plugin.integrations.deepspeed.engine.failures import ToldEngine
from dmt_plugin.integrations.deepspeed.engine.reduction import GradientReduction
from dmt_plugin.integrations.deepspeed.engine.table_rate import FollowedRate
from dmt_plugin.model.dense_compile import compile_dense
from dmt_plugin.model.placed import PlacedModel
from dmt_plugin.topology.groups import RankGroups
from dmt_plugin.topology.shape import Topology


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
    placed: PlacedModel


class DMTEngine(ToldEngine, CheckpointedEngine):
    """``DeepSpeedEngine`` for one rank of a tower-decomposed model.

    Args:
        *args: As for ``DeepSpeedEngine``.
        dmt: The plugin's part.
        **kwargs: As for ``DeepSpeedEngine``.

    Attributes:
        dmt: Plan, topology, groups, traffic and tables (:class:`DMTState`).
    """

    def __init__(self, *args: Any, dmt: DMTState, **kwargs: Any) -> None:
        self.dmt = dmt
        self._rate: FollowedRate | None = None
        super().__init__(*args, **kwargs)
        self.checkpointed = Registered()
        self._reduction = self._overlapped_reduction()
        self._accumulates = dmt.config.lookup.accumulation == "accumulate"
        dmt.lookup.hold_gradients(False, once=self._accumulates)

    def _overlapped_reduction(self) -> GradientReduction | None:
        """What sums the gradients, or None where DeepSpeed's own way of doing it was asked for or is needed."""
        usual = self.gradient_average and self.postscale_gradients() and self.gradient_predivide_factor() == 1.0
        parameters = [p for p in self.module.parameters() if p.requires_grad and p.numel()]
        plain = all(p.dtype == torch.float32 == self.communication_data_type for p in parameters)
        own = self.zero_optimization_stage() == 0 and not hasattr(self.optimizer, "get_grads_for_reduction")
        if not (self.dmt.config.comm.overlap and own and usual and plain and parameters):
            return None
        return GradientReduction(
            [p for p in parameters if not is_moe_param(p)],
            [p for p in parameters if is_moe_param(p)],
            self.dmt,
            lambda: (
                self.is_gradient_accumulation_boundary()
                and self.enable_backward_allreduce
                and not self.inside_no_sync_ctxt
            ),
        )

    def _configure_lr_scheduler(self) -> None:
        """As DeepSpeed's; what the learning rate is before a scheduler comes is what tables follow it from."""
        if self.dmt.config.lookup.schedule == "follow":
            self._rate = FollowedRate(self.dmt.lookup, self.optimizer)
        super()._configure_lr_scheduler()

    def _configure_zero_optimizer(self, optimizer: Any) -> Any:
        return super()._configure_zero_optimizer(safe_for_zero(optimizer))

    def _do_optimizer_sanity_check(self, basic_optimizer: Any) -> Any:
        """As DeepSpeed's, whose assertion becomes an error like the others.

        Raises:
            ConfigError: ZeRO has not been tested with this optimizer, and nobody said that it may be used.
        """
        known = is_zero_supported_optimizer(basic_optimizer) or self.zero_allow_untested_optimizer()
        if self.zero_optimization() and not known:
            raise ConfigError(
                f"optimizer {type(basic_optimizer).__name__} with zero_optimization.stage = "
                f"{int(self.zero_optimization_stage())}: DeepSpeed has not tested ZeRO with it. If it updates every "
                'entry by itself (SGD, Adagrad, ...), set "zero_allow_untested_optimizer": true; else use ZeRO stage 0'
            )
        return super()._do_optimizer_sanity_check(basic_optimizer)

    def _configure_fp16_optimizer(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        """As DeepSpeed's, which keeps fp32 masters of parameters in bf16 at stage 0; clips by the exact norm."""
        keeper = super()._configure_fp16_optimizer(optimizer, *args, **kwargs)
        if isinstance(keeper, FP16_UnfusedOptimizer):
            stock = keeper.unscale_and_clip_grads

            def unscale_and_clip_grads(total_norm: Any, apply_scale: bool = True) -> Any:
                norm = self.exact_norm([p for group in keeper.fp16_groups for p in group])
                keeper._global_grad_norm = norm.item()
                return stock(keeper._global_grad_norm, apply_scale)

            keeper.unscale_and_clip_grads = unscale_and_clip_grads
        return keeper

    def prefetch(self, *args: Any, **kwargs: Any) -> None:
        """Announce the batch of the next step, so that its ids travel while this step is computed.

        Call it before this step's forward pass, on every rank, with the very tensors that the next one will be
        called with. Without effect where ``dmt.comm.prefetch`` is off. See :func:`dmt_plugin.data.prefetched`.

        Args:
            *args: As for the model's forward.
            **kwargs: As for the model's forward.
        """
        placed = self.dmt.placed
        if placed.prefetcher is not None:
            step = self.global_steps + int(self.is_gradient_accumulation_boundary())
            placed.prefetcher.announce(placed.binder.inputs(args, kwargs), step)

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """As DeepSpeed's; the ids of an announced batch begin to travel when the backward pass first waits."""
        if self._rate is not None:
            self._rate.apply()
        if self._accumulates:
            lookup = self.dmt.lookup
            lookup.hold_gradients(lookup.holds or not self.is_gradient_accumulation_boundary())
        result = super().forward(*inputs, **kwargs)
        if self.dmt.placed.prefetcher is not None:
            self.dmt.transport.before_next_wait(self.dmt.placed.prefetcher.begin)
        return result

    def step(self, lr_kwargs: dict[str, Any] | None = None) -> None:
        """As DeepSpeed's ``step``; at an accumulation boundary it also updates this rank's tables.

        If DeepSpeed skips the step because a gradient is not finite, the tables' gradients are dropped as well
        (the ``fbgemm`` backend has applied them by then, unless they were held back).
        """
        before = self.global_steps
        if self._rate is not None:
            self._rate.apply()
        super().step(lr_kwargs)
        if self.global_steps == before:
            return
        lookup = self.dmt.lookup
        if self.was_step_applied():
            lookup.step()
        lookup.zero_grad()
        self.dmt.transport.step = self.global_steps

    def _backward_epilogue(self) -> None:
        """As DeepSpeed's; where every micro-batch updates the tables, it does so now."""
        super()._backward_epilogue()
        if not self._accumulates:
            self.dmt.lookup.step()
            self.dmt.lookup.zero_grad()

    def allreduce_gradients(self, *args: Any, **kwargs: Any) -> None:
        """As DeepSpeed's; a wait that fails is told as those of the exchanges are.

        Raises:
            ExchangeError: A rank is gone, or ``dmt.comm.timeout_s`` is over.
        """
        try:
            super().allreduce_gradients(*args, **kwargs)
        except ExchangeError:
            raise
        except RuntimeError as error:
            where = "the reduction of the dense gradients"
            raise self.dmt.transport.failure(where, "did not finish", error) from error

    def buffered_allreduce_fallback(self, grads: Any = None, *args: Any, **kwargs: Any) -> None:
        """As DeepSpeed's; what is under way already is only finished here."""
        if self._reduction is None or grads is not None:
            super().buffered_allreduce_fallback(grads, *args, **kwargs)
        else:
            self._reduction.finish()

    def clip_fp32_gradients(self) -> None:
        """Clips at ZeRO stage 0 by the exact global norm, which ``get_global_grad_norm`` then returns.

        Called by DeepSpeed after gradients were reduced. The norm is that of the gradients of all dense parameters
        and of the tower modules of all hosts, each once, as in a single process that holds them all.
        """
        parameters = list(self.module.parameters())
        norm = self.exact_norm(parameters)
        coefficient = (self.gradient_clipping() / (norm + 1e-6)).clamp(max=1.0)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(coefficient.to(parameter.grad.dtype))
        self._global_grad_norm = norm.item()

    def exact_norm(self, parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
        """The norm of the gradients of all dense parameters and of the towers of all hosts, each once: a collective.

        Args:
            parameters: this rank's, with the gradients that all replicas have.
        """
        dense: list[torch.Tensor] = []
        towers: list[torch.Tensor] = []
        for parameter in parameters:
            if parameter.grad is not None:
                (towers if is_moe_param(parameter) else dense).append(parameter.grad)
        square = _square_norm(dense, self.device)
        if self.has_moe_layers:
            tower_square = _square_norm(towers, self.device)
            dist.all_reduce(tower_square, group=self.dmt.groups.peers)
            square = square + tower_square
        return square.sqrt()

    def compile(
        self,
        backend: Any = None,
        compile_kwargs: Mapping[str, Any] | None = None,
        schedule: Any = None,
        compiled_autograd_enabled: bool = False,
    ) -> None:
        """Compiles towers and dense part, without exchanges, ids and tables (:mod:`dmt_plugin.model.dense_compile`).

        Args:
            backend: As for ``torch.compile``; by default the accelerator's.
            compile_kwargs: More arguments of ``torch.compile``.
            schedule: Not supported: it is DeepCompile's.
            compiled_autograd_enabled: Not supported: the exchanges of the backward pass would be inside.

        Raises:
            DMTError: One of these was asked for.
        """
        if schedule is not None or compiled_autograd_enabled:
            raise DMTError(
                f"engine.compile(schedule={schedule!r}, compiled_autograd_enabled={compiled_autograd_enabled}) is not "
                "supported for a tower-decomposed model: exchanges between ranks have to stay out of what is compiled. "
                "Leave both out"
            )
        if self.is_compiled:
            return
        backend = backend or get_accelerator().get_compile_backend()
        compile_dense(self.dmt.placed, **{**(compile_kwargs or {}), "backend": backend})
        self._is_compiled = True


def _square_norm(gradients: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Sum of squares of all elements, a scalar in fp32."""
    if not gradients:
        return torch.zeros((), device=device)
    norms = torch.stack([torch.linalg.vector_norm(g.detach(), dtype=torch.float32) for g in gradients])
    return norms.square().sum()
