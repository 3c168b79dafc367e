"""What is written down of the clusters of this machine, so that any process can find and remove them.

One JSON file per cluster under ``FOLDER``, written before the first namespace exists and removed after the last.
A cluster belongs to the process that made it, until that process is gone, or to nobody (made by hand, to stay).
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster.shape import Shape

FOLDER = Path("/run/dmt-cluster")


@dataclass(frozen=True)
class Record:
    """One cluster.

    Attributes:
        shape: what was asked for.
        owner: process it belongs to, or None for one that stays until it is taken down.
        owner_started: when that process was started, in the kernel's count; a process number may be used again.
        ssh: whether its hosts take ssh.
    """

    shape: Shape
    owner: int | None
    owner_started: int | None
    ssh: bool

    @property
    def abandoned(self) -> bool:
        """Whether its owner is gone."""
        return self.owner is not None and started_at(self.owner) != self.owner_started


def started_at(pid: int) -> int | None:
    """Start time of a process in the kernel's count, None where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


def folder_of(name: str) -> Path:
    """Place for files of a cluster."""
    return FOLDER / name


def write(shape: Shape, stays: bool, ssh: bool) -> Record:
    """Write a cluster down."""
    owner = None if stays else os.getpid()
    record = Record(shape, owner, None if owner is None else started_at(owner), ssh)
    folder_of(shape.name).mkdir(parents=True, exist_ok=True)
    content = {"shape": shape.to_dict(), "owner": owner, "owner_started": record.owner_started, "ssh": ssh}
    _file(shape.name).write_text(json.dumps(content, indent=2) + "\n")
    return record


def read(name: str) -> Record | None:
    """A cluster that was written down."""
    try:
        content = json.loads(_file(name).read_text())
    except FileNotFoundError:
        return None
    return Record(Shape(**content["shape"]), content["owner"], content["owner_started"], content["ssh"])


def forget(name: str) -> None:
    """Remove what was written down, and the cluster's files."""
    _file(name).unlink(missing_ok=True)
    shutil.rmtree(folder_of(name), ignore_errors=True)


def names() -> list[str]:
    """Every cluster that was written down."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def _file(name: str) -> Path:
    return FOLDER / f"{name}.json"
