"""The private names of DeepSpeed that this integration touches, all of them except those the engine subclass overrides.

DeepSpeed has no plugin registry, so four things have to be reached from the side:

1. ``deepspeed.initialize`` looks up ``DeepSpeedEngine`` among its module's globals when it builds the engine:
   :func:`engine_class` puts another constructor there for the length of one call and takes it away again.
2. On a CPU the first ``init_distributed`` of an installation compiles a shared-memory collective for most of a
   minute, and fails without ``ninja`` on the path. Only inference uses it: :func:`without_shm_build` says to
   DeepSpeed, for the length of one call, that it is not available.
3. Groups for expert parallelism live in dictionaries keyed ``"ep_size_<n>"``: :func:`expert_groups`.
4. DeepSpeed makes its process groups without a time limit, so that they get torch's, half an hour:
   :func:`limited_waits` passes one on, for the length of one call.

``tests/integrations/test_canaries.py`` fails, naming the one that moved, when DeepSpeed renames any of them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import deepspeed
import torch
from deepspeed import ops
from deepspeed.utils import groups as ds_groups

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
