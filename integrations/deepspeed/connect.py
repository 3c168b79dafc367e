"""Connects the ranks through DeepSpeed's communication, and makes this rank's accelerator the current one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import deepspeed
from deepspeed.accelerator import get_accelerator

from dmt_plugin.integrations.deepspeed import private


def connect(distributed_port: int, dist_init_required: bool | None, timeout_s: float) -> None:
    """Initialize DeepSpeed's communication, without the slow compilation it does on a CPU.

    Args:
        distributed_port: As for DeepSpeed.
        dist_init_required: As for DeepSpeed.
        timeout_s: Time limit of the default group in seconds, where it is not there yet.
    """
    with private.without_shm_build():
        deepspeed.init_distributed(
            distributed_port=distributed_port,
            dist_init_required=dist_init_required,
            timeout=timedelta(seconds=timeout_s),
        )


def select_device(args: Any) -> None:
    """Make this rank's accelerator the current one, as the engine would do later: the groups are made for it."""
    local_rank = getattr(args, "device_rank", None)
    if local_rank is None:
        local_rank = deepspeed.comm.get_local_rank()
    if local_rank >= 0:
        get_accelerator().set_device(local_rank)
