"""Stored weights, whatever stores them, read row by row and block by block.

1. :func:`open_state` finds out what a place is: a checkpoint of ours, ``.safetensors`` files, a file of ``torch.save``
   (mapped into memory, not read), or a state dict in memory. It reads names, shapes and types, no values.
2. :func:`open_weights` picks the tables that are wanted, and compares shapes and types, before the first value is read.
3. Each owner then reads its own rows and columns, :data:`dmt_plugin.checkpoint.rows.BLOCK_BYTES` at a time; numbers of
   another precision are converted on the way, which :func:`dmt_plugin.checkpoint.compare.retyped` says.
"""

from __future__ import annotations

import difflib
import json
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmt_plugin.checkpoint.compare import shown
from dmt_plugin.checkpoint.folder import MANIFEST, STATE, Found, check_content, find_checkpoint, shared_of
from dmt_plugin.checkpoint.row_order import in_order
from dmt_plugin.checkpoint.rows import BLOCK_BYTES, Reshaped, Rows, TensorRows, row_blocks
from dmt_plugin.checkpoint.safetensors_file import INDEX, SUFFIX, read_head
from dmt_plugin.checkpoint.state import MODEL
from dmt_plugin.checkpoint.stored import stored_rows
from dmt_plugin.core.errors import CheckpointError

_WRAPPERS = ("state_dict", "module")


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose values are where they are stored until they are read. It is a ``RowSource`` if it is a matrix.

    Attributes:
        name: its own.
        where: the place, for people.
        shape: as the model has it.
        rows: its values, those of a matrix as they are, of anything else as one column.
    """

    name: str
    where: str
    shape: tuple[int, ...]
    rows: Rows

    @property
    def dtype(self) -> torch.dtype:
        """As it is stored."""
        return self.rows.dtype

    def __str__(self) -> str:
        return f"rows of {self.name} in {self.where}"

    def fill(self, rows: range | Tensor, columns: range, out: Tensor) -> None:
        """Writes some rows and columns of a matrix into ``out``; see :class:`dmt_plugin.checkpoint.rows.Rows`.

        Args:
            rows: numbers of rows, a range with any step or a vector of int64.
            columns: a range with step 1.
            out: ``(len(rows), len(columns))``, with any strides, on any device; its type is kept.

        Raises:
            CheckpointError: it cannot be read.
            IndexError: there are no such rows or columns.
        """
        self.rows.fill(rows, columns, out)

    @torch.no_grad()
    def read_into(self, out: Tensor) -> None:
        """Writes all values into ``out``, which has the shape of the whole, any strides, any floating type."""
        if tuple(out.shape) != self.shape:
            raise CheckpointError(f"{self.name} in {self.where} is {list(self.shape)}, not {list(out.shape)}")
        count, width = self.rows.shape
        if len(self.shape) == 2 and self.rows.shape == self.shape:
            self.rows.fill(range(count), range(width), out)
        elif out.is_contiguous():
            self.rows.fill(range(count), range(width), out.detach().view(count, width))
        else:
            out.copy_(self.read())

    def read(self) -> Tensor:
        """The whole on the CPU, in the type that is stored."""
        out = torch.empty(self.shape, dtype=self.dtype)
        self.read_into(out)
        return out

    def blocks(self, limit: int = BLOCK_BYTES, dtype: torch.dtype | None = None) -> Iterator[tuple[int, Tensor]]:
        """The whole in blocks: where each begins in the flattened tensor, and a vector that the next one overwrites.

        Args:
            limit: bytes of a block.
            dtype: of the blocks; default: as it is stored.
        """
        for first, block in row_blocks(self.rows, limit, dtype):
            yield first * self.rows.shape[1], block.reshape(-1)


def open_weights(
    where: str | Path | Mapping[str, Tensor],
    parameters: Mapping[str, tuple[int, int]],
    share: tuple[int, int] = (0, 1),
) -> dict[str, StoredTensor]:
    """Starting weights of tables, as sources of rows.

    Args:
        where: a folder that ``save_checkpoint`` was given, or that of one checkpoint; a folder of ``.safetensors``
            files, or one; a file of ``torch.save``; or a state dict.
        parameters: rows and columns of the wanted tables, by their names in the flat model.
        share: which of how many processes this is that open the same place together; each compares its part of a
            checkpoint's files with their checksums.

    Returns:
        A source for each wanted table that is stored there.

    Raises:
        CheckpointError: none of them is stored, one has another shape or does not consist of floating-point numbers, or
            the place is none of these, cannot be read or was cut off.
    """
    state = open_state(where, share)
    found = {name: state[name] for name in parameters if name in state}
    if parameters and not found:
        wanted = sorted(parameters)
        close = sorted({c for n in wanted for c in difflib.get_close_matches(n, list(state), 1)})
        raise CheckpointError(
            f"{_said(where)} has none of the wanted tables {shown(wanted)}. It has {shown(close or sorted(state))}; "
            "names are those of the flat model's state_dict()."
        )
    problems = []
    for name, tensor in found.items():
        if tensor.shape != tuple(parameters[name]):
            problems.append(f"{name} has the shape {list(tensor.shape)} there, and {list(parameters[name])} here")
        elif not tensor.dtype.is_floating_point:
            problems.append(f"{name} is {tensor.dtype} there, and a table consists of floating-point numbers")
    if problems:
        raise CheckpointError(f"the weights in {_said(where)} do not fit this model: {'; '.join(problems)}")
    return found


def open_state(where: str | Path | Mapping[str, Any], share: tuple[int, int] = (0, 1)) -> dict[str, StoredTensor]:
    """Everything that a place holds of a flat model, by the names of its ``state_dict()``; no values are read yet.

    Args:
        where: see :func:`open_weights`.
        share: see :func:`open_weights`.

    Raises:
        CheckpointError: it is none of these, cannot be read or was cut off.
    """
    if isinstance(where, Mapping):
        return _in_memory(where, "the given state dict")
    path = Path(where)
    if path.is_dir():
        ours = (path / MANIFEST).is_file() or any(path.glob(f"*/{MANIFEST}"))
        files = sorted(path.glob(f"*{SUFFIX}"))
        if ours and files:
            raise CheckpointError(f"{path} has checkpoints and {files[0].name}; name one checkpoint, or the file")
        if ours:
            return _of_checkpoint(path, share)
        if files or (path / INDEX).is_file():
            return _of_folder(path, files)
        there = sorted(p.name for p in path.iterdir())
        raise CheckpointError(
            f"{path} has no checkpoint of save_checkpoint and no {SUFFIX} files; it has {shown(there) or 'nothing'}. "
            "A file of torch.save is given by its own name."
        )
    if not path.exists():
        raise CheckpointError(
            f"there are no weights at {path}: it does not exist. Expected a checkpoint's folder, a folder of {SUFFIX} "
            f"files, a {SUFFIX} file or a file of torch.save"
        )
    if path.suffix == SUFFIX:
        return _of_files({path: None})
    return _of_torch(path)


def state_of(found: Found) -> dict[str, StoredTensor]:
    """The trained model in a checkpoint, whose files have been checked, by the names of the user and of towers."""
    stored = stored_rows(found.state)
    state: dict[str, StoredTensor] = {}
    for full, entry in found.manifest.tensors.items():
        if not full.startswith(MODEL):
            continue
        name, shape = full.removeprefix(MODEL), tuple(entry.shape)
        if full not in stored or not stored[full].stored == prod(stored[full].shape) == prod(shape):
            raise CheckpointError(f"{found.path}: not all entries are stored of {name}")
        rows = in_order(stored[full], entry)
        if len(shape) == 2 and rows.shape != shape:
            rows = Reshaped(rows, (shape[0], shape[1]))
        state[name] = StoredTensor(name, str(found.path), shape, rows)
    return state


def _of_checkpoint(path: Path, share: tuple[int, int]) -> dict[str, StoredTensor]:
    found = find_checkpoint(path)
    if found is None:
        raise CheckpointError(f"{path} has no whole checkpoint that may be taken without its tag")
    files = found.manifest.files
    # What this process unpickles, it has checked itself.
    check_content(found, {f"{STATE}/.metadata"} & files.keys() | set(shared_of(*share, files)))
    return state_of(found)


def _of_folder(path: Path, files: list[Path]) -> dict[str, StoredTensor]:
    index = path / INDEX
    if not index.is_file():
        return _of_files(dict.fromkeys(files))
    try:
        names = json.loads(index.read_text())["weight_map"]
        by_file: dict[Path, list[str] | None] = {path / file: [] for file in sorted(set(names.values()))}
        for name, file in names.items():
            by_file[path / file].append(name)  # type: ignore[union-attr]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is no index of {SUFFIX} files: {error!r}") from error
    return _of_files(by_file)


def _of_files(files: Mapping[Path, list[str] | None]) -> dict[str, StoredTensor]:
    """Tensors of some ``.safetensors`` files: those that are named for each, or all."""
    state: dict[str, StoredTensor] = {}
    for path, names in files.items():
        there = read_head(path)
        missing = sorted(set(names or ()) - set(there))
        if missing:
            raise CheckpointError(f"{path} lacks {shown(missing)}, which {INDEX} beside it says it has")
        for name in there if names is None else names:
            if name in state:
                raise CheckpointError(f"{name} is in {state[name].where} and in {path}: it must be in one of them")
            state[name] = StoredTensor(name, str(path), there[name].shape, there[name].rows)
    return state


def _of_torch(path: Path) -> dict[str, StoredTensor]:
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} is not read as weights by torch.load(mmap=True, weights_only=True): "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}. It must be a whole "
            "file that torch.save made of a state dict in its present format."
        ) from error
    where = str(path)
    if isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        inner = [key for key in _WRAPPERS if isinstance(content.get(key), Mapping)]
        if len(inner) == 1:
            content, where = content[inner[0]], f"{path}[{inner[0]!r}]"
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a state dict: tensors by name")
    return _in_memory(content, where)


def _in_memory(state: Mapping[str, Any], where: str) -> dict[str, StoredTensor]:
    tensors = {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{where} has no tensors by name; it has {shown([str(key) for key in state]) or 'nothing'}. Expected a "
            f"state dict, or one under {' or '.join(map(repr, _WRAPPERS))}."
        )
    empty = sorted(name for name, value in tensors.items() if value.is_meta or value.layout is not torch.strided)
    if empty:
        raise CheckpointError(f"{shown(empty)} of {where} have no values: they are on meta, or sparse")
    return {
        name: StoredTensor(
            name, where, tuple(value.shape), TensorRows(value if value.dim() == 2 else value.reshape(-1, 1))
        )
        for name, value in tensors.items()
    }


def _said(where: Any) -> str:
    return "the given state dict" if isinstance(where, Mapping) else str(where)
