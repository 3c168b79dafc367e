"""Writes files atomically and durably: complete or as they were before, and synced to the disk.

A file is written under a temporary name, synced, and renamed: a process that dies leaves no half-written file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

DRAFT = ".saving"
"""End of the name of a file, or folder, that is being written."""


@contextmanager
def synced(path: Path) -> Iterator[IO[bytes]]:
    """A new file, open for bytes, that is on the disk when the block ends."""
    with path.open("wb") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that is there with all that the block writes, or as it was before; parent folders are made.

    Raises:
        OSError: it cannot be written.
    """
    draft = path.with_name(f"{path.name}{DRAFT}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with synced(draft) as stream:
            yield stream
        draft.replace(path)
    finally:
        if draft.is_file():
            draft.unlink()


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
