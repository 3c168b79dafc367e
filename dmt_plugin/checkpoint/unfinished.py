"""Names and ownership of unfinished checkpoints: which folders of saves that died may be deleted.

A save writes into ``<tag>.<machine>-<process>.saving`` and renames that folder when it is complete. Several runs may
save into one parent folder: what a dead process left behind has to go, what a live one is writing must stay. So:

1. the name says which process of which machine writes it, where processes that cannot see each other (in two
   containers) count as of two machines;
2. a folder is abandoned if its process is one of this machine that has ended, or if it names none, as those of earlier
   versions do. If it is this process, then only what it has said to be under way is not (:func:`under_way`);
3. nothing is known of processes of other machines: theirs stay, until somebody deletes them.
"""

from __future__ import annotations

import os
import re
import socket
import zlib
from pathlib import Path

from dmt_plugin.core.files import DRAFT as SAVING

REPLACED = ".replaced"
"""End of the name of a checkpoint that one of the same tag takes the place of."""

_OWNER = re.compile(rf"\.([0-9a-f]{{8}})-(\d+){re.escape(SAVING)}")


_UNDER_WAY: set[str] = set()
"""Folders that a thread of this process is writing."""


def unfinished_name(tag: str) -> str:
    """Name of the folder that this process writes a checkpoint into."""
    return f"{tag}.{machine()}-{os.getpid()}{SAVING}"


def under_way(path: Path) -> None:
    """A thread of this process writes a folder from now on, until :func:`over`."""
    _UNDER_WAY.add(str(path.absolute()))


def over(path: Path) -> None:
    """No thread writes the folder any more."""
    _UNDER_WAY.discard(str(path.absolute()))


def place_of(path: Path) -> Path:
    """Where the checkpoint of a folder belongs that is unfinished, or replaced."""
    name = path.name.removesuffix(REPLACED)
    if name.endswith(SAVING):
        owner = _OWNER.search(name)
        name = name[: owner.start()] if owner is not None and owner.end() == len(name) else name.removesuffix(SAVING)
    return path.with_name(name)


def is_abandoned(path: Path) -> bool:
    """Whether nobody writes an unfinished folder any more, as far as that can be known."""
    owner = _OWNER.search(path.name)
    if owner is None:
        return True
    of_machine, process = owner[1], int(owner[2])
    if of_machine != machine():
        return False
    return str(path.absolute()) not in _UNDER_WAY if process == os.getpid() else not runs(process)


def machine() -> str:
    """This machine; another one for processes that cannot see each other, in two containers."""
    namespace = Path("/proc/self/ns/pid")
    seen = namespace.stat().st_ino if namespace.exists() else 0
    return f"{zlib.crc32(f'{socket.gethostname()} {seen}'.encode()):08x}"


def runs(process: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # one that may not be signalled is somebody else's
    return True
