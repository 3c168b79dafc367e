"""How much memory this process may still take: of the machine, and of the control groups (cgroups) it is in.

1. The machine has what the kernel says can be had without swapping (``MemAvailable``).
2. A control group limits the memory of its processes together, and so does each group above it: version 2 by
   ``memory.max``, version 1 by ``memory.limit_in_bytes``. What files take of it in the page cache can be had again.
3. Each limit has a key that is the same for all processes that share it, so that their needs can be added up.

Where the system says nothing (no Linux, no control groups), there are fewer limits, or none.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

_KIB = 1024
_NO_LIMIT = 2**60
"""Version 1 writes a number near 2**63 where there is no limit."""


@dataclass(frozen=True)
class MemoryLimit:
    """Memory that some processes share.

    Attributes:
        source: who limits it, in words.
        available: bytes that can still be had.
        key: the same in every process that shares it.
    """

    source: str
    available: int
    key: str


def memory_limits(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> list[MemoryLimit]:
    """Every limit on the memory of this process; empty where none is known.

    Args:
        proc: where the kernel's facts are.
        groups: where control groups are.
    """
    machine = _text(proc / "sys/kernel/random/boot_id").strip() or socket.gethostname()
    found = []
    available = available_of_machine(_text(proc / "meminfo"))
    if available is not None:
        found.append(MemoryLimit("the machine (MemAvailable in /proc/meminfo)", available, machine))
    unified, memory = own_groups(_text(proc / "self/cgroup"))
    for root, path, names in (
        (groups, unified, ("memory.max", "memory.current", "active_file", "inactive_file")),
        (
            groups / "memory",
            memory,
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file", "total_inactive_file"),
        ),
    ):
        if path is not None:
            found += _limits_of_groups(root, path, names, machine)
    return found


def smallest(limits: Iterable[MemoryLimit]) -> MemoryLimit | None:
    """The limit that leaves least; None where there is none."""
    return min(limits, key=lambda limit: limit.available, default=None)


def lacking(needs: Sequence[int], limits: Sequence[Sequence[MemoryLimit]]) -> tuple[MemoryLimit, list[int]] | None:
    """The limit that lacks most for what processes still need together; None where all suffice.

    Args:
        needs: of each process, bytes.
        limits: of each process, those that it has found. What a limit has left is the least that any of them has read.

    Returns:
        The limit, and the numbers of the processes that share it.
    """
    sharers: dict[str, list[int]] = {}
    least: dict[str, MemoryLimit] = {}
    for number, own in enumerate(limits):
        for limit in own:
            sharers.setdefault(limit.key, []).append(number)
            if limit.key not in least or limit.available < least[limit.key].available:
                least[limit.key] = limit
    missing = {key: sum(needs[n] for n in numbers) - least[key].available for key, numbers in sharers.items()}
    worst = max(missing, key=lambda key: missing[key], default=None)
    if worst is None or missing[worst] <= 0:
        return None
    return least[worst], sharers[worst]


def available_of_machine(meminfo: str) -> int | None:
    """Bytes that ``/proc/meminfo`` calls available; None where it does not say."""
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * _KIB
    return None


def own_groups(text: str) -> tuple[str | None, str | None]:
    """Paths of a process's control groups, out of its ``/proc/<pid>/cgroup``.

    Returns:
        That of version 2, and that of version 1 with the controller "memory"; None where it is in none.
    """
    unified = memory = None
    for line in text.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            unified = path
        elif "memory" in controllers.split(","):
            memory = path
    return unified, memory


def available_in_group(limit: str, usage: str, stat: str, files: Sequence[str]) -> int | None:
    """Bytes that a control group still has.

    Args:
        limit: its limit, as its file has it.
        usage: bytes in use, as its file has them.
        stat: its ``memory.stat``.
        files: entries of that which count pages of files.

    Returns:
        None where it has no limit.
    """
    if not limit.strip().isdigit() or int(limit) >= _NO_LIMIT or not usage.strip().isdigit():
        return None
    entries = dict(line.split(maxsplit=1) for line in stat.splitlines() if " " in line)
    cached = sum(int(entries.get(name, 0)) for name in files)
    return max(0, int(limit) - max(0, int(usage) - cached))


def _limits_of_groups(root: Path, path: str, names: Sequence[str], machine: str) -> list[MemoryLimit]:
    """The limits of a group and of those above it."""
    inside = PurePosixPath(path.lstrip("/"))
    if not (root / inside).is_dir():  # a container sees its own group as the root, under a path that it cannot see
        inside = PurePosixPath()
    found = []
    limit, usage, *files = names
    for part in (inside, *inside.parents) if inside.parts else (inside,):
        place = root / part
        texts = _text(place / limit), _text(place / usage), _text(place / "memory.stat")
        available = available_in_group(*texts, files)
        if available is not None:
            group = place.stat()
            source = f"the control group {place} ({limit})"
            found.append(MemoryLimit(source, available, f"{machine} {group.st_dev} {group.st_ino}"))
    return found


def _text(path: Path) -> str:
    """What a file of the kernel says; empty where it is not there or not for us."""
    try:
        return path.read_text()
    except OSError:
        return ""
