"""A flat model's state written to files block by block: no tensor is ever whole in memory.

1. Every file is made first with room for all its tensors, so that each has its place: a ``.safetensors`` file by its
   head; a file for ``torch.load`` by ``torch.save`` of tensors without memory.
2. Blocks are written into their places, in any order.
3. At the end every entry must have been written once. Checksums are set (a ``torch.save`` file is a zip file: torch
   does not look at its CRC-32, other programs do), files are synced to the disk, and what was written under another
   name beside its place gets its own.

What an error interrupts is removed; what a process leaves that was killed, the next one that writes there removes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Literal, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from dmt_plugin.checkpoint.compare import shown
from dmt_plugin.checkpoint.rows import BLOCK_BYTES
from dmt_plugin.checkpoint.safetensors_file import INDEX, SUFFIX, make_head
from dmt_plugin.checkpoint.unfinished import REPLACED, SAVING, is_abandoned, place_of, unfinished_name
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.core.files import sync_folder

logger = logging.getLogger(__name__)

Format = Literal["safetensors", "torch"]
Entries = Mapping[str, tuple[Sequence[int], torch.dtype]]
"""Shape and type of each tensor by name."""

_OURS = re.compile(rf"model-\d{{5}}-of-\d{{5}}{re.escape(SUFFIX)}|{re.escape(INDEX)}")
_UNKNOWN = -1
_LOCAL_HEADER, _CENTRAL_HEADER, _DESCRIPTOR = 30, 46, b"PK\x07\x08"


class FlatWriter(Protocol):
    """Takes the values of a state, in any order."""

    def write(self, name: str, first: int, values: Tensor) -> None:
        """Writes a block.

        Args:
            name: of the tensor.
            first: entry of the flattened tensor that the block begins with.
            values: the block, row by row; of any shape, on any device. Another precision is converted.

        Raises:
            CheckpointError: there is no such tensor, the block does not fit into it, or the file cannot be written.
        """


@contextmanager
def flat_writer(
    path: str | Path, format: Format, entries: Entries, max_file_bytes: int = 4 << 30
) -> Iterator[FlatWriter]:
    """Files of a state; they are there, whole, when the block has ended.

    Args:
        path: ``"torch"``: a file. ``"safetensors"``: one file if it ends so, else a folder, of ``model-00001-of-0000N``
            files and ``model.safetensors.index.json``. What has that name and was written like this is replaced.
        format: ``"torch"`` for ``torch.load``, or ``"safetensors"``.
        entries: all tensors that will be written, in the order of the file.
        max_file_bytes: of tensors in each file of a folder; a longer tensor has a file of its own.

    Raises:
        CheckpointError: it cannot be written, something else is there, or not every entry was written once.
    """
    place = Path(path)
    known = {name: (tuple(map(int, shape)), dtype) for name, (shape, dtype) in entries.items()}
    if format not in ("safetensors", "torch"):
        raise CheckpointError(f"format must be 'safetensors' or 'torch', found {format!r}")
    as_folder = format == "safetensors" and place.suffix != SUFFIX
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _clean(place)
        _check_place(place, as_folder)
        temporary = place.with_name(unfinished_name(place.name))
        try:
            if as_folder:
                temporary.mkdir()
                files = _folder(temporary, known, max_file_bytes)
            else:
                make = _safetensors if format == "safetensors" else _torch
                files = [make(temporary, known)]
            writer = _Writer(files, known)
            try:
                yield writer
                writer.finish()
            finally:
                writer.close()
            if as_folder:
                sync_folder(temporary)
            _put(temporary, place)
        finally:
            _remove(temporary)
    except OSError as error:
        raise CheckpointError(f"{place} cannot be written: {error.strerror or error}") from error


@dataclass
class _File:
    """A file with room for tensors.

    Attributes:
        stream: open for reading and writing.
        places: byte at which each tensor begins.
        sums: bytes of the file where the CRC-32 of a tensor is to be put, if the format has one.
    """

    stream: IO[bytes]
    places: Mapping[str, int]
    sums: Mapping[str, Sequence[int]] = field(default_factory=dict)


class _Writer:
    def __init__(self, files: Sequence[_File], entries: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
        self._files = files
        self._of = {name: file for file in files for name in file.places}
        self._entries = entries
        self._written: dict[str, list[tuple[int, int]]] = {name: [] for name in entries}
        self._sums = dict.fromkeys(entries, 0)

    def write(self, name: str, first: int, values: Tensor) -> None:
        """See :class:`FlatWriter`."""
        if name not in self._entries:
            raise CheckpointError(f"{name} was not announced as one of the tensors of this file")
        shape, dtype = self._entries[name]
        end = first + values.numel()
        if first < 0 or end > prod(shape):
            raise CheckpointError(f"entries {first} to {end} of {name}, which has {prod(shape)}")
        file = self._of[name]
        limit = max(1, BLOCK_BYTES // dtype.itemsize)
        for part in _parts(values.detach(), limit):
            raw = part.to("cpu", dtype).contiguous().view(-1).view(torch.uint8).numpy().data
            runs = self._written[name] or [(0, 0)]
            if name in file.sums:
                in_order = runs == [(0, first)] and self._sums[name] != _UNKNOWN
                self._sums[name] = zlib.crc32(raw, self._sums[name]) if in_order else _UNKNOWN
            _write_at(file.stream, raw, file.places[name] + first * dtype.itemsize)
            self._note(name, first, first + part.numel())
            first += part.numel()

    def _note(self, name: str, first: int, end: int) -> None:
        runs = self._written[name]
        if runs and runs[-1][1] == first:
            runs[-1] = (runs[-1][0], end)
        elif first < end:
            runs.append((first, end))

    def finish(self) -> None:
        """Checks that all is there, sets the sums, and syncs the files."""
        partial = []
        for name, (shape, _) in self._entries.items():
            at = 0
            for first, end in sorted(self._written[name]):
                if first != at:
                    break
                at = end
            else:
                if at == prod(shape):
                    continue
            partial.append(name)
        if partial:
            raise CheckpointError(f"not every entry was written once of {shown(partial)}")
        for file in self._files:
            for name, places in file.sums.items():
                shape, dtype = self._entries[name]
                total = self._sums[name]
                if total == _UNKNOWN:  # blocks came in another order
                    total = _sum_of(file.stream, file.places[name], prod(shape) * dtype.itemsize)
                for place in places:
                    _write_at(file.stream, memoryview(total.to_bytes(4, "little")), place)
            file.stream.flush()
            os.fsync(file.stream.fileno())

    def close(self) -> None:
        """Closes the files."""
        for file in self._files:
            file.stream.close()


def _parts(values: Tensor, limit: int) -> Iterator[Tensor]:
    """Parts of a tensor in the order of its entries; none of more than ``limit``, and none is a copy of the whole."""
    if values.numel() <= limit:
        yield values
    elif values.is_contiguous():
        yield from values.view(-1).split(limit)
    else:
        step = max(1, limit * len(values) // values.numel())
        for rows in values.split(step):
            yield from _parts(rows if len(rows) > 1 else rows[0], limit)


def _write_at(stream: IO[bytes], content: memoryview, place: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(stream.fileno(), content[done:], place + done)


def _sum_of(stream: IO[bytes], place: int, length: int) -> int:
    total, end = 0, place + length
    while place < end:
        chunk = os.pread(stream.fileno(), min(BLOCK_BYTES, end - place), place)
        total, place = zlib.crc32(chunk, total), place + len(chunk)
    return total


def _safetensors(path: Path, entries: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> _File:
    head, places = make_head(entries)
    stream = path.open("w+b")
    stream.write(head)
    stream.truncate(len(head) + sum(prod(shape) * dtype.itemsize for shape, dtype in entries.values()))
    stream.flush()
    return _File(stream, places)


def _folder(
    folder: Path, entries: Mapping[str, tuple[tuple[int, ...], torch.dtype]], max_file_bytes: int
) -> list[_File]:
    groups: list[list[str]] = [[]]
    total = filled = 0
    for name, (shape, dtype) in entries.items():
        size = prod(shape) * dtype.itemsize
        if groups[-1] and filled + size > max_file_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        total, filled = total + size, filled + size
    files: list[_File] = []
    where: dict[str, str] = {}
    try:
        for number, names in enumerate(groups, 1):
            file = f"model-{number:05d}-of-{len(groups):05d}{SUFFIX}"
            files.append(_safetensors(folder / file, {name: entries[name] for name in names}))
            where.update(dict.fromkeys(names, file))
        index = (folder / INDEX).open("w+b")
        files.append(_File(index, {}))
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        index.write(json.dumps(content, indent=2).encode())
    except BaseException:
        for opened in files:
            opened.stream.close()
        raise
    return files


def _torch(path: Path, entries: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> _File:
    with FakeTensorMode():
        outline = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in entries.items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(outline, str(path))
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        central = archive.start_dir
    stream = path.open("r+b")
    places: dict[str, int] = {}
    sums: dict[str, list[int]] = {}
    names = iter(entries)
    for member in members:
        if Path(member.filename).parent.name == "data":  # in the order in which they were saved
            name = next(names)
            shape, dtype = entries[name]
            stream.seek(member.header_offset)
            header = stream.read(_LOCAL_HEADER)
            place = member.header_offset + _LOCAL_HEADER + _lengths(header[26:30])
            size = prod(shape) * dtype.itemsize
            if member.file_size != size:
                raise CheckpointError(f"{path}: torch.save made room of {member.file_size} bytes for {name}")
            places[name] = place
            if size:
                stream.seek(place + size)
                if stream.read(4) != _DESCRIPTOR:
                    raise CheckpointError(f"{path}: torch.save left no place for the CRC-32 of {name}")
                sums[name] = [place + size + 4, central + 16]
        stream.seek(central)
        header = stream.read(_CENTRAL_HEADER)
        central += _CENTRAL_HEADER + _lengths(header[28:34])
    return _File(stream, places, sums)


def _lengths(header: bytes) -> int:
    """Sum of numbers of two bytes."""
    return sum(int.from_bytes(header[at : at + 2], "little") for at in range(0, len(header), 2))


def _clean(place: Path) -> None:
    """Removes what runs that were killed left of this place, or finishes it."""
    for path in place.parent.iterdir():
        if path.name.endswith(SAVING) and place_of(path) == place and _may_remove(path) and is_abandoned(path):
            _remove(path)
    replaced = place.with_name(f"{place.name}{REPLACED}")
    if replaced.is_dir() and _may_remove(replaced):
        if place.exists():
            _remove(replaced)
        else:
            replaced.rename(place)


def _check_place(place: Path, as_folder: bool) -> None:
    if as_folder and place.exists() and not (place.is_dir() and _may_remove(place)):
        found = sorted(p.name for p in place.iterdir() if not _OURS.fullmatch(p.name)) if place.is_dir() else []
        raise CheckpointError(
            f"{place} is there already and {f'has {shown(found)}' if found else 'is a file'}; name a new folder, "
            f"or a file that ends in {SUFFIX}"
        )
    if not as_folder and place.is_dir():
        raise CheckpointError(f"{place} is a folder, and a file is to be written; name a file in it")


def _may_remove(path: Path) -> bool:
    """Whether this module wrote it, as far as names say so."""
    return path.is_file() or (path.is_dir() and all(_OURS.fullmatch(p.name) for p in path.iterdir()))


def _put(temporary: Path, place: Path) -> None:
    if not place.is_dir():
        temporary.replace(place)
        sync_folder(place.parent)
        return
    replaced = place.with_name(f"{place.name}{REPLACED}")
    place.rename(replaced)
    temporary.rename(place)
    sync_folder(place.parent)
    _remove(replaced)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
