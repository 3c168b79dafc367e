"""Checkpoints: the logical state of a model in a folder, whatever ranks hold it, and the way back to the flat model."""

from __future__ import annotations

from dmt_plugin.checkpoint.folder import find_checkpoint
from dmt_plugin.checkpoint.logical import gather_state, join_tables, logical_name, to_flat
from dmt_plugin.checkpoint.manifest import Manifest
from dmt_plugin.checkpoint.single import load_checkpoint, read_state

__all__ = [
    "Manifest",
    "find_checkpoint",
    "gather_state",
    "join_tables",
    "load_checkpoint",
    "logical_name",
    "read_state",
    "to_flat",
]
