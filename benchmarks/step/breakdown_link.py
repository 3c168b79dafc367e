"""What a host's link carried over time, read by a process of its own so that the rank is not held up.

1. Fork before the rank has any thread. The child reads the counts of the link every ``INTERVAL_S``.
2. It stops when the rank says so or is gone: the pipe from the rank is readable then.
3. It sends all samples back and ends.
"""

from __future__ import annotations

import os
import pickle
import select
import time
from typing import NamedTuple

from benchmarks.cluster.counters import own_link

INTERVAL_S = 1e-3


class Sample(NamedTuple):
    """Counts at one moment.

    Attributes:
        clock: seconds of ``time.perf_counter``.
        sent: bytes to other hosts so far.
        received: bytes from other hosts so far.
    """

    clock: float
    sent: int
    received: int


class LinkSampler:
    """Samples of this process's host, from now on."""

    def __init__(self) -> None:
        stop_read, self._stop = os.pipe()
        self._result, result_write = os.pipe()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._stop)
            os.close(self._result)
            _sample(stop_read, result_write)
        os.close(stop_read)
        os.close(result_write)

    def stop(self) -> list[Sample]:
        """End the sampling; what was seen."""
        os.close(self._stop)
        with os.fdopen(self._result, "rb") as result:
            samples = pickle.loads(result.read())
        os.waitpid(self._child, 0)
        return [Sample(*sample) for sample in samples]


def _sample(stop: int, result: int) -> None:
    """What the child does; it never returns."""
    samples = []
    try:
        while not select.select([stop], [], [], INTERVAL_S)[0]:
            link = own_link()
            samples.append((time.perf_counter(), link.sent, link.received))
        with os.fdopen(result, "wb") as out:
            out.write(pickle.dumps(samples))
    finally:
        os._exit(0)
