"""Single rows of a model's tables, read and written on all ranks together.

1. A name is that of a table, whose rows are counted from its own first, or that of a parameter of the flat model.
2. To read, ids go to all ranks; every owner puts the bits of what it holds into zeros, and their sum has all of them.
3. To write, rank 0's ids and values go to all ranks, and every owner takes what it holds.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dmt_plugin.checkpoint.state import table_sizes
from dmt_plugin.core.errors import DMTError, IdRangeError
from dmt_plugin.integrations.deepspeed.engine.state import DMTState
from dmt_plugin.plan.tables import TableShard
from dmt_plugin.topology.agreement import gather, together
from dmt_plugin.topology.lost_ranks import reporting

BLOCK_ENTRIES = 1 << 22
"""Entries of rows that travel at once."""


@torch.no_grad()
def read_rows(dmt: DMTState, name: str, ids: Any) -> Tensor:
    """See :meth:`.FlatAccess.table_rows`."""
    with together(dmt.groups, f"table_rows({name!r})"):
        asked = _Asked(dmt, name, ids)
    dmt.lookup.settle()
    of_rank = gather(dmt.groups, asked.ids, f"table_rows({name!r})")
    if all(torch.equal(other, of_rank[0]) for other in of_rank):
        return asked.collect(of_rank[0])
    own = torch.empty(0)
    for rank, other in enumerate(of_rank):  # all ranks take part in each, and each keeps its own
        found = asked.collect(other)
        own = found if rank == dmt.groups.rank else own
    return own


@torch.no_grad()
def write_rows(dmt: DMTState, name: str, ids: Any, values: Any) -> None:
    """See :meth:`.FlatAccess.set_table_rows`."""
    groups, doing = dmt.groups, f"set_table_rows({name!r})"
    with together(groups, doing):
        asked = _Asked(dmt, name, ids if groups.rank == 0 else ())
        if groups.rank == 0:
            asked.check(values)
    rows = gather(groups, asked.ids, doing)[0]
    dmt.lookup.settle()
    step = max(1, BLOCK_ENTRIES // asked.dim)
    for first in range(0, len(rows), step):
        some = rows[first : first + step]
        block = torch.empty(len(some), asked.dim, device=groups.device)
        if groups.rank == 0:
            block.copy_(values[first : first + step])
        with reporting(groups, doing):
            dist.broadcast(block, 0, group=groups.world)
        for shard in asked.shards:
            mine, within = _held(shard, some)
            target = dmt.lookup.table_weight(shard.name)
            part = block[mine.to(block.device), shard.first_column : shard.first_column + shard.columns]
            target.index_copy_(0, within.to(target.device), part.to(target.device, target.dtype))


class _Asked:
    """Rows of a parameter that were asked for.

    Args:
        dmt: the plugin's part of the engine.
        name: see the module's docstring.
        ids: numbers of rows.

    Attributes:
        ids: numbers of rows of the parameter, int64 on the CPU.
        shards: what this rank holds of the parameter.
        dim: entries of a row.

    Raises:
        DMTError: there is no such table, or ids are no whole numbers.
        IdRangeError: it has no such row.
    """

    def __init__(self, dmt: DMTState, name: str, ids: Any) -> None:
        self._dmt, self._name = dmt, name
        sizes = table_sizes(dmt.plan)
        of_name = {table.name: table for table in dmt.plan.tables}
        if name in of_name:
            parameter, first, rows = of_name[name].parameter, of_name[name].first_row, of_name[name].rows
        elif name in sizes:
            parameter, first, rows = name, 0, sizes[name][0]
        else:
            raise DMTError(f"the model has no table {name!r}; it has {sorted(of_name)[:8]}")
        found = torch.as_tensor(ids).detach().cpu()
        if found.numel() and (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
            raise DMTError(f"ids are {found.dtype}; expected whole numbers of rows of {name}")
        if found.dim() != 1:
            raise DMTError(f"ids have the shape {list(found.shape)}; expected a vector of rows of {name}")
        found = found.to(torch.int64)
        outside = found[(found < 0) | (found >= rows)]
        if len(outside):
            raise IdRangeError(f"{name} has the rows 0 to {rows - 1}; asked for {int(outside[0])}")
        self.ids, self.dim = found + first, sizes[parameter][1]
        of_table = [dmt.plan.shard(table) for table in dmt.lookup.tables]
        self.shards: list[TableShard] = [shard for shard in of_table if shard.table.parameter == parameter]

    def check(self, values: Any) -> None:
        """Raises:
        DMTError: the values are not one row for each id, or an id comes twice.
        """
        shape = (len(self.ids), self.dim)
        if not isinstance(values, Tensor) or tuple(values.shape) != shape or not values.is_floating_point():
            given = f"{list(values.shape)} {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
            raise DMTError(
                f"set_table_rows({self._name!r}) got {given} for {len(self.ids)} rows; expected a tensor of "
                f"floating-point numbers of shape {list(shape)}"
            )
        once, counts = self.ids.unique(return_counts=True)
        if len(once) != len(self.ids):
            raise DMTError(f"set_table_rows({self._name!r}): row {int(once[counts > 1][0])} comes more than once")

    def collect(self, ids: Tensor) -> Tensor:
        """These rows, from all owners, on this process's device for tables; a collective."""
        groups = self._dmt.groups
        found = torch.zeros(len(ids), self.dim, device=groups.device)
        step = max(1, BLOCK_ENTRIES // self.dim)
        first_holders = self._first_holders()
        for first in range(0, len(ids), step):
            some, block = ids[first : first + step], found[first : first + step]
            for shard in self.shards:
                if first_holders[shard.name] == groups.rank:
                    mine, within = _held(shard, some)
                    weight = self._dmt.lookup.table_weight(shard.name)
                    values = weight[within.to(weight.device)].to(block.device, block.dtype)
                    columns = slice(shard.first_column, shard.first_column + shard.columns)
                    block[mine.to(block.device), columns] = values
            with reporting(groups, f"table_rows({self._name!r})"):
                dist.all_reduce(block.view(torch.int32), group=groups.world)  # bits: one owner's and zeros
        return found

    def _first_holders(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for rank, names in enumerate(gather(self._dmt.groups, [shard.name for shard in self.shards])):
            for name in names:
                found.setdefault(name, rank)
        return found


def _held(shard: TableShard, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Places in ``ids`` of the rows that a shard holds, and the numbers of these rows in the shard."""
    rows = shard.parameter_rows
    held = (ids >= rows.start) & (ids < rows.stop) & ((ids - rows.start) % rows.step == 0)
    places = held.nonzero()[:, 0]
    return places, (ids[places] - rows.start) // rows.step
