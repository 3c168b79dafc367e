"""What numbers, names and paths of a configuration, a plan or a record can be.

A value beyond these limits is a mistake wherever it stands. It is refused where it is read: later it would end in an
error of somebody else's, in a run that never ends, or in memory that no machine has.
"""

from __future__ import annotations

import os
from typing import Final

MOST_TOWERS: Final = 65_536
"""Towers; as many hosts there may be, and ranks on each."""

WIDEST: Final = 2**20
"""Entries of one vector, outputs of one tower module, rank of one layer."""

MOST: Final = 2**63 - 1
"""Rows of a table, seeds, and whatever else is kept in a signed integer of 64 bits."""

LARGEST: Final = 3.4e38
"""Numbers that are computed with in fp32 end here."""

SMALLEST: Final = 1.2e-38
"""Below this a number above 0 is 0, or not exact, in fp32."""

TOWER_MODULES: Final = ("dlrm", "dcn", "preserve", "none")
"""Tower modules that have a name."""

INITS: Final = ("orthogonal", "identity", "torch")
"""How their linear layers may start."""

_LONGEST_PATH, _LONGEST_NAME = 4095, 255


def is_own_module(kind: str) -> bool:
    """Whether a tower module is written as a user's own: ``"pkg.mod:Class"``."""
    package, colon, name = kind.partition(":")
    return bool(colon) and name.isidentifier() and all(part.isidentifier() for part in package.split("."))


def fault_of_text(text: str) -> str:
    """Why no system takes a text as a name: what is in it, as ``"a NUL"``; empty if nothing is wrong."""
    if "\0" in text:
        return "a NUL"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "half a surrogate pair, which no encoding has"
    return ""


def fault_of_path(path: str) -> str:
    """Why no file can have a path, in words that go on behind "a path"; empty if one can."""
    if fault := fault_of_text(path):
        return f"with {fault}"
    size = len(os.fsencode(path))
    if size > _LONGEST_PATH:
        return f"of {size:,} bytes; {_LONGEST_PATH:,} are possible"
    longest = max(len(os.fsencode(part)) for part in path.split("/"))
    if longest > _LONGEST_NAME:
        return f"with a name of {longest:,} bytes in it; {_LONGEST_NAME} are possible"
    return ""
