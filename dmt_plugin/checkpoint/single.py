"""Checkpoints in one process: into the logical tower model, or into the user's flat model."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dmt_plugin.checkpoint.compare import check_towers, shown
from dmt_plugin.checkpoint.folder import Found, check_content, find_checkpoint, what_is_there
from dmt_plugin.checkpoint.pieces import Piece, read_pieces, stored_tensors
from dmt_plugin.checkpoint.state import MODEL
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.model.logical import TowerModel


def the_checkpoint(load_dir: str | Path, tag: str | None = None) -> Found:
    """A checkpoint that must be there.

    Raises:
        CheckpointError: it is not.
    """
    found = find_checkpoint(load_dir, tag)
    if found is None:
        raise CheckpointError(f"{load_dir} has no whole checkpoint: {what_is_there(load_dir)}")
    return found


def volumes_of(stored: Mapping[str, TensorStorageMetadata]) -> dict[str, int]:
    """Stored entries of each tensor."""
    return {name: sum(prod(chunk.sizes) for chunk in tensor.chunks) for name, tensor in stored.items()}


def read_tensors(found: Found, names: list[str]) -> dict[str, Tensor]:
    """Whole tensors of a checkpoint by their names in it, on the CPU."""
    stored = stored_tensors(found.state)
    check_whole(found, stored)
    tensors: dict[str, Tensor] = {}
    pieces = []
    for name in names:
        entry, kept = found.manifest.tensors[name], stored[name]
        values = torch.empty(kept.size, dtype=kept.properties.dtype)
        pieces.append(Piece(name, entry.kind, tuple(kept.size), (0,) * len(kept.size), values))
        tensors[name] = values.view(entry.shape)
    read_pieces(pieces, found.state, None)
    return tensors


def check_whole(found: Found, stored: Mapping[str, TensorStorageMetadata]) -> None:
    """Raises:
    CheckpointError: a tensor that the manifest names is not stored, or not all of it.
    """
    volumes = volumes_of(stored)
    partial = [n for n, entry in found.manifest.tensors.items() if volumes.get(n) != prod(entry.shape)]
    if partial:
        raise CheckpointError(f"{found.path}: not all entries are stored of {shown(partial)}")


def read_state(load_dir: str | Path, tag: str | None = None) -> dict[str, Tensor]:
    """The trained model as a state dict with the user's own names, and those of tower modules, in one process.

    Args:
        load_dir: the folder that ``save_checkpoint`` was given, or that of one checkpoint.
        tag: its name; by default the newest whole one.

    Returns:
        Tables, parameters and buffers, on the CPU.

    Raises:
        CheckpointError: there is no such checkpoint, or it is not whole.
    """
    found = the_checkpoint(load_dir, tag)
    check_content(found, found.manifest.files)
    names = [name for name in found.manifest.tensors if name.startswith(MODEL)]
    return {name.removeprefix(MODEL): tensor for name, tensor in read_tensors(found, names).items()}


def load_checkpoint(model: nn.Module, load_dir: str | Path, tag: str | None = None) -> Path:
    """Loads the trained weights of a run on many ranks into a model in one process.

    Args:
        model: a ``TowerModel`` with the same towers; or, if the run had no tower modules, the flat model.
        load_dir: the folder that ``save_checkpoint`` was given, or that of one checkpoint.
        tag: its name; by default the newest whole one.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: it does not fit the model; nothing was loaded then.
    """
    found = the_checkpoint(load_dir, tag)
    manifest = found.manifest
    if isinstance(model, TowerModel):
        check_towers(model.plan, manifest, str(found.path))
    elif not manifest.semantic_preserving:
        raise CheckpointError(
            f"{found.path} is of a model with tower modules, which the flat model {type(model).__name__} has not got. "
            "Make its tower model with dmt_plugin.transform and the same configuration, and load into that."
        )
    state = read_state(found.path)
    own = model.state_dict()
    read = set(state)
    missing = sorted(set(own) - read - set(manifest.left_out) - set(manifest.never_run))
    unknown = sorted(read - set(own))
    other = [
        f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}"
        for name in sorted(read & set(own))
        if state[name].shape != own[name].shape
    ]
    if missing or unknown or other:
        raise CheckpointError(
            f"{found.path} does not fit {type(model).__name__}, and nothing was loaded: it lacks "
            f"{shown(missing) or 'nothing'}; has {shown(unknown) or 'nothing'} without a place; of another shape "
            f"{shown(other) or 'nothing'}."
        )
    with torch.no_grad():
        for name, value in state.items():
            own[name].copy_(value)
    return found.path
