"""Code of this process, run inside a host.

A thread may be in another network namespace than its process; what it opens there (sockets) stays there.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")

_NEWNET = 0x40000000
_NEWUTS = 0x04000000


def join_namespace(namespace: str) -> None:
    """Move the calling thread into a network namespace."""
    handle = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check("setns", _libc().setns(handle, _NEWNET))
    finally:
        os.close(handle)


def become_host(namespace: str, hostname: str) -> None:
    """Move this process, which has one thread, into a host: its network and its name."""
    join_namespace(namespace)
    libc, name = _libc(), hostname.encode()
    _check("unshare", libc.unshare(_NEWUTS))
    _check("sethostname", libc.sethostname(name, len(name)))


def start(namespace: str, function: Callable[[], Any]) -> threading.Thread:
    """Run ``function`` in a thread inside a namespace."""

    def main() -> None:
        join_namespace(namespace)
        function()

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    return thread


def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _check(what: str, status: int) -> None:
    if status:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
