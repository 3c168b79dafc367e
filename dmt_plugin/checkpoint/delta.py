"""What changed from one checkpoint to another, as one file (:mod:`.delta_file`).

1. Rows are compared as bytes, so that nothing is lost. Of tables and of their optimizer's state the rows that changed
   are stored; of everything else the whole block.
2. A delta belongs to the older checkpoint, which it knows by the checksums of its files.
3. What lies around the tensors in a file is stored as it is, so that the newer checkpoint comes back byte for byte
   (:mod:`.delta_apply`), whatever version of torch wrote it.

Blocks are of :data:`dmt_plugin.checkpoint.rows.BLOCK_BYTES`; no table is ever whole in memory.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from dmt_plugin.checkpoint import folder
from dmt_plugin.checkpoint.delta_file import (
    ABOUT,
    BLOCKS,
    FILES,
    HEAD,
    NUMBER,
    RAW,
    About,
    Report,
    chunks,
    member,
    raw_bytes,
    rows_at_once,
    sums_of,
)
from dmt_plugin.checkpoint.folder import STATE, Found, check_content
from dmt_plugin.checkpoint.manifest import Manifest
from dmt_plugin.checkpoint.row_order import rearranged
from dmt_plugin.checkpoint.rows import Rows
from dmt_plugin.checkpoint.state import MODEL
from dmt_plugin.checkpoint.stored import Block, stored_blocks, stored_rows
from dmt_plugin.core.errors import CheckpointError

_TABLES = ("table", "table_optimizer")


@dataclass
class TableDelta:
    """What changed of a table.

    Attributes:
        rows: of the newer checkpoint.
        changed: of these, how many are not in the older one, or others there.
        bytes: of the rows that are stored, with those of their optimizer's state.
    """

    rows: int
    changed: int = 0
    bytes: int = 0


@dataclass
class Delta:
    """What :func:`write_delta` wrote.

    Attributes:
        tables: by the parameter that holds it.
        changed: parameters, buffers and states of the rest that changed.
        others: how many there are.
        other_bytes: of these that are stored.
        bytes: of the file.
        whole: of the newer checkpoint.
    """

    tables: dict[str, TableDelta] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    others: int = 0
    other_bytes: int = 0
    bytes: int = 0
    whole: int = 0


def write_delta(old: Found, new: Found, path: str | Path, report: Report = lambda done: None) -> Delta:
    """Writes what changed from one checkpoint to another.

    Args:
        old: the older one.
        new: the newer one.
        path: the file; one that is there is replaced when the new one is whole.
        report: see :data:`Report`; in all, bytes of the newer one's tensors.

    Returns:
        What is in it.

    Raises:
        CheckpointError: one of them is not as it was saved, or the file cannot be written; nothing is left then.
    """
    place = Path(path)
    if place.is_dir():
        raise CheckpointError(f"{place} is a folder, and a delta is one file; name a file in it")
    for found in (old, new):
        check_content(found, found.manifest.files)
    made = _Writer(old, new, report)
    with folder.whole_file(place) as stream, zipfile.ZipFile(stream, "w") as archive:
        made.write(archive)
    made.delta.bytes = place.stat().st_size
    return made.delta


def rows_for_delta(old: Found, new: Manifest) -> dict[str, Rows]:
    """What the older checkpoint has stored, in the order in which the newer one stores it.

    A table that has another number of rows now, and of which an order is needed, is left out: all of it is stored.
    """
    found: dict[str, Rows] = {}
    for name, rows in stored_rows(old.state).items():
        before, after = old.manifest.tensors.get(name), new.tensors.get(name)
        modulo = (before and before.by_modulo) or (after and after.by_modulo)
        if not modulo or (before and after and before.shape == after.shape):
            found[name] = rearranged(rows, before, after)
    return found


class _Writer:
    """One delta under way."""

    def __init__(self, old: Found, new: Found, report: Report) -> None:
        self._old, self._new, self._report = old, new, report
        self._old_rows = rows_for_delta(old, new.manifest)
        self._blocks = stored_blocks(new.state)
        self._new_rows = stored_rows(new.state)
        self._sizes = {name: rows.shape for name, rows in self._new_rows.items()}
        self._cut = {n for n, blocks in self._blocks.items() if any(b.shape[1] != self._sizes[n][1] for b in blocks)}
        self._numbers = {name: number for number, name in enumerate(self._blocks)}
        kinds = {name: entry.kind for name, entry in new.manifest.tensors.items()}
        self._parameter_of = {
            name: name.removeprefix(MODEL) if kinds[name] == "table" else name.split(".", 2)[-1]
            for name in self._blocks
            if kinds.get(name) in _TABLES
        }
        self.delta = Delta(whole=sum(entry.bytes for entry in new.manifest.files.values()))
        self.delta.others = len(self._blocks) - len(self._parameter_of)
        for name, parameter in self._parameter_of.items():
            if kinds[name] == "table":
                self.delta.tables[parameter] = TableDelta(self._sizes[name][0])

    def write(self, archive: zipfile.ZipFile) -> None:
        """All of it."""
        files: dict[str, list[Block]] = {}
        for blocks in self._blocks.values():
            for block in blocks:
                files.setdefault(f"{STATE}/{block.file}", []).append(block)
        for name in self._new.manifest.files:
            source = self._new.path / name
            with member(archive, (BLOCKS if name in files else FILES) + name) as out, source.open("rb") as stream:
                if name in files:
                    self._program(sorted(files[name], key=lambda block: block.offset), stream, out)
                else:
                    for chunk in chunks(stream, source.stat().st_size):
                        out.write(chunk)
        for name, parameter in self._parameter_of.items():
            if parameter in self.delta.tables and name == MODEL + parameter and name in self._cut:
                self.delta.tables[parameter].changed = self._count(name)
        old = self._old.manifest
        known_by = {"tag": old.tag, "saved_at": old.saved_at, "files": sums_of(old)}
        tensors = [(name, self._new_rows[name].dtype) for name in self._blocks]
        with member(archive, ABOUT) as out:
            out.write(About(known_by, tensors, self._new.manifest).to_json().encode())

    def _program(self, blocks: list[Block], stream: IO[bytes], out: IO[bytes]) -> None:
        """Of one file."""
        at = 0
        for block in blocks:
            raw = block.rows
            self._bytes(stream, at, raw.offset, out)
            at = raw.offset + raw.shape[0] * raw.shape[1] * raw.dtype.itemsize
            for first, count in _steps(raw.shape, raw.dtype):
                self._step(block, first, count, out)
        self._bytes(stream, at, stream.seek(0, 2), out)

    def _bytes(self, stream: IO[bytes], first: int, end: int, out: IO[bytes]) -> None:
        if first == end:
            return
        out.write(HEAD.pack(RAW, 0, end - first, 0, 0, 0))
        stream.seek(first)
        for chunk in chunks(stream, end - first):
            out.write(chunk)

    def _step(self, block: Block, first: int, count: int, out: IO[bytes]) -> None:
        name, width = block.name, block.shape[1]
        values = torch.empty(count, width, dtype=block.rows.dtype)
        block.rows.fill(range(first, first + count), range(width), values)
        row = block.place[0] + first
        columns = range(block.place[1], block.place[1] + width)
        numbers = self._changed(name, values, row, columns).nonzero()[:, 0]
        table = self._parameter_of.get(name)
        if table is None and len(numbers):
            self.delta.changed.add(name)
            numbers = torch.arange(count)
        out.write(HEAD.pack(self._numbers[name], row, count, columns.start, width, len(numbers)))
        stored = values if len(numbers) == count else values[numbers]
        if len(numbers) < count:
            out.write(raw_bytes(numbers.to(NUMBER)))
        out.write(raw_bytes(stored))
        if table is None:
            self.delta.other_bytes += stored.nbytes
        elif table in self.delta.tables:
            self.delta.tables[table].bytes += stored.nbytes
            if name == MODEL + table and name not in self._cut:
                self.delta.tables[table].changed += len(numbers)
        self._report(values.nbytes)

    def _changed(self, name: str, values: Tensor, row: int, columns: range) -> Tensor:
        """Which rows of a block are others in the older checkpoint, or not there."""
        changed = torch.ones(len(values), dtype=torch.bool)
        old, size = self._old_rows.get(name), self._sizes[name]
        if old is None or old.dtype != values.dtype or old.shape[1] != size[1]:
            return changed
        if name not in self._parameter_of and old.shape != size:
            return changed
        known = max(0, min(len(values), old.shape[0] - row))
        before = torch.empty(known, len(columns), dtype=old.dtype)
        old.fill(range(row, row + known), columns, before)
        changed[:known] = (before.view(torch.uint8) != values[:known].view(torch.uint8)).any(1)
        return changed

    def _count(self, name: str) -> int:
        """Rows of a tensor that changed, where blocks have parts of them."""
        new, size = self._new_rows[name], self._sizes[name]
        total = 0
        for first, count in _steps(size, new.dtype):
            values = torch.empty(count, size[1], dtype=new.dtype)
            new.fill(range(first, first + count), range(size[1]), values)
            total += int(self._changed(name, values, first, range(size[1])).sum())
        return total


def _steps(shape: tuple[int, int], dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    """First and number of the rows that are looked at together."""
    step = rows_at_once(shape[1], dtype)
    for first in range(0, shape[0], step):
        yield first, min(step, shape[0] - first)
