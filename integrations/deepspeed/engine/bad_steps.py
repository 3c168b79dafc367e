"""A step with a gradient that is not finite is skipped: by all ranks, for tables and dense part alike.

1. The lookup notes of every row gradient whether it is finite, and updates no table before ``step``.
2. At the boundary each rank looks at the dense gradients that its optimizer would use, and at what the lookup noted;
   one small reduction over all ranks gives the verdict. Where DeepSpeed's optimizer (ZeRO 1 and 2, bf16) asks for
   overflows by itself, the verdict is the answer; a plain optimizer is kept from stepping. Where gradients are summed
   in the backward pass (:mod:`.reduction`), each rank looks at its own summands instead, and the verdict travels beside
   the sums: nobody waits for it alone. What a script does to gradients after ``backward`` is not looked at then.
3. DeepSpeed counts the step as skipped, leaves its learning-rate scheduler alone and drops the gradients; those of the
   tables are dropped too. Rank 0 says what was bad.
4. Where every micro-batch updates the tables, there is such a verdict, over row gradients only, before each update. The
   dense gradients of that micro-batch stay part of their step, whose own verdict is at the boundary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dmt_plugin.core.finite import all_finite, bounds_of
from dmt_plugin.integrations.deepspeed.engine.gradient_norm import say_infinite
from dmt_plugin.integrations.deepspeed.engine.state import DMTState
from dmt_plugin.integrations.deepspeed.private import judge_overflow
from dmt_plugin.topology.lost_ranks import reporting

logger = logging.getLogger(__name__)
_PLACE = "the verdict whether all gradients are finite"


class BadSteps:
    """The verdict on each step of an engine.

    Args:
        dmt: the plugin's part of the engine.
        optimizer: the engine's, or None.
    """

    def __init__(self, dmt: DMTState, optimizer: Any) -> None:
        self._dmt = dmt
        self._found = ""
        self._under_way: tuple[Tensor, dist.Work] | None = None
        dmt.lookup.watch_gradients(True)
        self._asked = judge_overflow(optimizer, self.bad)

    def begin(self, bounds: Sequence[Tensor]) -> None:
        """Begin the verdict on a step whose gradients are being summed: a collective that is not waited for.

        Nothing begins where DeepSpeed's optimizer is going to ask.

        Args:
            bounds: the least and the largest entries of what this rank adds to the sums.

        Raises:
            ExchangeError: a rank is gone, or the time is up.
        """
        if self._asked:
            return
        if self._under_way is not None:  # of a backward pass that no step followed
            self._arrived()
        world_size = self._dmt.topology.world_size
        with reporting(self._dmt.transport, _PLACE, "could not start"):
            self._under_way = self._reduce(~all_finite(bounds, self._dmt.groups.device, world_size))

    def bad(self, gradients: Iterable[Tensor]) -> bool:
        """Whether a row gradient, or one of these on any rank, is not finite: a collective of all ranks.

        Args:
            gradients: the dense ones that this rank would use.

        Raises:
            ExchangeError: a rank is gone, or the time is up.
        """
        entries = [g._values() if g.is_sparse else g.detach() for g in gradients]
        with reporting(self._dmt.transport, _PLACE, "could not start"):
            self._under_way = self._reduce(~all_finite(bounds_of(entries), self._dmt.groups.device))
        return self._arrived()

    def update_tables(self, micro_step: int) -> None:
        """Update the tables by one micro-batch, unless a row gradient is not finite on any rank: a collective."""
        lookup = self._dmt.lookup
        if not self.bad(()):
            lookup.step()
        elif self._dmt.groups.rank == 0:
            logger.warning(
                "micro-batch %d does not update the tables, on no rank: gradients %s are not finite",
                micro_step, self._found,
            )  # fmt: skip
        lookup.zero_grad()

    @contextmanager
    def judged(self, engine: Any) -> Iterator[None]:
        """Around DeepSpeed's step of the model: a plain optimizer does not step, and has no gradients, if it is bad."""
        self._found = ""
        if self._asked:
            yield
            if self._found:
                say_infinite(engine)
            return
        optimizer = engine.optimizer
        if self._under_way is not None:
            optimizer.overflow = self._arrived()
        else:
            optimizer.overflow = self.bad([p.grad for p in engine.module.parameters() if p.grad is not None])
        if not optimizer.overflow:
            yield
            return
        engine.zero_grad()
        own = vars(optimizer).get("step")  # a scheduler of torch has put its own there
        optimizer.step = lambda *args, **kwargs: None
        try:
            yield
        finally:
            if own is None:
                del optimizer.step
            else:
                optimizer.step = own
        say_infinite(engine)

    def _reduce(self, dense: Tensor) -> tuple[Tensor, dist.Work]:
        """A flag for the rows of each rank and one for all dense parts, and their maximum over ranks on its way."""
        groups = self._dmt.groups
        flags = torch.zeros(groups.topology.world_size + 1, dtype=torch.uint8, device=groups.device)
        flags[groups.rank], flags[-1] = ~self._dmt.lookup.finite, dense
        return flags, dist.all_reduce(flags, dist.ReduceOp.MAX, groups.world, async_op=True)

    def _arrived(self) -> bool:
        """The verdict that was begun."""
        assert self._under_way is not None
        (flags, work), self._under_way = self._under_way, None
        with reporting(self._dmt.transport, _PLACE):
            if flags.device.type == "cpu":
                work.wait(timedelta(seconds=self._dmt.transport.timeout_s))
            else:
                work.wait()  # with a limit it would block the host; the group has its own
            *rows, dense = flags.tolist()
        ranks = [rank for rank, found in enumerate(rows) if found]
        of_rows = f"of rows of tables on rank(s) {', '.join(map(str, ranks))}" if ranks else ""
        self._found = " and ".join(part for part in (of_rows, "of the dense part" if dense else "") if part)
        return bool(self._found)

    def report(self, engine: Any) -> None:
        """Say on rank 0 that the step that just ended was skipped."""
        if self._dmt.groups.rank != 0:
            return
        logger.warning(
            "step %d is skipped on all ranks (%d so far): %s not finite. Tables, parameters and optimizer states are "
            "as before it",
            engine.global_steps, engine.skipped_steps,
            f"gradients {self._found} are" if self._found else "the norm of the gradients is",
        )  # fmt: skip
        if engine.monitor.enabled:
            engine.monitor.write_events([("Train/dmt/skipped_steps", engine.skipped_steps, engine.global_samples)])
