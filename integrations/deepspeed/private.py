"""All uses of private names of DeepSpeed, in one file, except those that the engine subclass overrides.

DeepSpeed has no plugin interface, so eight things are reached by names that a new version may change:

1. ``deepspeed.initialize`` looks up ``DeepSpeedEngine`` among its module's globals when it builds the engine:
   :func:`engine_class` puts another constructor there for the length of one call and takes it away again.
2. On a CPU the first ``init_distributed`` of an installation compiles a shared-memory collective for most of a
   minute, and fails without ``ninja`` on the path. Only inference uses it: :func:`without_shm_build` says to
   DeepSpeed, for the length of one call, that it is not available.
3. Groups for expert parallelism live in dictionaries keyed ``"ep_size_<n>"``: :func:`expert_groups`.
4. DeepSpeed makes its process groups without a time limit, so that they get torch's, half an hour:
   :func:`limited_waits` passes one on, for the length of one call.
5. The comms logger hears only of collectives that go through ``deepspeed.comm``, and waits for the device after each of
   them: :func:`log_collective` hands it one that was timed otherwise.
6. The optimizers of ZeRO and of bf16 keep parameters in flat vectors of their own, a range of them on each rank:
   :func:`optimizer_layout` says which entries of which parameter are where, and :func:`relink_states` lets DeepSpeed
   find states that were put there.
7. The store at which the ranks met is torch's, and has no public name: :func:`meeting_store`. Nor has the time limit
   of a group that somebody else made: :func:`limited_default_group` sets the default group's, for one block.
8. The optimizers of ZeRO and of bf16 ask, before they step, whether a gradient overflowed: :func:`judge_overflow` has
   somebody else answer.

``tests/integrations/test_canaries.py`` fails, naming the one that moved, when DeepSpeed renames any of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate
from typing import Any

import deepspeed
import torch
from deepspeed import ops
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.fp16.fused_optimizer import FP16_Optimizer
from deepspeed.runtime.fp16.unfused_optimizer import FP16_UnfusedOptimizer
from deepspeed.runtime.utils import is_invalid_grad_norm
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import groups as ds_groups
from torch import Tensor, nn

SHM_OP = "deepspeed_shm_comm"
_COMPATIBLE_OPS = "__compatible_ops__"

#: DeepSpeed's own function, kept before anything of ours may stand in its place.
stock_initialize: Callable[..., Any] = deepspeed.initialize


@contextmanager
def engine_class(constructor: Callable[..., Any]) -> Iterator[None]:
    """Let ``deepspeed.initialize`` build its engine with ``constructor`` inside the ``with`` block."""
    stock = deepspeed.DeepSpeedEngine
    deepspeed.DeepSpeedEngine = constructor
    try:
        yield
    finally:
        deepspeed.DeepSpeedEngine = stock


@contextmanager
def without_shm_build() -> Iterator[None]:
    """Keep DeepSpeed from compiling its shared-memory collective inside the ``with`` block.

    The table of usable ops is filled by probing compilers on first access; where that has not happened yet, a
    table with the one entry stands in for it and goes away again.
    """
    table = vars(ops).get(_COMPATIBLE_OPS)
    if table is None:
        setattr(ops, _COMPATIBLE_OPS, {SHM_OP: False})
        try:
            yield
        finally:
            delattr(ops, _COMPATIBLE_OPS)
        return
    missing = object()
    before = table.get(SHM_OP, missing)
    table[SHM_OP] = False
    try:
        yield
    finally:
        if before is missing:
            table.pop(SHM_OP, None)
        else:
            table[SHM_OP] = before


@contextmanager
def limited_waits(timeout_s: float) -> Iterator[None]:
    """Give every process group that DeepSpeed makes inside the ``with`` block a time limit.

    Args:
        timeout_s: Limit of every wait in those groups, seconds.
    """
    backend = importlib.import_module("deepspeed.comm.torch").TorchBackend
    stock = backend.new_group

    def new_group(self: Any, ranks: Any) -> Any:
        return torch.distributed.new_group(ranks, timeout=timedelta(seconds=timeout_s))

    backend.new_group = new_group
    try:
        yield
    finally:
        backend.new_group = stock


def expert_groups(size: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Make sure that the expert groups of ``size`` hosts exist, and say which ranks this rank shares them with.

    Args:
        size: Number of hosts, DeepSpeed's ``ep_size``.

    Returns:
        The ranks of the expert-data-parallel group (they hold the same tower, their gradients are summed) and of
        the expert-parallel group (one rank per host).
    """
    name = f"ep_size_{size}"
    if name not in ds_groups._EXPERT_PARALLEL_GROUP:
        ds_groups._create_expert_and_data_parallel(size, use_data_before_expert_parallel_=True)
    data_ranks = ds_groups._EXPERT_DATA_PARALLEL_GROUP_RANKS[name]
    expert_ranks = ds_groups._EXPERT_PARALLEL_GROUP_RANKS[name]
    return tuple(data_ranks), tuple(expert_ranks)


def meeting_store() -> Any:
    """The store at which the ranks of the default group met."""
    return torch.distributed.distributed_c10d._get_default_store()


@contextmanager
def limited_default_group(timeout_s: float) -> Iterator[None]:
    """Bound the waits of the default group inside the ``with`` block, where its own limit is longer.

    A script, or Accelerate, may have made it, with torch's half an hour.

    Args:
        timeout_s: limit in seconds.
    """
    world: Any = torch.distributed.group.WORLD
    limit = timedelta(seconds=timeout_s)
    before = []
    for device in world._device_types:
        backend = world._get_backend(device)
        own = getattr(getattr(backend, "options", None), "_timeout", None)
        if own is not None and own > limit:
            before.append((backend, own))
            backend._set_default_timeout(limit)
    try:
        yield
    finally:
        for backend, own in before:
            backend._set_default_timeout(own)


def log_collective(name: str, milliseconds: float, sent: int) -> None:
    """Tell DeepSpeed's comms logger of an all-to-all.

    Args:
        name: Name in the summary.
        milliseconds: Time from its start to its end.
        sent: Bytes that this rank sent to others.
    """
    comm = importlib.import_module("deepspeed.comm.comm")
    comm.comms_logger.append("all_to_all_single", name, max(milliseconds, 1e-6), sent)


@dataclass(frozen=True)
class HeldPart:
    """Entries of a parameter that this rank's optimizer updates.

    Attributes:
        parameter: the model's parameter.
        start: first entry, in the flattened parameter.
        size: number of entries.
        offset: where they begin in the flattened tensor that the optimizer knows.
    """

    parameter: nn.Parameter
    start: int
    size: int
    offset: int


@dataclass
class HeldTensor:
    """A tensor that the optimizer knows, and what of the model is in it.

    Attributes:
        tensor: key of the optimizer's state: a parameter itself, or a vector with entries of several.
        parts: what is in it; the rest is padding.
    """

    tensor: Tensor
    parts: list[HeldPart] = field(default_factory=list)


@dataclass
class HeldGroup:
    """A parameter group: its options, all its parameters, and what this rank updates of them."""

    options: dict[str, Any]
    parameters: list[nn.Parameter]
    held: list[HeldTensor]


def optimizer_layout(optimizer: Any) -> tuple[Any, list[HeldGroup]]:
    """The optimizer that does the updates, and what its groups hold on this rank.

    Raises:
        TypeError: an optimizer of another kind.
    """
    if optimizer is None:
        return None, []
    if isinstance(optimizer, torch.optim.Optimizer):
        return optimizer, [_whole_parameters(g, g["params"], g["params"]) for g in optimizer.param_groups]
    base: Any = getattr(optimizer, "optimizer", None)
    if isinstance(optimizer, DeepSpeedZeroOptimizer):
        groups = [
            _range_of_vector(
                base.param_groups[i], members, optimizer.round_robin_bit16_offsets[i],
                optimizer.single_partition_of_fp32_groups[i], optimizer.real_dp_process_group[i],
            )
            for i, members in enumerate(optimizer.round_robin_bit16_groups)
        ]  # fmt: skip
        return base, groups
    if isinstance(optimizer, BF16_Optimizer):
        groups = [
            _range_of_vector(
                base.param_groups[i], members, _starts(members), optimizer.fp32_groups_flat_partition[i],
                optimizer.real_dp_process_group[i],
            )
            for i, members in enumerate(optimizer.bf16_groups)
        ]  # fmt: skip
        return base, groups
    if isinstance(optimizer, FP16_Optimizer):
        groups = [
            _range_of_vector(base.param_groups[i], members, _starts(members), optimizer.fp32_groups_flat[i], None)
            for i, members in enumerate(optimizer.fp16_groups)
        ]
        return base, groups
    if isinstance(optimizer, FP16_UnfusedOptimizer):
        groups = [
            _whole_parameters(base.param_groups[i], members, optimizer.fp32_groups[i])
            for i, members in enumerate(optimizer.fp16_groups)
        ]
        return base, groups
    raise TypeError(f"{type(optimizer).__name__} around {type(base).__name__}")


def _whole_parameters(options: dict[str, Any], members: list[nn.Parameter], known: list[Tensor]) -> HeldGroup:
    held = [HeldTensor(k, [HeldPart(p, 0, p.numel(), 0)]) for p, k in zip(members, known, strict=True)]
    return HeldGroup(options, list(members), held)


def _range_of_vector(
    options: dict[str, Any], members: list[nn.Parameter], starts: list[int], own: Tensor, group: Any
) -> HeldGroup:
    """Members lie in a vector at ``starts``; ``own`` is the range of it that is this rank's among a group's."""
    begin = own.numel() * (0 if group is None else torch.distributed.get_rank(group))
    held = HeldTensor(own)
    for parameter, start in zip(members, starts, strict=True):
        first, end = max(start, begin), min(start + parameter.numel(), begin + own.numel())
        if first < end:
            held.parts.append(HeldPart(parameter, first - start, end - first, first - begin))
    return HeldGroup(options, list(members), [held])


def _starts(members: list[nn.Parameter]) -> list[int]:
    return [0, *accumulate(p.numel() for p in members)][:-1]


def relink_states(optimizer: Any) -> None:
    """Let DeepSpeed's own access to the states of single parameters see the states that are there now."""
    if isinstance(optimizer, (DeepSpeedZeroOptimizer, BF16_Optimizer)):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def judge_overflow(optimizer: Any, bad: Callable[[Iterable[Tensor]], bool]) -> bool:
    """Let ``bad`` say whether an optimizer of DeepSpeed's has to skip a step, in place of its own check.

    Args:
        optimizer: the engine's.
        bad: gets the gradients that this rank's optimizer would use; a collective with the same answer on all ranks.

    Returns:
        False: an optimizer without such a check, which was left as it is.
    """
    if isinstance(optimizer, DeepSpeedZeroOptimizer):

        def has_overflow(partition_gradients: bool = True) -> bool:
            del partition_gradients
            averaged = optimizer.averaged_gradients.values()
            return bad([g for gradients in averaged for g in gradients or () if g is not None])

        optimizer.has_overflow, optimizer.check_grad_overflow = has_overflow, True
    elif isinstance(optimizer, BF16_Optimizer):
        stock = optimizer.step

        def step(closure: Any = None) -> Any:
            if not bad(optimizer.fp32_groups_gradient_flat_partition):
                return stock(closure)
            optimizer.overflow = True
            optimizer.clear_hp_grads()
            optimizer.clear_lp_grads()
            return None

        optimizer.step = step
    elif isinstance(optimizer, (FP16_Optimizer, FP16_UnfusedOptimizer)):
        checker = optimizer.overflow_checker

        def of_parameters(params: Any, has_moe_params: Any = None) -> bool:
            del has_moe_params
            return bad([p.grad for p in params if p.grad is not None])

        def of_norms(norms: Any, reduce_overflow: bool = True) -> bool:
            del reduce_overflow
            invalid = any(is_invalid_grad_norm(norm) for norm in norms)
            return bad([torch.full((1,), float("nan"))] if invalid else [])

        checker.has_overflow, checker.check_using_norm = of_parameters, of_norms
    else:
        return False
    return True
