"""What each rank writes of the pieces that all ranks hold: agreed on first, written then, by whoever has the time.

1. Every rank plans its pieces, long ones in blocks of rows, and all see all plans. Of a block that several ranks hold,
   the one that has been given least writes it; all find the same. That the blocks together are the whole is checked
   before anything is written.
2. From then on a rank can write by itself. What it writes are views of the model, or, once a snapshot was taken, copies
   of them: then the model may change meanwhile.
3. What was written where is put together on one rank, which writes it beside the blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItemType

from dmt_plugin.checkpoint.pieces import Piece, blocks, quiet
from dmt_plugin.checkpoint.stored import Writer
from dmt_plugin.topology.agreement import all_values

_ALIGNED = 64
"""Bytes; where a copy begins in its buffer."""


class Snapshot:
    """Host memory that copies of blocks are written from; it is kept, and used again by the next one."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8)

    @property
    def bytes(self) -> int:
        """What it takes."""
        return self._buffer.nbytes

    def more(self, size: int) -> int:
        """Bytes that copies of ``size`` bytes would take beyond those that are there."""
        return max(0, size - self._buffer.nbytes)

    def reserve(self, size: int) -> None:
        """Makes room; what was copied before is lost."""
        if size > self._buffer.nbytes:
            self._buffer = torch.empty(0, dtype=torch.uint8)  # first, so that the two are not there at once
            self._buffer = torch.empty(size, dtype=torch.uint8)

    def touch(self) -> None:
        """Has the system give all pages now, which takes far longer than a copy into pages that are there."""
        self._buffer.zero_()

    def release(self) -> None:
        """Gives the memory back."""
        self._buffer = torch.empty(0, dtype=torch.uint8)

    def copy(self, first: int, values: Tensor) -> Tensor:
        """A copy that begins with byte ``first`` of the buffer."""
        room = self._buffer[first : first + values.numel() * values.element_size()]
        return room.view(values.dtype).view(values.shape).copy_(values)


class Writes:
    """The blocks that one rank writes; all that it holds, until :meth:`agree`.

    Args:
        pieces: what this rank holds.
        folder: where to; the same for all ranks, and made.
        rank: this one.
    """

    def __init__(self, pieces: Sequence[Piece], folder: Path, rank: int = 0) -> None:
        self._rank = rank
        self._writer, self._planner = Writer(folder), SavePlanner(blocks(pieces))
        self._writer.set_up_storage_writer(rank == 0)
        with quiet():
            self._plan = self._writer.prepare_local_plan(self._planner.create_local_plan())

    def agree(self, meet: Callable[[dcp.SavePlan], list[dcp.SavePlan]]) -> None:
        """Finds out who writes what; all ranks call this.

        Args:
            meet: gathers the plans of all ranks, in their order.

        Raises:
            ValueError: the pieces of all ranks are not the whole; on every rank.
        """
        with quiet():
            plans, self._metadata = self._planner.create_global_plan(meet(self._plan))
            self._plan = self._planner.finish_plan(self._writer.prepare_global_plan(plans)[self._rank])

    @property
    def bytes(self) -> int:
        """What a snapshot of it takes."""
        return sum(_room(self._planner.piece(item.index).values) for item in self._plan.items)

    @torch.no_grad()
    def take(self, snapshot: Snapshot) -> None:
        """From now on copies are written: the model may change."""
        snapshot.reserve(self.bytes)
        copies, first = [], 0
        for item in self._plan.items:
            piece = self._planner.piece(item.index)
            copies.append(dataclasses.replace(piece, values=snapshot.copy(first, piece.values.detach())))
            first += _room(piece.values)
        self._planner.replace(copies)

    def write(self, each: Callable[[], object] = lambda: None) -> Any:
        """Writes the blocks of this rank, synced to the disk.

        Args:
            each: called before each block.

        Returns:
            What was written where, for :meth:`finish`.
        """
        self._planner.each = each
        return self._writer.write_data(self._plan, self._planner).value()

    def finish(self, results: Sequence[Any]) -> None:
        """Writes what all ranks have written where; one rank does so, behind all others."""
        self._writer.finish(self._metadata, list(results))


def write_pieces(pieces: Sequence[Piece], folder: Path, group: dist.ProcessGroup | None) -> None:
    """Writes the pieces of all ranks of a group into a folder; all of them call this.

    Args:
        pieces: those of this rank.
        folder: where to; the same for all ranks.
        group: the ranks; None: this process alone.

    Raises:
        ValueError: the pieces are not the whole.
    """

    def meet(value: Any) -> list[Any]:
        return [value] if group is None else all_values(value, group)

    rank = 0 if group is None else dist.get_rank(group)
    writes = Writes(pieces, folder, rank)
    writes.agree(meet)
    results = meet(writes.write())
    if rank == 0:
        writes.finish(results)


class SavePlanner(DefaultSavePlanner):
    """Plans what is written from pieces; finding duplicates and checking the whole is torch's."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.each: Callable[[], object] = lambda: None
        self.replace(pieces)

    def replace(self, pieces: Sequence[Piece]) -> None:
        """Those from which is written."""
        self._pieces = {(piece.name, tuple(piece.offsets)): piece for piece in pieces}

    def create_local_plan(self) -> dcp.SavePlan:
        """One item for each piece."""
        self.plan = dcp.SavePlan(
            [
                dcp.WriteItem(
                    index=MetadataIndex(piece.name, torch.Size(piece.offsets)),
                    type=WriteItemType.SHARD,
                    tensor_data=TensorWriteData(
                        chunk=piece.chunk,
                        properties=TensorProperties.create_from_tensor(piece.values),
                        size=torch.Size(piece.size),
                    ),
                )
                for piece in self._pieces.values()
            ]
        )
        return self.plan

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The values of a piece."""
        self.each()
        return self.piece(index).values

    def piece(self, index: MetadataIndex) -> Piece:
        """The piece that is written under an index."""
        assert index.offset is not None
        return self._pieces[index.fqn, tuple(index.offset)]


def _room(values: Tensor) -> int:
    """Bytes that a copy takes in a snapshot."""
    return -(-prod(values.shape) * values.element_size() // _ALIGNED) * _ALIGNED
