"""The file of a delta between two checkpoints: how it is laid out, and how it is opened.

A zip file without compression. Of each file with tensors it has a program that writes it again, records one after
another: bytes as they are, or a block of rows with those that changed. Other files are in it as they are. What it
belongs to, and the manifest of the newer checkpoint, are in :data:`ABOUT`.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
from torch import Tensor

from dmt_plugin.checkpoint.manifest import Manifest
from dmt_plugin.checkpoint.rows import BLOCK_BYTES
from dmt_plugin.core.errors import CheckpointError

FORMAT = 1
ABOUT, FILES, BLOCKS = "dmt_delta.json", "files/", "blocks/"
RAW = (1 << 32) - 1
HEAD = struct.Struct("<I5Q")
"""Of a record: number of the tensor, first row, rows, first column, columns, rows that are stored. What follows: the
numbers of these rows within the block, unless it is all of them, and the rows. :data:`RAW` in place of the tensor: as
many bytes as there are rows."""
NUMBER = torch.int32
DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, LookupError, ValueError, TypeError, ArithmeticError,
    RuntimeError, AttributeError,
)  # fmt: skip
"""What reading something else than was written may raise."""

Report = Callable[[int], object]
"""Is given the bytes of each block that was looked at, or written."""


@dataclass(frozen=True)
class About:
    """What a delta says of itself.

    Attributes:
        old: tag, time and sums of the checkpoint that it was made from.
        tensors: name and type of each, by number.
        manifest: of the newer checkpoint.
    """

    old: Mapping[str, Any]
    tensors: list[tuple[str, torch.dtype]]
    manifest: Manifest

    def to_json(self) -> str:
        """The text of :data:`ABOUT`."""
        data = {
            "format": FORMAT,
            "old": self.old,
            "tensors": [[name, str(dtype).removeprefix("torch.")] for name, dtype in self.tensors],
            "manifest": json.loads(self.manifest.to_json()),
        }
        return json.dumps(data)


@contextmanager
def opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, About]]:
    """A delta, and what it says of itself.

    Raises:
        CheckpointError: it is none, or damaged, or cannot be read.
    """
    try:
        archive = zipfile.ZipFile(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except DAMAGE as error:
        raise damaged(path, "it was cut off, or is something else") from error
    with archive:
        try:
            data = json.loads(archive.read(ABOUT))
            if data["format"] != FORMAT:
                raise CheckpointError(f"{path}: format {data['format']!r} found, this release reads format {FORMAT}")
            manifest = Manifest.from_json(json.dumps(data["manifest"]), f"{path}/{ABOUT}")
            odd = [n for n in manifest.files if PurePosixPath(n).is_absolute() or ".." in PurePosixPath(n).parts]
            if odd or PurePosixPath(manifest.tag).name != manifest.tag:
                raise CheckpointError(f"{path} would write {[manifest.tag, *odd][-1]!r}, which is in another folder")
            about = About(data["old"], [(name, getattr(torch, kind)) for name, kind in data["tensors"]], manifest)
        except CheckpointError:
            raise
        except DAMAGE as error:
            raise damaged(path, f"{ABOUT}: {error!r}") from error
        yield archive, about


def sums_of(manifest: Manifest) -> dict[str, list[int]]:
    """What a checkpoint is known by: size and CRC-32 of its files."""
    return {name: [entry.bytes, entry.crc32] for name, entry in sorted(manifest.files.items())}


def damaged(path: Path, what: str) -> CheckpointError:
    """The error of a delta that is not as it was written."""
    return CheckpointError(f"{path} is damaged, or no delta ({what}); nothing was written. Make or copy it again.")


@contextmanager
def member(archive: zipfile.ZipFile, name: str) -> Iterator[IO[bytes]]:
    """A new part of a delta, to write into."""
    with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as stream:
        yield stream


def rows_at_once(width: int, dtype: torch.dtype) -> int:
    """Rows of a block."""
    return max(1, BLOCK_BYTES // max(1, width * dtype.itemsize))


def raw_bytes(values: Tensor) -> Any:
    """The bytes of a tensor on the CPU."""
    return values.contiguous().view(-1).view(torch.uint8).numpy().data


def chunks(stream: IO[bytes], size: int) -> Iterator[bytearray]:
    """The next bytes of a file, some at a time."""
    while size:
        chunk = exactly(stream, min(BLOCK_BYTES, size))
        size -= len(chunk)
        yield chunk


def exactly(stream: IO[bytes], size: int) -> bytearray:
    """The next bytes of a file.

    Raises:
        EOFError: there are fewer.
    """
    content = bytearray()
    while len(content) < size:
        more = stream.read(min(BLOCK_BYTES, size - len(content)))
        if not more:
            raise EOFError("it ends too soon")
        content += more
    return content
