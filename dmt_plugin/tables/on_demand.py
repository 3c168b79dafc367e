"""Rows of tables on the meta device, made when an operation asks for them, so that a check can compute with the tables.

A table on meta has a shape and no memory. For a check on one batch only the rows of that batch are needed:

1. Every such table gets virtual memory for all its rows: an anonymous private mapping. A page that nothing touches
   costs nothing, so tables may be larger than the machine.
2. Before an operation runs that reads a table, the rows that it reads are found: by the ids it is given (a lookup, an
   index), or by the part of the table that a view covers. Those that are not there yet are made by the table's
   :class:`~dmt_plugin.tables.sources.RowSource`; then the operation runs on the memory as on any other.
3. An operation that reads all rows of a table, or more than the budget allows, ends the check, and
   :class:`RowsNotMadeError` says why. So does one that reads another tensor without values.
4. Gradients of lookups are sparse meanwhile: a dense one is as large as the table.

Models hold the memory only while they run (:meth:`RowsOnDemand.held_by`); afterwards they have their own parameters.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dmt_plugin.core.errors import DMTError
from dmt_plugin.core.sizes import say_bytes
from dmt_plugin.tables.sources import RowSource

BUDGET = 256 * 2**20
"""Bytes of memory that the rows made for one check may touch."""

_BLOCK = 16 * 2**20
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # its number on Linux; Python names it since 3.13
_MAX_POOLING = 2
_aten = torch.ops.aten


class RowsNotMadeError(DMTError):
    """A check needs values that cannot be made for it, of tables or others on the meta device; the text says why."""


class RowsOnDemand:
    """The tables of a model that are on the meta device, with memory for the rows that a check reads.

    Args:
        tables: their parameters ``(rows, dim)``, by name.
        sources: where the rows of each come from.
        budget: bytes of memory that all rows together may touch; a row touches whole pages.

    Raises:
        RowsNotMadeError: there is no address space for them.
    """

    def __init__(
        self, tables: Mapping[str, nn.Parameter], sources: Mapping[str, RowSource], budget: int = BUDGET
    ) -> None:
        self._tables = {id(weight): _Table(name, weight, sources[name]) for name, weight in tables.items()}
        self._originals = list(tables.values())  # so that no other object gets the id of one
        self._budget = budget

    @contextmanager
    def held_by(self, *models: nn.Module) -> Iterator[None]:
        """The models compute with the rows; at the end they have their parameters on meta again, whatever happens.

        Raises:
            RowsNotMadeError: an operation asks for what cannot be made; also where the model caught it.
        """
        if not self._tables:
            yield
            return
        mode = _MakesRows(list(self._tables.values()), self._make)
        with ExitStack() as stack:
            for module in (module for model in models for module in model.modules()):
                own = {
                    name: self._tables[id(p)].weight for name, p in module._parameters.items() if id(p) in self._tables
                }
                if own:
                    stack.enter_context(mock.patch.dict(module._parameters, own))
            try:
                with mode:
                    yield
            except Exception as error:
                if mode.refused is None or error is mode.refused:
                    raise
                raise mode.refused from error
        if mode.refused is not None:
            raise mode.refused

    def _make(self, table: _Table, rows: Tensor, what: str) -> None:
        """Makes those of the rows that are not there yet."""
        missing = table.missing(rows)
        if not missing.numel():
            return
        pages = table.untouched_pages(missing)
        touched = sum(len(other.pages) for other in self._tables.values()) + len(pages)
        if touched * mmap.PAGESIZE > self._budget:
            raise RowsNotMadeError(
                f"with the rows that {what} reads of {table.name!r}, the check would take "
                f"{say_bytes(touched * mmap.PAGESIZE)} of memory for rows of tables, and it takes "
                f"{say_bytes(self._budget)} at most; give a smaller example batch"
            )
        table.make(missing, pages)


class _Table:
    """One table in virtual memory.

    Attributes:
        weight: what stands for the parameter, ``(rows, dim)``.
        address: where its memory begins.
        pages: the pages of it that hold rows.
    """

    def __init__(self, name: str, meta: nn.Parameter, source: RowSource) -> None:
        self.name, self.source = name, source
        self.rows, self.dim = meta.shape
        self.row_bytes = self.dim * meta.element_size()
        size = max(self.rows * self.row_bytes, 1)
        try:
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
        except (OSError, ValueError, OverflowError) as error:
            raise RowsNotMadeError(f"no address space for {name!r}, {say_bytes(size)}: {error}") from error
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # else a row might take 2 MiB

        # Two tensors over one memory: to autograd, rows that are made later are no change of the parameter.
        self._values, stand_in = (
            torch.frombuffer(memory, dtype=torch.uint8)[: self.rows * self.row_bytes]
            .view(meta.dtype).view(meta.shape) for _ in range(2)
        )  # fmt: skip
        self.weight = nn.Parameter(stand_in, requires_grad=meta.requires_grad)
        self.address = self.weight.untyped_storage().data_ptr()
        self.pages: set[int] = set()
        self._made = torch.zeros(0, dtype=torch.int64)

    def missing(self, rows: Tensor) -> Tensor:
        """Those of the rows that the table has and that are not made yet, ascending."""
        asked = rows.unique()
        asked = asked[(asked >= 0) & (asked < self.rows)]
        return asked[~torch.isin(asked, self._made)]

    def untouched_pages(self, rows: Tensor) -> set[int]:
        """Pages of memory that these rows would be the first to touch."""
        first, last = rows * self.row_bytes // mmap.PAGESIZE, ((rows + 1) * self.row_bytes - 1) // mmap.PAGESIZE
        return set(_between(first, last).tolist()) - self.pages

    def make(self, rows: Tensor, pages: set[int]) -> None:
        """Makes rows, none of which is there yet."""
        for some in rows.split(max(_BLOCK // self.row_bytes, 1)):
            values = torch.empty(len(some), self.dim, dtype=self._values.dtype)
            self.source.fill(some, range(self.dim), values)
            self._values[some] = values
        self._made = torch.cat([self._made, rows])
        self.pages |= pages

    def rows_of(self, view: Tensor, dim: int, places: Tensor | None, what: str) -> Tensor:
        """Rows that a view of the table covers, at some places of one of its dimensions or at all of them.

        Raises:
            RowsNotMadeError: ``what`` reads all rows wherever the places are, or so many that they cannot be listed.
        """
        if not view.numel():
            return torch.zeros(0, dtype=torch.int64)
        across = [(n - 1) * step for k, (n, step) in enumerate(zip(view.shape, view.stride(), strict=True))
                  if places is None or k != dim]  # fmt: skip
        if places is None:
            first = torch.tensor([view.storage_offset()])
        else:
            places = places.to("cpu", torch.int64).unique()
            places = torch.where(places < 0, places + view.shape[dim], places)
            places = places[(places >= 0) & (places < view.shape[dim])]  # others are an error of the operation's own
            first = places * view.stride(dim) + int(view.storage_offset())
        begin, end = first // self.dim, (first + sum(across)) // self.dim
        most = int((end - begin).max()) + 1 if begin.numel() else 0
        every = most == self.rows and (places is None or self.rows > 1)
        if every or most * begin.numel() * self.row_bytes > 2 * BUDGET:
            raise RowsNotMadeError(
                f"{what} reads {'all ' if every else ''}{most * begin.numel():,} rows of {self.name!r}, which is on "
                "the meta device; for a check, only rows are made that are looked up by ids"
            )
        return _between(begin, end)


def _between(first: Tensor, last: Tensor) -> Tensor:
    """All numbers from ``first`` to ``last``, pair by pair: two vectors -> one, ascending."""
    most = int((last - first).max()) + 1 if first.numel() else 0
    return torch.cat([torch.minimum(first + i, last) for i in range(most)]).unique() if most else first


def _by_index(table: Tensor, indices: Sequence[Tensor | None]) -> tuple[Tensor, int, Tensor | None]:
    """What ``table[indices]`` reads, by its first index."""
    dim, index = next((i, index) for i, index in enumerate(indices) if index is not None)
    if index.dtype not in (torch.bool, torch.uint8):
        return table, dim, index
    return table, dim, index.nonzero()[:, 0] if index.dim() == 1 else None


def _by_ids(table: Tensor, ids: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, int, Tensor]:
    return table, 0, ids


def _by_places(table: Tensor, dim: int, places: Tensor, **more: Any) -> tuple[Tensor, int, Tensor]:
    return table, dim % table.dim(), places


def _all_of(*args: Any, **more: Any) -> tuple[None, int, None]:
    return None, 0, None


_READS: dict[Any, Callable[..., tuple[Tensor | None, int, Tensor | None]]] = {
    _aten.embedding: _by_ids,
    _aten.embedding_bag: _by_ids,
    _aten._embedding_bag: _by_ids,
    _aten._embedding_bag_forward_only: _by_ids,
    _aten._embedding_bag_per_sample_weights_backward: lambda grad, *args, **more: _by_ids(*args, **more),
    _aten.embedding_renorm_: _by_ids,
    _aten.index: _by_index,
    _aten.index_select: _by_places,
    _aten.gather: _by_places,
}
"""Operations that read rows by ids: from their arguments the table, a dimension of it, and the places in that."""


class _MakesRows(TorchDispatchMode):
    """Has rows made before each operation that reads them.

    Attributes:
        refused: why an operation was not run.
    """

    def __init__(self, tables: Sequence[_Table], make: Callable[[_Table, Tensor, str], None]) -> None:
        super().__init__()
        self._tables, self._make = {table.address: table for table in tables}, make
        self._heights = {table.rows for table in tables}
        self.refused: RowsNotMadeError | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        try:
            func, args = self._gradient(func, args)
            self._before(func, func._schema.name.removeprefix("aten::"), args, kwargs)
        except RowsNotMadeError as error:
            self.refused = error
            raise
        return func(*args, **kwargs)

    def _gradient(self, func: Any, args: Any) -> tuple[Any, Any]:
        """The operation, but for the gradient of a lookup one that makes it sparse, if there is one."""
        shape: Sequence[int] = ()
        if func is _aten.embedding_dense_backward.default:
            grad, _, rows, _, by_counts = args
            if rows in self._heights and not by_counts:
                return _aten.embedding_sparse_backward.default, args
            shape = (rows, grad.shape[-1])
        elif func is _aten._embedding_bag_backward.default:
            rows, by_counts, pooling, sparse = args[6:10]
            if rows in self._heights and not by_counts and pooling != _MAX_POOLING:
                return func, (*args[:9], True, *args[10:])
            shape = () if sparse else (rows, args[0].shape[-1])
        elif func is _aten.new_zeros.default:
            shape = args[1]
        if self._heights.intersection(shape) and math.prod(shape) * args[0].element_size() > BUDGET:
            size = say_bytes(math.prod(shape) * args[0].element_size())
            raise RowsNotMadeError(f"the gradient of a table would be dense and take {size}")
        return func, args

    def _before(self, func: Any, name: str, args: Any, kwargs: Any) -> None:
        if func.is_view or name.startswith("new_") or name.endswith("_like"):
            return  # these ask for shapes only
        for value in pytree.tree_leaves((args, kwargs)):
            if type(value) not in (Tensor, nn.Parameter) or value.layout is not torch.strided:
                continue
            if value.is_meta:
                raise RowsNotMadeError(f"{name} reads a tensor that is on the meta device and is no table")
            table = self._tables.get(value.untyped_storage().data_ptr())
            if table is None:
                continue
            read, dim, places = _READS.get(func.overloadpacket, _all_of)(*args, **kwargs)
            rows = table.rows_of(value, dim, places if read is value else None, name)
            self._make(table, rows, name)
