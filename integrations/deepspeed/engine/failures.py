"""Failures of the engine's own calls, reported as those of the exchanges are.

1. What DeepSpeed waits for by itself in ``backward`` and ``step`` (sums of gradients, norms, the parts of parameters at
   ZeRO 1 and 2) fails with an error of the backend that names nothing. It becomes an ``ExchangeError``.
2. Any other exception on this rank is its own: it goes on as it is, and the other ranks, which will wait in vain, can
   name it (:mod:`dmt_plugin.comm.wire.failure_notes`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dmt_plugin.comm.wire.transport import Transport
from dmt_plugin.core.errors import ExchangeError, IdRangeError
from dmt_plugin.topology.lost_ranks import of_other_ranks, reporting


@contextmanager
def noting(transport: Transport, place: str) -> Iterator[None]:
    """Around a call of the engine.

    Args:
        transport: knows the rank and the step, makes the errors, keeps the notes.
        place: what of DeepSpeed's may wait for other ranks in it.

    Raises:
        ExchangeError: a rank is gone, or the time is up.
    """
    try:
        with reporting(transport, place, only=of_other_ranks):
            yield
    except (ExchangeError, IdRangeError):  # all ranks know
        raise
    except Exception as error:
        transport.failure_notes.failed(transport.step, error)
        raise
