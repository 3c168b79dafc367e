"""The point-to-point all-to-all under somebody else's code, so that no comparison is one of transports.

While the patch is on, ``torch.distributed.all_to_all_single`` of rows and gradients, in whatever format they are on the
wire (float32, float16, or the bytes of a row-wise int8 codec), goes as single messages where this project's own
exchanges would: on gloo, in a group that spans hosts. Everything else is left to the library, and so are ids and sizes
(few bytes, as here).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dmt_plugin.comm.wire.point_to_point import Messages, PointToPoint, carries

_LIMIT = timedelta(seconds=300)

_ROWS = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
"""What rows and gradients are on the wire; ids and sizes are int32 or int64."""


class _MessagesWork(dist.Work):
    """A handle as the library's: TorchRec tests what it waits for with isinstance."""

    def __init__(self, messages: Messages, kept: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self._messages = messages
        self._kept: tuple[Tensor, Tensor] | None = kept

    def wait(self, timeout: timedelta = _LIMIT) -> bool:
        """Wait for every message."""
        if self._kept is not None:
            self._messages.wait(timeout or _LIMIT)
            self._kept = None
        return True


@contextmanager
def messages_everywhere(lanes: int) -> Iterator[None]:
    """Let everyone's all-to-all go as messages inside the ``with`` block.

    Args:
        lanes: ranks on each host.
    """
    stock: Callable[..., Any] = dist.all_to_all_single
    forms: dict[int, PointToPoint | None] = {}

    def form_of(group: Any) -> PointToPoint | None:
        if id(group) not in forms:
            hosts = {rank // lanes for rank in dist.get_process_group_ranks(group)}
            use = carries(group) and len(hosts) > 1
            forms[id(group)] = PointToPoint(group, dist.get_rank(group)) if use else None
        return forms[id(group)]

    def all_to_all_single(
        output: Tensor,
        input: Tensor,
        output_split_sizes: list[int] | None = None,
        input_split_sizes: list[int] | None = None,
        group: Any = None,
        async_op: bool = False,
    ) -> Any:
        form = form_of(group or dist.group.WORLD) if input.dtype in _ROWS and input.dim() == 1 else None
        if form is None:
            return stock(output, input, output_split_sizes, input_split_sizes, group, async_op)
        members = dist.get_world_size(group)
        kept = input.contiguous()
        messages = form.start(
            output,
            kept,
            output_split_sizes or [output.numel() // members] * members,
            input_split_sizes or [input.numel() // members] * members,
        )
        work = _MessagesWork(messages, (output, kept))
        if async_op:
            return work
        work.wait()
        return None

    dist.all_to_all_single = all_to_all_single
    try:
        yield
    finally:
        dist.all_to_all_single = stock
