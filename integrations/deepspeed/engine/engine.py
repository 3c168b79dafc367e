"""DeepSpeed's engine with the eleven things a tower-decomposed model needs on top.

1. ``step`` also applies and clears the tables' gradients, at the same boundary and only if the dense step was applied.
   FBGEMM's updates in the backward pass are held back until then where other micro-batches belong to the step, or a
   step may turn out bad; with ``dmt.lookup.accumulation`` = "per_micro_batch" all tables are updated after every
   backward pass instead.
2. At ZeRO stage 0 DeepSpeed clips with the *average* of the ranks' gradient norms, which is not the norm of all
   parameters once hosts hold different towers. :meth:`DMTEngine.clip_fp32_gradients` uses the exact one: the dense part
   once, plus every tower once. In bf16 at stage 0 it leaves the towers out of the norm, unless the optimizer is fused;
   then the same norm is taken there too (:mod:`.gradient_norm`). Stages 1 and 2 do so by themselves.
3. At ZeRO 1 and 2 a torch Adagrad keeps its parameter groups (:mod:`.adagrad`).
4. Where DeepSpeed waits for a rank that is gone, the error says so, as those of the exchanges do (:mod:`.failures`).
5. At ZeRO stage 0 gradients are summed while the backward pass goes on, by way of the hosts (:mod:`.reduction`).
6. Checkpoints hold the tables and all hosts' towers too, and can be written behind the steps
   (:mod:`.checkpoint_access`, :mod:`dmt_plugin.integrations.deepspeed.checkpoint`).
7. The learning rate of the tables can follow that of the dense part (:mod:`.table_rate`).
8. A step with a gradient that is not finite is skipped by all ranks, tables included (:mod:`.bad_steps`).
9. States of the flat model come out of the engine and go into it, as no rank has a whole model (:mod:`.flat_access`).
10. Tables can be frozen in mid-run (:mod:`.table_freeze`); a change of ``requires_grad`` then is an error.
11. ``destroy`` waits for a checkpoint that is being written, and gives back the process groups, threads and hooks that
    ``initialize`` took.

Gradient clipping never covers the tables: their gradients are applied by their own optimizer and are no part of the
global norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.accelerator import get_accelerator
from deepspeed.moe.utils import is_moe_param
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.zero.utils import is_zero_supported_optimizer

from dmt_plugin.checkpoint.saver_lock import let_go
from dmt_plugin.core.errors import ConfigError, DMTError
from dmt_plugin.integrations.deepspeed.checkpoint.behind import Behind
from dmt_plugin.integrations.deepspeed.checkpoint.rank_state import Registered
from dmt_plugin.integrations.deepspeed.engine.adagrad import safe_for_zero
from dmt_plugin.integrations.deepspeed.engine.bad_steps import BadSteps
from dmt_plugin.integrations.deepspeed.engine.checkpoint_access import CheckpointAccess
from dmt_plugin.integrations.deepspeed.engine.failures import noting
from dmt_plugin.integrations.deepspeed.engine.flat_access import FlatAccess
from dmt_plugin.integrations.deepspeed.engine.gradient_norm import clip, clip_by, exact_norm
from dmt_plugin.integrations.deepspeed.engine.reduction import GradientReduction
from dmt_plugin.integrations.deepspeed.engine.state import DMTState
from dmt_plugin.integrations.deepspeed.engine.table_freeze import GradientFlags, TableFreeze
from dmt_plugin.integrations.deepspeed.engine.table_rate import FollowedRates
from dmt_plugin.model.dense_compile import compile_dense
from dmt_plugin.topology.lost_ranks import reporting


class DMTEngine(TableFreeze, CheckpointAccess, FlatAccess, DeepSpeedEngine):
    """``DeepSpeedEngine`` for one rank of a tower-decomposed model.

    Args:
        *args: As for ``DeepSpeedEngine``.
        dmt: The plugin's part.
        **kwargs: As for ``DeepSpeedEngine``.

    Attributes:
        dmt: Plan, topology, groups, traffic and tables (:class:`DMTState`).
        checkpointed: The user's objects whose state belongs to a checkpoint.
        behind: The checkpoint that is written behind the steps.
    """

    dmt: DMTState
    checkpointed: Registered
    behind: Behind

    def __init__(self, *args: Any, dmt: DMTState, **kwargs: Any) -> None:
        self.dmt = dmt
        self._rate: FollowedRates | None = None
        super().__init__(*args, **kwargs)
        self.checkpointed = Registered()
        self.behind = Behind(dmt.groups, dmt.resources)
        self._flags = GradientFlags(self.module)
        self._reduction = self._overlapped_reduction()
        self._accumulates = dmt.config.lookup.accumulation == "accumulate"
        dmt.lookup.hold_gradients(False, once=self._accumulates)
        self._bad_steps = BadSteps(dmt, self.optimizer) if dmt.config.lookup.check_finite else None

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
            watch=self.dmt.config.lookup.check_finite,
        )

    def _configure_lr_scheduler(self) -> None:
        """As DeepSpeed's; what the learning rate is before a scheduler comes is what tables follow it from."""
        schedule, rules = self.dmt.config.lookup.schedule, self.dmt.lookup.rules.values()
        if schedule == "follow" or any(rule.group is not None for rule in rules):
            self._rate = FollowedRates(self.dmt.lookup, self.optimizer, schedule == "follow", self.dmt.group_positions)
        super()._configure_lr_scheduler()

    def _configure_zero_optimizer(self, optimizer: Any) -> Any:
        return super()._configure_zero_optimizer(safe_for_zero(optimizer))

    def _do_optimizer_sanity_check(self, basic_optimizer: Any) -> Any:
        """As DeepSpeed's, whose assertion becomes an error like the others.

        Raises:
            ConfigError: ZeRO has not been tested with this optimizer, and nobody said that it may be used.
        """
        allowed = not self.zero_optimization() or self.zero_allow_untested_optimizer()
        if not allowed and not is_zero_supported_optimizer(basic_optimizer):  # whose import takes seconds
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
            clip_by(keeper, self.exact_norm)
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
        with noting(self.dmt.transport, "the forward pass"):
            result = super().forward(*inputs, **kwargs)
        if self.dmt.placed.prefetcher is not None:
            self.dmt.transport.before_next_wait(self.dmt.placed.prefetcher.begin)
        return result

    def backward(self, *args: Any, **kwargs: Any) -> Any:
        """As DeepSpeed's."""
        with noting(self.dmt.transport, "DeepSpeed's sums in the backward pass"):
            return super().backward(*args, **kwargs)

    def step(self, lr_kwargs: dict[str, Any] | None = None) -> None:
        """As DeepSpeed's ``step``; at an accumulation boundary it also updates this rank's tables.

        If a gradient of the dense part or of the tables' rows is not finite on any rank, all ranks skip the step for
        both: ``was_step_applied()`` is False then, and ``skipped_steps`` counts it. With ``dmt.lookup.check_finite`` =
        false only DeepSpeed's own checks can skip it, and the ``fbgemm`` backend has updated its tables by then.

        Raises:
            ConfigError: ``requires_grad`` of a parameter has changed since ``initialize``.
        """
        self._flags.check()
        before = self.global_steps
        if self._rate is not None:
            self._rate.apply()
        with noting(self.dmt.transport, "DeepSpeed's exchanges in the optimizer step"):
            super().step(lr_kwargs)
        if self.global_steps == before:
            return
        lookup = self.dmt.lookup
        if self.was_step_applied():
            lookup.step()
        elif self._bad_steps is not None:
            self._bad_steps.report(self)
        lookup.zero_grad()
        self.dmt.transport.step = self.global_steps

    def _backward_epilogue(self) -> None:
        """As DeepSpeed's; where every micro-batch updates the tables, it does so now."""
        super()._backward_epilogue()
        if self._accumulates:
            return
        if self._bad_steps is not None:
            self._bad_steps.update_tables(self.micro_steps)
        else:
            self.dmt.lookup.step()
            self.dmt.lookup.zero_grad()

    def _take_model_step(self, lr_kwargs: dict[str, Any] | None) -> None:
        """As DeepSpeed's, unless a gradient is not finite."""
        if self._bad_steps is None:
            super()._take_model_step(lr_kwargs)
            return
        with self._bad_steps.judged(self):
            super()._take_model_step(lr_kwargs)

    def allreduce_gradients(self, *args: Any, **kwargs: Any) -> None:
        """As DeepSpeed's; a wait that fails is reported as those of the exchanges are.

        Raises:
            ExchangeError: A rank is gone, or ``dmt.comm.timeout_s`` is over.
        """
        with reporting(self.dmt.transport, "the reduction of the dense gradients"):
            super().allreduce_gradients(*args, **kwargs)

    def buffered_allreduce_fallback(self, grads: Any = None, *args: Any, **kwargs: Any) -> None:
        """As DeepSpeed's; what is under way already is only finished here, and the verdict on it travels beside it."""
        if self._reduction is None or grads is not None:
            super().buffered_allreduce_fallback(grads, *args, **kwargs)
            return
        self._reduction.begin()
        if self._bad_steps is not None and self._accumulates:
            self._bad_steps.begin(self._reduction.bounds)
        self._reduction.finish()

    def clip_fp32_gradients(self) -> None:
        """Clips at ZeRO stage 0 by the exact global norm, which ``get_global_grad_norm`` then returns.

        Called by DeepSpeed after gradients were reduced. The norm is that of the gradients of all dense parameters
        and of the tower modules of all hosts, each once, as in a single process that holds them all.
        """
        parameters = list(self.module.parameters())
        clip(self, parameters, self.exact_norm(parameters), self.gradient_clipping())

    def exact_norm(self, parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
        """The norm of the gradients of all dense parameters and of the towers of all hosts, each once: a collective.

        Args:
            parameters: this rank's, with the gradients that all replicas have.
        """
        peers = self.dmt.groups.peers if self.has_moe_layers else None
        return exact_norm(parameters, self.device, peers)

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

    def destroy(self) -> None:
        """As DeepSpeed's, and gives back the process groups, threads and hooks of this engine.

        All ranks call this, when none of them uses the engine any more; a second call does nothing more. A process that
        initializes one engine after the other needs it, as each takes groups, and they threads and connections.

        Raises:
            CheckpointError: The checkpoint that was being written is not committed; everything was given back.
        """
        try:
            self.behind.wait()
        finally:
            try:
                super().destroy()
            finally:
                let_go(self)
                self.dmt.resources.close()

    def __del__(self) -> None:
        """As DeepSpeed's; process groups stay, as only all ranks together may give them back."""
        with suppress(Exception):
            super().destroy()
