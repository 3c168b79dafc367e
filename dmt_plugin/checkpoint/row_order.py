"""The order in which the rows of a tensor are stored: that of their numbers, but for tables in rows by modulo.

What a rank holds of such a table are rows a step apart, and what is written are blocks of neighbours. So the rows of
such a table are stored by remainder: with step 4 first the rows 0, 4, 8, ..., then 1, 5, 9, ... Each shard is then a
block, and whoever reads looks up where a row is. The manifest has an entry for every such table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmt_plugin.checkpoint.manifest import StoredByModulo, TensorEntry
from dmt_plugin.checkpoint.rows import Rows
from dmt_plugin.plan.tables import TableShard
from dmt_plugin.plan.tower_plan import TowerPlan


class RowOrder:
    """Where rows are stored.

    Args:
        tables: the tables in the tensor that are stored by modulo.
    """

    def __init__(self, tables: Sequence[StoredByModulo]) -> None:
        self._tables = tables

    def places(self, rows: range | Tensor) -> Tensor:
        """Where rows are stored, by their numbers ``(n,)``."""
        found = _numbers(rows)
        for table in self._tables:
            inside = (found >= table.first_row) & (found < table.first_row + table.rows)
            own = found[inside] - table.first_row
            remainder, number = own % table.step, torch.div(own, table.step, rounding_mode="floor")
            short, longer = divmod(table.rows, table.step)
            before = remainder * short + remainder.clamp(max=longer)
            found[inside] = table.first_row + before + number
        return found

    def rows(self, places: range | Tensor) -> Tensor:
        """The numbers of the rows that are stored at some places ``(n,)``."""
        found = _numbers(places)
        for table in self._tables:
            inside = (found >= table.first_row) & (found < table.first_row + table.rows)
            own = found[inside] - table.first_row
            short, longer = divmod(table.rows, table.step)
            border = longer * (short + 1)
            rest = own - border
            of_rest = torch.div(rest, max(short, 1), rounding_mode="floor")
            early = torch.div(own, short + 1, rounding_mode="floor")
            remainder = torch.where(own < border, early, longer + of_rest)
            number = torch.where(own < border, own % (short + 1), rest % max(short, 1))
            found[inside] = table.first_row + number * table.step + remainder
        return found


@dataclass(frozen=True)
class OrderedRows:
    """A stored tensor by the numbers of its rows.

    Attributes:
        stored: as it is stored.
        order: where its rows are.
    """

    stored: Rows
    order: RowOrder

    @property
    def shape(self) -> tuple[int, int]:
        """See :class:`dmt_plugin.checkpoint.rows.Rows`."""
        return self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        """See :class:`dmt_plugin.checkpoint.rows.Rows`."""
        return self.stored.dtype

    def fill(self, rows: range | Tensor, columns: range, out: Tensor) -> None:
        """See :meth:`dmt_plugin.checkpoint.rows.Rows.fill`."""
        self.stored.fill(self.order.places(rows), columns, out)


@dataclass(frozen=True)
class RearrangedRows(OrderedRows):
    """A stored tensor as if it were stored in another order.

    Attributes:
        wanted: that other order.
    """

    wanted: RowOrder

    def fill(self, rows: range | Tensor, columns: range, out: Tensor) -> None:
        """See :meth:`dmt_plugin.checkpoint.rows.Rows.fill`; ``rows`` are places in the other order."""
        self.stored.fill(self.order.places(self.wanted.rows(rows)), columns, out)


def in_order(rows: Rows, entry: TensorEntry | None) -> Rows:
    """A stored tensor by the numbers of its rows, as the manifest's entry says where they are."""
    return OrderedRows(rows, RowOrder(entry.by_modulo)) if entry is not None and entry.by_modulo else rows


def rearranged(rows: Rows, entry: TensorEntry | None, wanted: TensorEntry | None) -> Rows:
    """A stored tensor in the order that another manifest's entry says."""
    own, other = entry.by_modulo if entry else (), wanted.by_modulo if wanted else ()
    return rows if own == other else RearrangedRows(rows, RowOrder(own), RowOrder(other))


def stored_by_modulo(plan: TowerPlan) -> dict[str, tuple[StoredByModulo, ...]]:
    """The tables of a plan that are stored by modulo, by the parameter that holds them."""
    found: dict[str, tuple[StoredByModulo, ...]] = {}
    for table in plan.tables:
        step = plan.shards_of(table.name)[0].step
        if step > 1:
            own = StoredByModulo(table.first_row, table.rows, step)
            found[table.parameter] = (*found.get(table.parameter, ()), own)
    return found


def stored_row(shard: TableShard) -> int:
    """Where the first row of a shard is stored, in the parameter that holds its table; the others follow it."""
    table = shard.table
    order = RowOrder([StoredByModulo(table.first_row, table.rows, shard.step)] if shard.step > 1 else [])
    first = shard.parameter_rows[:1]
    return int(order.places(first)[0])


def _numbers(rows: range | Tensor) -> Tensor:
    if isinstance(rows, Tensor):
        return rows.detach().cpu().clone()
    return torch.arange(rows.start, rows.stop, rows.step)
