"""Files of ``torch.distributed.checkpoint``, written and read without a second copy of what is in them.

A file is a row of records, one for each block of a tensor, and each record is what ``torch.save`` makes of the block: a
zip file with the raw bytes in one of its members, not compressed. torch's own writer keeps a copy of the last block of
every tensor until the file is written, and its own reader unpacks whole blocks. Here

1. one block at a time is written, which is copied only where it is not contiguous or not on the CPU;
2. to read, the place of the raw bytes in the file is looked up once, and just the rows that are wanted are read from
   there into their place.

The names of torch that are private are used in this file only.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.filesystem import DEFAULT_SUFFIX, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from dmt_plugin.checkpoint.index_file import read_index
from dmt_plugin.checkpoint.rows import PartRows, RawRows, as_matrix
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.core.files import synced

METADATA = ".metadata"
"""Name of the index of the tensors."""
_LOCAL_HEADER = 30


class Writer(dcp.FileSystemWriter):
    """Writes blocks one after another into one file of this rank; its content is that of torch's writer."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, sync_files=True)

    def write_data(self, plan: dcp.SavePlan, planner: dcp.SavePlanner) -> Future[list[WriteResult]]:
        """See :class:`dcp.StorageWriter`."""
        name = f"{cast(Any, plan.storage_data).prefix}0{DEFAULT_SUFFIX}"
        results = []
        with synced(Path(self.path) / name) as stream:
            for item in plan.items:
                first = stream.tell()
                torch.save(alone(cast(Tensor, planner.resolve_data(item))), stream)
                length = stream.tell() - first
                results.append(WriteResult(item.index, length, _StorageInfo(name, first, length)))
        return _done(results)


class Reader(dcp.FileSystemReader):
    """Reads the wanted part of each block into its place, by an index that is only read (:mod:`.index_file`)."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """See :class:`dcp.StorageReader`.

        Raises:
            CheckpointError: the index is damaged, or is more than an index.
        """
        found = read_index(Path(self.path) / METADATA)
        found.storage_meta = found.storage_meta or StorageMeta()
        found.storage_meta.load_id = self.load_id
        return found

    def read_data(self, plan: dcp.LoadPlan, planner: dcp.LoadPlanner) -> Future[None]:
        """See :class:`dcp.StorageReader`."""
        blocks: dict[MetadataIndex, RawRows] = {}
        for item in plan.items:
            if item.storage_index not in blocks:
                blocks[item.storage_index] = raw_rows(Path(self.path), self.storage_data[item.storage_index])
            target = planner.resolve_tensor(item)
            places = [range(f, f + n) for f, n in zip(item.storage_offsets, item.lengths, strict=True)]
            blocks[item.storage_index].fill(places[0], (*places[1:], range(1))[0], as_matrix(target))
            planner.commit_tensor(item, target)
        return _done(None)


@dataclass
class Block:
    """A part of a stored tensor; where its bytes are is looked up when it is read first.

    Attributes:
        name: of the tensor.
        place: first row and column.
        shape: rows and columns.
    """

    folder: Path
    info: Any
    name: str
    place: tuple[int, int]
    shape: tuple[int, int]

    @property
    def file(self) -> str:
        """Name of the file that it is in."""
        return str(self.info.relative_path)

    @property
    def offset(self) -> int:
        """Where its record begins in the file."""
        return int(self.info.offset)

    @cached_property
    def rows(self) -> RawRows:
        """Its bytes."""
        return raw_rows(self.folder, self.info)


def stored_blocks(folder: Path) -> dict[str, list[Block]]:
    """The parts of each tensor in a folder, by the tensor's name."""
    metadata = Reader(folder).read_metadata()
    found: dict[str, list[Block]] = {}
    for name, tensor in metadata.state_dict_metadata.items():
        if isinstance(tensor, dcp.TensorStorageMetadata):
            infos = [metadata.storage_data[MetadataIndex(name, chunk.offsets)] for chunk in tensor.chunks]
            found[name] = [
                Block(folder, info, name, _pair(chunk.offsets, 0), _pair(chunk.sizes, 1))
                for info, chunk in zip(infos, tensor.chunks, strict=True)
            ]
    return found


def stored_rows(folder: Path) -> dict[str, PartRows]:
    """The tensors in a folder by name: matrices as they are, vectors as one column."""
    metadata = Reader(folder).read_metadata()
    found: dict[str, PartRows] = {}
    for name, blocks in stored_blocks(folder).items():
        tensor = cast(dcp.TensorStorageMetadata, metadata.state_dict_metadata[name])
        found[name] = PartRows(_pair(tensor.size, 1), tensor.properties.dtype, blocks)
    return found


def alone(values: Tensor) -> Tensor:
    """The same entries on the CPU in a storage that holds nothing else, so that nothing else is saved with them."""
    values = values.detach().cpu().contiguous()
    if values.untyped_storage().nbytes() == values.nbytes:
        return values
    # Through a view as bytes: numpy does not know every type of torch. The memory is shared.
    return torch.from_numpy(values.view(-1).view(torch.uint8).numpy()).view(values.dtype).view(values.shape)


def raw_rows(folder: Path, info: Any) -> RawRows:
    """Where the bytes of a block are.

    Args:
        folder: of the files.
        info: what torch's metadata say of the block's place.

    Raises:
        CheckpointError: it is not there, or is something else.
    """
    path = folder / info.relative_path
    try:
        with path.open("rb") as stream, torch.serialization.skip_data():
            record = _Record(stream, info.offset, info.length)
            # Reserves memory for the block and leaves it untouched: no page of it exists.
            outline = torch.load(cast(Any, record), map_location="cpu", weights_only=True)
            with zipfile.ZipFile(record) as archive:
                members = [member for member in archive.infolist() if Path(member.filename).parent.name == "data"]
            plain = isinstance(outline, Tensor) and outline.is_contiguous() and outline.dim() in (1, 2)
            if not plain or len(members) != 1 or members[0].compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{path}: at byte {info.offset} is something else than a block of a tensor")
            member = members[0]
            if member.file_size != prod(outline.shape) * outline.dtype.itemsize:
                raise CheckpointError(f"{path}: the block at byte {info.offset} has {member.file_size} bytes of values")
            record.seek(member.header_offset)
            header = record.read(_LOCAL_HEADER)
            names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            first = info.offset + member.header_offset + _LOCAL_HEADER + names
            return RawRows(path, first, outline.dtype, _pair(outline.shape, 1))
    except (OSError, RuntimeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read at byte {info.offset}: {error}") from error


class _Record(io.RawIOBase):
    """A range of a file as a file of its own."""

    def __init__(self, stream: Any, first: int, length: int) -> None:
        super().__init__()
        self._stream, self._first, self._length, self._at = stream, first, length, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Within the range."""
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence])
        return self._at

    def tell(self) -> int:
        """Within the range."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Up to the end of the range."""
        wanted = max(0, min(len(buffer), self._length - self._at))
        self._stream.seek(self._first + self._at)
        count = self._stream.readinto(memoryview(buffer)[:wanted])
        self._at += count
        return count


def _pair(sizes: Sequence[int], missing: int) -> tuple[int, int]:
    """Of a vector, or a matrix."""
    first, second = (*sizes, missing)[:2]
    return int(first), int(second)


def _done(result: Any) -> Any:
    future: Future[Any] = Future()
    future.set_result(result)
    return future
