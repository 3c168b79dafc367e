"""The files of ``dmt.report.dir``: what the run that writes them and the reports that read them both know.

1. At its start a run describes how the model was rewritten. Who can do that lies above the packages that train, so the
   package puts it in its place here when it is imported (:func:`describe_with`).
2. While it goes on, every rank writes its records, one line of JSON each, behind a header with the files' version.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmt_plugin.core.errors import ConfigError

FORMAT = 1
"""Version of the records that is written, and read."""

_NAME = re.compile(r"run_rank(\d+)\.jsonl")
_describe: list[Callable[..., None]] = []


def record_path(folder: str | Path, rank: int) -> Path:
    """Where a rank's records are."""
    return Path(folder, f"run_rank{rank:05d}.jsonl")


def record_files(folder: Path) -> dict[int, Path]:
    """The files with records in a folder, by rank."""
    return {int(m[1]): file for file in sorted(folder.glob("run_rank*.jsonl")) if (m := _NAME.fullmatch(file.name))}


def check_folder(folder: str | Path) -> None:
    """Makes the folder, and writes into it.

    Args:
        folder: ``dmt.report.dir``.

    Raises:
        ConfigError: it cannot be made, or not be written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"?")
    except OSError as error:
        raise ConfigError(
            f"dmt.report.dir: {folder} cannot be written to ({error}). Name a folder that every rank can make and "
            "write to, or null for no reports."
        ) from error


def describe_with(write: Callable[..., None]) -> None:
    """Name what writes the description of a rewritten model, see :func:`write_description`."""
    _describe[:] = [write]


def write_description(placed: Any, batch_size: int, sums: Any, folder: str | Path) -> None:
    """Writes how a model was rewritten.

    Args:
        placed: A rank's model.
        batch_size: Samples per rank, for the byte counts.
        sums: How gradients are summed.
        folder: ``dmt.report.dir``; it is made.
    """
    for write in _describe:
        write(placed, batch_size, sums, folder)
