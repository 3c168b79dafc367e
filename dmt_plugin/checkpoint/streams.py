"""The state of a model that runs on many ranks, sent block by block to the ranks that ask for it.

1. Every rank says which rectangles of which tensors it holds. Of what several ranks hold, the first of them sends:
   rank 0 the dense part, the first lane of each host its towers, the first owner the rows of a table.
2. Tensors go one after another, in the order of the model's state, each in blocks of whole rows of at most
   :data:`BLOCK_BYTES`. Whoever holds entries of a block sends them to every receiver, which puts the block together and
   hands it to its sink: memory is that of a block, whatever the tables' size.
3. A sink that fails (a full disk) must not leave the senders waiting: its error is kept, the rest is thrown away until
   all ranks meet, after :data:`MEET_BYTES` at the latest, and then all of them raise.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from dmt_plugin.checkpoint.state import members, table_sizes
from dmt_plugin.core.errors import DMTError
from dmt_plugin.model.placed import PlacedModel
from dmt_plugin.topology.agreement import gather, together
from dmt_plugin.topology.groups import RankGroups
from dmt_plugin.topology.lost_ranks import reporting

BLOCK_BYTES = 1 << 24
"""Of a tensor that are sent at once; a single row may be longer."""
MEET_BYTES = 1 << 30
"""After which all ranks meet, so that none waits for longer than these take."""

Sink = Callable[[str, int, Tensor], object]
"""Takes a tensor's name, the entry of the flattened tensor that a block begins with, and the block: whole rows."""


@dataclass(frozen=True)
class Part:
    """What one rank holds of a tensor, seen as a matrix of the rows along its first dimension.

    Attributes:
        name: of the tensor, in the logical model.
        shape: of the whole.
        dtype: of its entries.
        rows: those that are held, of any step.
        columns: those that are held of each row.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    rows: range
    columns: range


class StateStream:
    """The whole state of a placed model, ready to be sent: a collective of all ranks.

    Args:
        placed: this rank's model.
        groups: this rank's process groups.
        doing: what for, for messages.

    Attributes:
        entries: shape and type of everything in the state by name, in the order in which it is sent.

    Raises:
        DMTError: a tensor of the model is not on the ranks as a whole.
        CheckpointError: a module has a state that is no tensor.
        ExchangeError: a rank is gone, or the time is up.
    """

    def __init__(self, placed: PlacedModel, groups: RankGroups, doing: str = "gathering the trained model") -> None:
        self._groups, self._doing = groups, doing
        with together(groups, doing):
            placed.lookup.settle()
            self._own = dict(_own_parts(placed))
        of_rank = gather(groups, list(self._own), doing)
        self._parts = _first_holders(of_rank)
        order = {name: number for number, name in enumerate(placed.logical.own_entries)}
        names = sorted(self._parts, key=lambda name: order.get(name, len(order)))
        found = {name: next(iter(self._parts[name])) for name in names}
        self.entries: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = {
            name: (part.shape, part.dtype) for name, part in found.items()
        }
        partial = [n for n, parts in self._parts.items() if _volume(parts) != prod(found[n].shape)]
        if partial:
            raise DMTError(f"{doing}: the ranks hold other entries of {sorted(partial)[:6]} than each of them once")

    @torch.no_grad()
    def send(self, receivers: Collection[int], sink: Sink | None = None, names: Iterable[str] | None = None) -> None:
        """Sends the state; all ranks call this.

        Args:
            receivers: ranks that get it, the same on all ranks.
            sink: what takes the blocks on this rank; needed if it is a receiver.
            names: of the tensors that are sent, the same on all ranks; default: all.

        Raises:
            DMTError: a sink failed; on its rank, that error.
            ExchangeError: a rank is gone, or the time is up.
        """
        wanted = set(self.entries if names is None else names)
        rank, error, sent = self._groups.rank, None, 0
        for name, (shape, dtype) in self.entries.items():
            if name not in wanted or not prod(shape):
                continue
            height, width = _matrix(shape)
            step = max(1, BLOCK_BYTES // (width * dtype.itemsize))
            for first in range(0, height, step):
                rows = range(first, min(height, first + step))
                block = torch.empty(len(rows), width, dtype=dtype) if rank in receivers else None
                for part, holder in self._parts[name].items():
                    self._move(part, holder, rows, receivers, block)
                if block is not None and sink is not None and error is None:
                    try:
                        sink(name, first * width, block)
                    except Exception as caught:
                        error = caught
                sent += len(rows) * width * dtype.itemsize
                if sent >= MEET_BYTES:
                    self._meet(error)
                    sent = 0
        self._meet(error)

    def _move(self, part: Part, holder: int, rows: range, receivers: Collection[int], block: Tensor | None) -> None:
        """The entries of a block that one rank holds, from there to all receivers."""
        groups = self._groups
        cut = _inside(part.rows, rows)
        others = [receiver for receiver in receivers if receiver != holder]
        if not cut or (groups.rank != holder and groups.rank not in others):
            return
        if groups.rank == holder:
            values = self._own[part][cut.start : cut.stop]
            if others:
                packed = values.to(groups.device).contiguous().view(-1).view(torch.uint8)
                self._messages(dist.isend, packed, others, part.name)
        else:
            values = torch.empty(len(cut), len(part.columns), dtype=part.dtype, device=groups.device)
            self._messages(dist.irecv, values.view(-1).view(torch.uint8), [holder], part.name)
        if block is not None:
            at = part.rows[cut.start] - rows.start
            block[at :: part.rows.step][: len(cut), part.columns.start : part.columns.stop].copy_(values)

    def _messages(self, direction: Callable[..., object], packed: Tensor, peers: list[int], name: str) -> None:
        """One message with each peer; as a batch, for which NCCL uses the group's communicator."""
        with reporting(self._groups, f"{self._doing}: {name}"):
            for work in dist.batch_isend_irecv([dist.P2POp(direction, packed, p, self._groups.world) for p in peers]):
                work.wait()

    def _meet(self, error: Exception | None) -> None:
        with together(self._groups, self._doing):
            if error is not None:
                raise error


def into(tensors: Mapping[str, Tensor]) -> Sink:
    """A sink that writes into tensors of the same shapes, of any type, strides and device."""

    def take(name: str, first: int, block: Tensor) -> None:
        target = tensors[name].detach()
        if not target.dim():
            target.copy_(block.view(()))
            return
        row = first // block.shape[1]
        target[row : row + len(block)].copy_(block.view(len(block), *target.shape[1:]))

    return take


def _own_parts(placed: PlacedModel) -> Iterable[tuple[Part, Tensor]]:
    """What this rank holds, each part with its values as a matrix."""
    sizes = table_sizes(placed.plan)
    for table in placed.lookup.tables:
        shard = placed.plan.shard(table)
        name, values = shard.table.parameter, placed.lookup.table_weight(table)
        yield Part(name, sizes[name], values.dtype, shard.parameter_rows, shard.parameter_columns), values
    for name, _, _, tensor in members(placed):
        values, shape = tensor.detach(), tuple(tensor.shape)
        height, width = _matrix(shape)
        yield Part(name, shape, values.dtype, range(height), range(width)), values.reshape(height, width)


def _first_holders(of_rank: Iterable[Iterable[Part]]) -> dict[str, dict[Part, int]]:
    """By name the parts of a tensor, each with the first rank that holds it."""
    found: dict[str, dict[Part, int]] = {}
    for rank, parts in enumerate(of_rank):
        for part in parts:
            found.setdefault(part.name, {}).setdefault(part, rank)
    return found


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor: one column for a vector, one entry for a number."""
    height = shape[0] if shape else 1
    return height, prod(shape[1:])


def _volume(parts: Iterable[Part]) -> int:
    return sum(len(part.rows) * len(part.columns) for part in parts)


def _inside(held: range, rows: range) -> range:
    """Which of the held rows, counted among them, lie in a range of step 1."""

    def before(row: int) -> int:
        return min(max(0, -(-(row - held.start) // held.step)), len(held))

    return range(before(rows.start), before(rows.stop))
