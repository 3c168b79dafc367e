"""Checkpoints: the logical state of a model in a folder, whatever ranks hold it, and the way back to the flat model.

Public names are imported on first use, so that folders and manifests are read without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmt_plugin.checkpoint.folder import find_checkpoint
    from dmt_plugin.checkpoint.logical import gather_state, join_tables, to_flat
    from dmt_plugin.checkpoint.manifest import Manifest
    from dmt_plugin.checkpoint.names import logical_name
    from dmt_plugin.checkpoint.single import load_checkpoint, read_state

_HOMES = {
    "Manifest": "manifest", "find_checkpoint": "folder", "gather_state": "logical", "join_tables": "logical",
    "load_checkpoint": "single", "logical_name": "names", "read_state": "single", "to_flat": "logical",
}  # fmt: skip

__all__ = [
    "Manifest", "find_checkpoint", "gather_state", "join_tables", "load_checkpoint", "logical_name", "read_state",
    "to_flat",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
