"""Failures of the engine's own calls, told as those of the exchanges are.

1. What DeepSpeed waits for by itself in ``backward`` and ``step`` (sums of gradients, norms, the parts of parameters at
   ZeRO 1 and 2) fails with an error of the backend that names nothing. It becomes an ``ExchangeError``.
2. Any other exception on this rank is its own: it goes on as it is, and the other ranks, which will wait in vain, can
   name it (:mod:`dmt_plugin.comm.wire.failure_notes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch.distributed as dist
from deepspeed import DeepSpeedEngine

from dmt_plugin.core.errors import ExchangeError, IdRangeError

if TYPE_CHECKING:
    from dmt_plugin.integrations.deepspeed.engine.engine import DMTState


def of_other_ranks(error: BaseException) -> bool:
    """Whether an error says that another rank is gone or late, rather than that this one failed."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    return isinstance(error, RuntimeError) and "/gloo/" in str(error)


class ToldEngine(DeepSpeedEngine):
    """The part of the engine that tells of failures; ``dmt`` is there."""

    dmt: DMTState

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        """As DeepSpeed's."""
        with self._told("the forward pass"):
            return super().forward(*inputs, **kwargs)

    def backward(self, *args: Any, **kwargs: Any) -> Any:
        """As DeepSpeed's."""
        with self._told("DeepSpeed's sums in the backward pass"):
            return super().backward(*args, **kwargs)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """As DeepSpeed's."""
        with self._told("DeepSpeed's exchanges in the optimizer step"):
            super().step(*args, **kwargs)

    @contextmanager
    def _told(self, where: str) -> Iterator[None]:
        transport = self.dmt.transport
        try:
            yield
        except (ExchangeError, IdRangeError):  # all ranks know
            raise
        except Exception as error:
            if of_other_ranks(error):
                raise transport.failure(where, "did not finish", error) from error
            transport.last_words.failed(transport.step, error)
            raise
