"""The C library's allocator, set to keep what is freed: for every rank, so for every variant.

By default glibc gives large blocks back to the kernel and gets them again, page by page, whenever a tensor is made.
Serious training on CPUs runs with an allocator that keeps them; this has the same effect and needs nothing installed.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Whether the C library can, and now does."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_M_MMAP_THRESHOLD: 1 << 30, _M_TRIM_THRESHOLD: (1 << 31) - 1, _M_TOP_PAD: 64 << 20}
    return all(mallopt(key, value) == 1 for key, value in settings.items())


def give_back_freed_memory() -> None:
    """Give the kernel what is free now, where the C library can: of what only building and comparing needed."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
