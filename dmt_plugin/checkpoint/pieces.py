"""Pieces of logical tensors, written and read with ``torch.distributed.checkpoint``.

A rank holds pieces: rectangles of tables, the whole of dense parameters, ranges of their optimizer's state. Each has
the name of the whole, the whole's size and its own place in it, so that what some ranks wrote, any others can read.

1. To write, see :mod:`.writes`: long pieces go in blocks of rows, and of those that several ranks hold one writes each.
2. To read, every rank plans which parts of which stored pieces fall into each of its own, and these are copied
   straight into its tensors.

Dense parameters and their state are stored as vectors: ZeRO cuts them at any entry. :attr:`Piece.shape` keeps what
the model has.
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from dmt_plugin.checkpoint.manifest import StoredByModulo, TensorEntry
from dmt_plugin.checkpoint.row_order import in_order
from dmt_plugin.checkpoint.rows import as_matrix
from dmt_plugin.checkpoint.stored import Reader, stored_rows

#: Entries of the largest block that is written at once.
BLOCK = 1 << 24


@dataclass(frozen=True)
class Piece:
    """A rectangle of a logical tensor.

    Attributes:
        name: of the whole tensor.
        kind: see :class:`dmt_plugin.checkpoint.manifest.TensorEntry`.
        size: size of the whole, as it is stored.
        offsets: where the piece begins, one number per dimension.
        values: the piece itself: what is written, or where what is read goes.
        shape: shape of the whole in the model, if it is not ``size``.
        step: distance of its rows, which are then no rectangle: such a piece can only be read.
        by_modulo: the tables in the whole whose rows are stored by modulo; ``offsets`` are then where they are stored.
    """

    name: str
    kind: str
    size: tuple[int, ...]
    offsets: tuple[int, ...]
    values: Tensor
    shape: tuple[int, ...] | None = None
    step: int = 1
    by_modulo: tuple[StoredByModulo, ...] = ()

    @property
    def rows(self) -> range:
        """Its rows, or entries, in the whole."""
        first, count = self.offsets[0], self.values.shape[0]
        return range(first, first + count * self.step, self.step)

    @property
    def entry(self) -> TensorEntry:
        """What a manifest says of the whole."""
        dtype = str(self.values.dtype).removeprefix("torch.")
        return TensorEntry(self.kind, self.size if self.shape is None else self.shape, dtype, self.by_modulo)

    @property
    def chunk(self) -> dcp.ChunkStorageMetadata:
        """Its place."""
        return dcp.ChunkStorageMetadata(torch.Size(self.offsets), self.values.shape)


def vector(name: str, kind: str, values: Tensor) -> Piece:
    """The whole of a tensor, stored as a vector; ``values`` must be contiguous."""
    flat = values.detach().view(-1)
    return Piece(name, kind, (flat.numel(),), (0,), flat, tuple(values.shape))


def read_pieces(pieces: Sequence[Piece], folder: Path, group: dist.ProcessGroup | None) -> None:
    """Fills the pieces of all ranks of a group from a folder; all of them call this.

    Args:
        pieces: those of this rank; their values are overwritten.
        folder: where from.
        group: the ranks; None: this process alone.

    Raises:
        dcp.api.CheckpointException: a rank failed.
    """
    with quiet(), torch.no_grad():
        dcp.load(
            {},
            storage_reader=Reader(folder),
            planner=_LoadPlanner(pieces),
            process_group=group,
            no_dist=group is None,
        )


def divided(pieces: Iterable[Piece], entries: Mapping[str, TensorEntry]) -> tuple[list[Piece], list[Piece]]:
    """What is read as blocks (:func:`read_pieces`), and what by the numbers of rows (:func:`read_rows`).

    Args:
        pieces: by the numbers of their rows.
        entries: what the manifest says of the tensors.
    """
    as_blocks, numbered = list[Piece](), list[Piece]()
    for piece in pieces:
        entry = entries.get(piece.name)
        by_number = piece.step > 1 or (entry is not None and bool(entry.by_modulo))
        (numbered if by_number else as_blocks).append(piece)
    return as_blocks, numbered


@torch.no_grad()
def read_rows(pieces: Sequence[Piece], folder: Path, entries: Mapping[str, TensorEntry]) -> None:
    """Fills pieces by the numbers of their rows, wherever these are stored; by one rank alone.

    Args:
        pieces: matrices, and vectors of what is kept by row; their values are overwritten.
        folder: where from.
        entries: what the manifest says of the tensors.

    Raises:
        CheckpointError: it cannot be read.
    """
    stored = stored_rows(folder) if pieces else {}
    for piece in pieces:
        values = as_matrix(piece.values.detach())
        first = piece.offsets[1] if len(piece.offsets) > 1 else 0
        columns = range(first, first + values.shape[1])
        in_order(stored[piece.name], entries.get(piece.name)).fill(piece.rows, columns, values)


def stored_tensors(folder: Path) -> dict[str, dcp.TensorStorageMetadata]:
    """Sizes and pieces of the tensors in a folder."""
    metadata = Reader(folder).read_metadata()
    return {k: v for k, v in metadata.state_dict_metadata.items() if isinstance(v, dcp.TensorStorageMetadata)}


def blocks(pieces: Iterable[Piece], limit: int | None = None) -> list[Piece]:
    """The pieces, those of more than ``limit`` entries (default: :data:`BLOCK`) cut into blocks of rows."""
    limit = BLOCK if limit is None else limit
    found: list[Piece] = []
    for piece in pieces:
        rows = piece.values.shape[0] if piece.values.dim() else 1
        step = max(1, rows * limit // max(piece.values.numel(), 1))
        if rows <= step:
            found.append(piece)
            continue
        for first in range(0, rows, step):
            offsets = (piece.offsets[0] + first, *piece.offsets[1:])
            found.append(dataclasses.replace(piece, offsets=offsets, values=piece.values[first : first + step]))
    return found


class _LoadPlanner(dcp.LoadPlanner):
    """Plans what is read into pieces."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self._pieces = pieces
        self._metadata: dcp.Metadata | None = None

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: dcp.Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self._metadata = metadata

    def create_local_plan(self) -> dcp.LoadPlan:
        assert self._metadata is not None
        items: list[dcp.ReadItem] = []
        for number, piece in enumerate(self._pieces):
            stored = self._metadata.state_dict_metadata[piece.name]
            assert isinstance(stored, dcp.TensorStorageMetadata)
            # Two pieces may be the same part of the same tensor, so each is known by its number.
            place = MetadataIndex(str(number))
            found = create_read_items_for_chunk_list(piece.name, stored, [piece.chunk])
            items += [dataclasses.replace(item, dest_index=place) for item in found]
        return dcp.LoadPlan(items)

    def create_global_plan(self, global_plan: list[dcp.LoadPlan]) -> list[dcp.LoadPlan]:
        return global_plan

    def finish_plan(self, central_plan: dcp.LoadPlan) -> dcp.LoadPlan:
        return central_plan

    def load_bytes(self, read_item: dcp.ReadItem, value: io.BytesIO) -> None:
        raise AssertionError("pieces are tensors")

    def resolve_tensor(self, read_item: dcp.ReadItem) -> Tensor:
        target = self._pieces[int(read_item.dest_index.fqn)].values.detach()
        for dim, (first, length) in enumerate(zip(read_item.dest_offsets, read_item.lengths, strict=True)):
            target = target.narrow(dim, first, length)
        return target

    def commit_tensor(self, read_item: dcp.ReadItem, tensor: Tensor) -> None:
        pass


@contextmanager
def quiet() -> Iterator[None]:
    """torch warns that there are no process groups, which is meant, and of storages that it uses itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        yield
