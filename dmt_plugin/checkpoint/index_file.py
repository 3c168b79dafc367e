"""Reads ``.metadata``, torch's index of a checkpoint's tensors, without running anything that it says.

torch pickles this file, and a pickle may name any function of any module. The few classes that an index is made of are
allowed here, by name, and nothing else: a file that names more is refused before it is followed.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata

from dmt_plugin.core.errors import CheckpointError

_METADATA = "torch.distributed.checkpoint.metadata"
_ALLOWED = {
    *(
        (_METADATA, name)
        for name in (
            "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
            "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "PurePosixPath")),
}  # fmt: skip


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def read_index(path: Path) -> Metadata:
    """The index in a file.

    Raises:
        CheckpointError: it is not one, names something that no index has, or a file outside its folder.
    """
    try:
        with path.open("rb") as stream:
            found = _Restricted(stream).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError(f"it is a {type(found).__name__}")
        names = {str(info.relative_path) for info in (found.storage_data or {}).values()}
    except OSError as error:
        raise CheckpointError(f"{path}: the index of the tensors cannot be read ({error.strerror})") from error
    except Exception as error:  # what a damaged pickle raises is anything
        raise CheckpointError(
            f"{path} is no index of tensors as torch.distributed.checkpoint writes it: {error}; nothing of it was run. "
            "It has changed since it was saved, or comes from elsewhere: load another checkpoint"
        ) from error
    if outside := sorted(name for name in names if Path(name).name != name):
        raise CheckpointError(f"{path} names files outside its own folder: {outside}; load another checkpoint")
    return found
