"""How much memory a block of code needs beyond what the process had: anonymous and shared, without mapped files."""

from __future__ import annotations

import ctypes
import gc
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_COUNTED = re.compile(r"^Rss(?:Anon|Shmem):\s+(\d+) kB", re.MULTILINE)
MIB = 1 << 20


def settle() -> None:
    """Gives back what nobody holds any longer: such memory would hide what is taken from it, or go away meanwhile."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def used() -> int:
    """Bytes of this process."""
    return 1024 * sum(map(int, _COUNTED.findall(Path("/proc/self/status").read_text())))


class Peak:
    """The largest use that was seen, in bytes beyond that at the beginning.

    Attributes:
        looks: how often somebody looked.
    """

    def __init__(self) -> None:
        self.begin = self.most = used()
        self.looks = 0

    def look(self) -> None:
        """Once more."""
        self.most = max(self.most, used())
        self.looks += 1

    @property
    def extra(self) -> int:
        """Bytes."""
        return self.most - self.begin


@contextmanager
def peak(every_s: float = 0.001) -> Iterator[Peak]:
    """Looks again and again, in a thread, until the block ends."""
    settle()
    found, over = Peak(), threading.Event()

    def look() -> None:
        while not over.wait(every_s):
            found.look()

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        found.look()
        over.set()
        thread.join()
