"""Checkpoints in one process: into the logical tower model, the user's flat model, or files of its state."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from dmt_plugin.checkpoint.changes import Changes, fit_to, read_changes
from dmt_plugin.checkpoint.compare import check_towers, retyped, shown
from dmt_plugin.checkpoint.differences import side_of, side_of_flat, side_of_manifest
from dmt_plugin.checkpoint.flat_files import Format, flat_writer
from dmt_plugin.checkpoint.folder import Found, check_content, find_checkpoint, what_is_there
from dmt_plugin.checkpoint.manifest import TensorEntry
from dmt_plugin.checkpoint.pieces import Piece, divided, read_pieces, read_rows, stored_tensors
from dmt_plugin.checkpoint.state import MODEL, StoredTable
from dmt_plugin.checkpoint.unchanged import find_unchanged
from dmt_plugin.checkpoint.weights import StoredTensor, state_of
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.model.logical import TowerModel

logger = logging.getLogger(__name__)


def the_checkpoint(load_dir: str | Path, tag: str | None = None) -> Found:
    """A checkpoint that must be there.

    Raises:
        CheckpointError: it is not.
    """
    return _there(find_checkpoint(load_dir, tag), load_dir)


def _unchanged(load_dir: str | Path, tag: str | None) -> Found:
    """:func:`the_checkpoint`, with every file as it was saved; without a tag, the newest such."""
    return _there(find_unchanged(load_dir, tag), load_dir)


def _there(found: Found | None, load_dir: str | Path) -> Found:
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
    blocks, by_number = divided(pieces, found.manifest.tensors)
    read_pieces(blocks, found.state, None)
    read_rows(by_number, found.state, found.manifest.tensors)
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
    found = _unchanged(load_dir, tag)
    names = [name for name in found.manifest.tensors if name.startswith(MODEL)]
    return {name.removeprefix(MODEL): tensor for name, tensor in read_tensors(found, names).items()}


def load_checkpoint(
    model: nn.Module, load_dir: str | Path, tag: str | None = None, changes: Changes | None = None
) -> Path:
    """Loads the trained weights of a run on many ranks into a model in one process.

    Args:
        model: a ``TowerModel`` with the same towers; or, if the run had no tower modules, the flat model.
        load_dir: the folder that ``save_checkpoint`` was given, or that of one checkpoint.
        tag: its name; by default the newest whole one.
        changes: what of the model has changed since: names of tables, features, parameters or modules, or patterns with
            ``*`` and ``?``, under ``"grow"`` (tables with more rows; those that are stored are loaded), ``"new"`` (what
            keeps its values) and ``"drop"`` (what only the checkpoint has). A flat model knows no features but those of
            the checkpoint.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: it does not fit the model, but for ``changes``; nothing was loaded then.
    """
    named = read_changes(changes)
    found = _unchanged(load_dir, tag)
    manifest, where = found.manifest, str(found.path)
    if isinstance(model, TowerModel):
        if not any(named.values()) and model.plan.model == manifest.tower_plan.model:
            check_towers(model.plan, manifest, where)
    elif not manifest.semantic_preserving:
        raise CheckpointError(
            f"{found.path} is of a model with tower modules, which the flat model {type(model).__name__} has not got. "
            "Make its tower model with dmt_plugin.transform and the same configuration, and load into that."
        )
    check_whole(found, stored_tensors(found.state))
    own = model.state_dict()
    tensors = {name: _entry(value) for name, value in own.items() if isinstance(value, Tensor)}
    saved = side_of_manifest(manifest)
    here = side_of(tensors, model.plan) if isinstance(model, TowerModel) else side_of_flat(tensors, saved)
    unread = model.never_run if isinstance(model, TowerModel) else []
    fit = fit_to(here, saved, named, where, (*manifest.left_out, *manifest.never_run, *unread), unread)
    empty = sorted(name for name in set(tensors) - fit.fresh if own[name].is_meta)
    if empty:
        raise CheckpointError(
            f"{shown(empty)} of {type(model).__name__} are on the meta device, where nothing can be loaded: give them "
            "memory first (dmt_plugin.materialize, or model.to_empty)"
        )
    for line in retyped({name: entry.dtype for name, entry in saved.tensors.items()}, _floats(tensors)):
        logger.warning("%s: %s", where, line)
    for name, tensor in state_of(found).items():
        if name in fit.fresh or name in fit.gone:
            continue
        tables = here.by_parameter.get(name, ())
        if not tables:
            tensor.read_into(own[name])
        for table in tables:
            if table.name in fit.tables:
                _read_table(tensor, fit.tables[table.name], own[name][table.first_row :])
    return found.path


def _floats(tensors: Mapping[str, TensorEntry]) -> dict[str, str]:
    return {name: entry.dtype for name, entry in tensors.items() if "float" in entry.dtype}


def _entry(value: Tensor) -> TensorEntry:
    return TensorEntry("", tuple(value.shape), str(value.dtype).removeprefix("torch."))


def _read_table(tensor: StoredTensor, place: StoredTable, target: Tensor) -> None:
    rows = range(place.first_row, place.first_row + place.rows)
    tensor.fill(rows, range(tensor.shape[1]), target.detach()[: place.rows])


def write_flat(
    found: Found,
    path: str | Path,
    format: Format,
    max_file_bytes: int = 4 << 30,
    report: Callable[[int], object] = lambda written: None,
) -> int:
    """Writes the trained model in a checkpoint to files, block by block.

    Args:
        found: the checkpoint.
        path: see :func:`dmt_plugin.checkpoint.flat_files.flat_writer`.
        format: see there.
        max_file_bytes: see there.
        report: is given the bytes of each block that was written.

    Returns:
        Bytes of all tensors.

    Raises:
        CheckpointError: the checkpoint is not whole, or the files cannot be written; nothing is left then.
    """
    check_content(found, found.manifest.files)
    state = state_of(found)
    entries = {name: (tensor.shape, tensor.dtype) for name, tensor in state.items()}
    total = 0
    with flat_writer(path, format, entries, max_file_bytes) as writer:
        for name, tensor in state.items():
            for first, values in tensor.blocks():
                writer.write(name, first, values)
                report(values.nbytes)
                total += values.nbytes
    return total
