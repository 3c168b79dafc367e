"""The newer checkpoint of a delta (:mod:`.delta_file`), made of the delta and the older checkpoint.

What is written must have the checksums of the newer checkpoint's files, or it is no checkpoint: they are the same byte
for byte. Rows go from the older checkpoint to the new files block by block.
"""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch

from dmt_plugin.checkpoint import folder
from dmt_plugin.checkpoint.delta import rows_for_delta
from dmt_plugin.checkpoint.delta_file import (
    BLOCKS,
    DAMAGE,
    FILES,
    HEAD,
    NUMBER,
    RAW,
    About,
    Report,
    chunks,
    damaged,
    exactly,
    opened,
    raw_bytes,
    rows_at_once,
    sums_of,
)
from dmt_plugin.checkpoint.folder import Found, check_content
from dmt_plugin.checkpoint.manifest import FileEntry
from dmt_plugin.checkpoint.rows import BLOCK_BYTES, Rows
from dmt_plugin.core.errors import CheckpointError


def size_of_delta(path: str | Path) -> int:
    """Bytes of the files that :func:`apply_delta` will write.

    Raises:
        CheckpointError: it is no delta, or damaged.
    """
    with opened(Path(path)) as (_, about):
        return sum(entry.bytes for entry in about.manifest.files.values())


def apply_delta(old: Found, path: str | Path, save_dir: str | Path, report: Report = lambda done: None) -> Path:
    """Writes the newer checkpoint of a delta.

    Args:
        old: the older one, that the delta was made from.
        path: the delta.
        save_dir: the folder that gets it, under its own tag.
        report: see :data:`Report`; in all, what :func:`size_of_delta` says.

    Returns:
        The newer checkpoint's folder: the same files, byte for byte. Its number in the manifest is raised where newer
        ones are in the folder, so that a load without a tag takes it.

    Raises:
        CheckpointError: the delta was made from another checkpoint, or is damaged; the older checkpoint is not as it
            was saved; something has the tag in that folder, or it cannot be written. Nothing is left then.
    """
    place, root = Path(path), Path(save_dir)
    with opened(place) as (archive, about):
        _check_old(old, about, place)
        manifest = about.manifest
        if (root / manifest.tag).exists():
            raise CheckpointError(
                f"{root / manifest.tag} is there already, and {place} makes a checkpoint of that name; name another "
                "folder, or move it away"
            )
        try:
            temporary = folder.begin(root, manifest.tag)
            try:
                _write(archive, about, old, temporary, place, report)
                number = max(manifest.sequence, folder.next_sequence(root))
                return folder.commit(temporary, dataclasses.replace(manifest, sequence=number))
            except BaseException:
                folder.clean(root)
                raise
        except OSError as error:
            raise CheckpointError(f"{root} cannot be written: {error.strerror or error}") from error


def _write(archive: zipfile.ZipFile, about: About, old: Found, temporary: Path, place: Path, report: Report) -> None:
    rows, members = rows_for_delta(old, about.manifest), set(archive.namelist())
    for name, entry in about.manifest.files.items():
        with folder.synced(temporary / name) as stream:
            out = _Summed(stream, report)
            try:
                if BLOCKS + name in members:
                    with archive.open(BLOCKS + name) as source:
                        _run(source, about.tensors, rows, out)
                else:
                    with archive.open(FILES + name) as source:
                        while chunk := source.read(BLOCK_BYTES):
                            out.write(chunk)
            except CheckpointError:
                raise
            except DAMAGE as error:
                raise damaged(place, f"{name}: {error!r}") from error
        if FileEntry(out.total, out.sum) != entry:
            check_content(old, old.manifest.files)
            raise damaged(place, f"what it makes of {name} has another checksum than that file had")


def _run(source: IO[bytes], tensors: list[tuple[str, torch.dtype]], old: Mapping[str, Rows], out: _Summed) -> None:
    """The program of a file."""
    while head := source.read(HEAD.size):
        number, first, count, column, width, stored = HEAD.unpack(head)
        if number == RAW:
            for chunk in chunks(source, count):
                out.write(chunk)
            continue
        name, dtype = tensors[number]
        if not (0 < count <= rows_at_once(width, dtype) and stored <= count):
            raise ValueError(f"{count} rows of {width} entries, of which {stored} changed")
        values = torch.empty(count, width, dtype=dtype)
        if stored < count:
            known = max(0, min(count, old[name].shape[0] - first))
            old[name].fill(range(first, first + known), range(column, column + width), values[:known])
        numbers = torch.arange(count)
        if 0 < stored < count:
            numbers = torch.frombuffer(exactly(source, stored * NUMBER.itemsize), dtype=NUMBER).long()
        if stored and width:
            rows = torch.frombuffer(exactly(source, stored * width * dtype.itemsize), dtype=dtype).view(stored, width)
            values[numbers] = rows
        out.write(raw_bytes(values))


class _Summed:
    """A file that is written, with size and CRC-32 of what has been."""

    def __init__(self, stream: IO[bytes], report: Report) -> None:
        self._stream, self._report, self.total, self.sum = stream, report, 0, 0

    def write(self, content: Any) -> None:
        """Goes on."""
        self._stream.write(content)
        size = memoryview(content).nbytes
        self.total, self.sum = self.total + size, zlib.crc32(content, self.sum)
        self._report(size)


def _check_old(old: Found, about: About, path: Path) -> None:
    own, wanted = sums_of(old.manifest), about.old["files"]
    if own == wanted:
        return
    other = next(name for name in sorted({*own, *wanted}) if own.get(name) != wanted.get(name))
    raise CheckpointError(
        f"{path} was made from the checkpoint {about.old['tag']!r} (saved {about.old['saved_at']}), and {old.path} is "
        f"another one: the checksum of its {other} differs. Apply it to the one it was made from; nothing was written."
    )
