"""The head of a ``.safetensors`` file, read and written: which tensor of which type lies at which byte.

A file is the length of a JSON text as eight bytes, the text, and the bytes of the tensors one after another. The text
maps the name of each to its type, shape and place behind the text. The format is read here, and not by its library,
because rows are wanted by number and with a step, a block at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from dmt_plugin.checkpoint.rows import RawRows
from dmt_plugin.core.errors import CheckpointError

SUFFIX = ".safetensors"
INDEX = "model.safetensors.index.json"

_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "C64": torch.complex64,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_LENGTH, _LONGEST, _METADATA = 8, 100 << 20, "__metadata__"


@dataclass(frozen=True)
class InFile:
    """A tensor in a file: its shape, and its bytes as one column."""

    shape: tuple[int, ...]
    raw: RawRows

    @property
    def rows(self) -> RawRows:
        """Rows of a matrix; anything else as one column."""
        if len(self.shape) != 2:
            return self.raw
        return RawRows(self.raw.path, self.raw.offset, self.raw.dtype, (self.shape[0], self.shape[1]))


def read_head(path: Path) -> dict[str, InFile]:
    """The tensors of a file by name; none is read.

    Raises:
        CheckpointError: it is cut off, or is no such file.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            length = int.from_bytes(stream.read(_LENGTH), "little")
            if size < _LENGTH or length > min(_LONGEST, size - _LENGTH):
                raise CheckpointError(
                    f"{path} has {size} bytes and a head of {length}: it was cut off, or is no {SUFFIX} file"
                )
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    found: dict[str, InFile] = {}
    try:
        for name, entry in json.loads(text).items():
            if name == _METADATA:
                continue
            first, end = entry["data_offsets"]
            shape = tuple(int(n) for n in entry["shape"])
            kind = entry["dtype"]
            if kind not in _TYPES:
                raise CheckpointError(f"{path}: {name} is of the type {kind}; known are {', '.join(_TYPES)}")
            dtype = _TYPES[kind]
            if first < 0 or end - first != prod(shape) * dtype.itemsize:
                raise CheckpointError(f"{path}: {name} is {kind} {list(shape)} and has {end - first} bytes")
            if _LENGTH + length + end > size:
                raise CheckpointError(
                    f"{path} was cut off: {name} ends at byte {_LENGTH + length + end}, the file has {size}"
                )
            found[name] = InFile(shape, RawRows(path, _LENGTH + length + first, dtype, (prod(shape), 1)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the head of {path} is not that of a {SUFFIX} file: {error!r}") from error
    return found


def make_head(entries: Mapping[str, tuple[tuple[int, ...], torch.dtype]]) -> tuple[bytes, dict[str, int]]:
    """The beginning of a file, and the byte at which each tensor begins.

    Args:
        entries: shape and type of the tensors by name.

    Raises:
        CheckpointError: the format has no such type.
    """
    text: dict[str, object] = {_METADATA: {"format": "pt"}}
    places: dict[str, int] = {}
    total = 0
    # Long entries first: so each tensor begins at a multiple of its entries' size.
    for name, (shape, dtype) in sorted(entries.items(), key=lambda item: -item[1][1].itemsize):
        if dtype not in _NAMES:
            raise CheckpointError(f"{name} is {dtype}, and {SUFFIX} files have no such type")
        places[name], end = total, total + prod(shape) * dtype.itemsize
        text[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [total, end]}
        total = end
    head = json.dumps(text, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    first = _LENGTH + len(head)
    return len(head).to_bytes(_LENGTH, "little") + head, {name: first + place for name, place in places.items()}
