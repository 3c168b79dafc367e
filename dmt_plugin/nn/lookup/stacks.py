"""Tables that are asked for by distinct rows: one below the other, the *stack* of a rank.

1. Requests (:mod:`dmt_plugin.comm.distinct.requests`) name rows of the stack, whatever table they are of, and the
   lookup gives one row for each.
2. On FBGEMM the stack is one table. What is kept per table (values, states of its rule) is a range of the stack's.
3. On PyTorch every table is one by itself, so that each has its own number of updates and its own random bits: what is
   asked for is sorted by table, looked up table by table, and put in order again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from dmt_plugin.comm.batch_layout import BatchLayout
from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.nn.lookup.backends import on_torch
from dmt_plugin.nn.lookup.fbgemm import FbgemmTables
from dmt_plugin.nn.lookup.plain_torch import TorchTables
from dmt_plugin.nn.lookup.rounding import Place
from dmt_plugin.nn.lookup.site import Fill, LookupSite, write_start


@dataclass(frozen=True)
class Stack:
    """The tables of one group that one rank holds.

    Attributes:
        name: of the group.
        dim: entries of a row.
        tables: names and rows, in their order in the stack; may be empty.
    """

    name: str
    dim: int
    tables: tuple[tuple[str, int], ...]


class StackedTables:
    """A stack in a backend.

    Args:
        stack: its tables.
        weights: ``(rows, dim)`` starting values by table, or what writes them.
        rules: update rule by table: the same for all of the stack.
        backend: ``"auto"``, ``"fbgemm"`` or ``"torch"``.
        location: memory that holds the tables.
        device: of the computation.
        places: where in a parameter the rows and columns of a table are; by default, it is the parameter.
        seed: of stochastic rounding on PyTorch.

    Attributes:
        backend: what holds the tables; None without any.
    """

    def __init__(
        self,
        stack: Stack,
        weights: Mapping[str, Tensor | Fill],
        rules: Mapping[str, Rule],
        backend: str,
        location: str,
        device: torch.device,
        places: Mapping[str, Place] | None = None,
        seed: int = 0,
    ) -> None:
        self.stack = stack
        ends = list(accumulate((rows for _, rows in stack.tables), initial=0))
        self._ranges = {name: slice(a, b) for (name, _), a, b in zip(stack.tables, ends, ends[1:], strict=False)}
        self.backend: TorchTables | FbgemmTables | None = None
        self._still: frozenset[str] = frozenset()
        if not stack.tables:
            return
        own = {rules[name] for name in self._ranges}
        if len(own) > 1:
            raise ValueError(f"the tables {sorted(self._ranges)} of one stack have several update rules: {own}")
        rule = own.pop()
        whole = LookupSite(stack.name, stack.name, 0, ends[-1], stack.dim, "sum", False)
        refused = on_torch([whole], backend, {stack.name: rule}, device)
        if refused:
            sites = [LookupSite(name, name, 0, rows, stack.dim, "sum", False) for name, rows in stack.tables]
            instead = dict.fromkeys(self._ranges, refused[stack.name])
            self.backend = TorchTables(sites, weights, rules, device, places, seed, instead)
            return

        def fill(view: Tensor) -> None:
            for name, rows in self._ranges.items():
                write_start(view[rows], weights[name])

        self.backend = FbgemmTables([whole], {stack.name: fill}, rule, device, location)

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables held."""
        return tuple(self._ranges)

    def first_row(self, table: str) -> int:
        """Where a table begins in the stack."""
        return self._ranges[table].start

    def look_up(self, asked: Tensor) -> Tensor:
        """``(n, dim)`` rows by their number in the stack, ``(n,)``."""
        if self.backend is None:
            return torch.zeros(asked.numel(), self.stack.dim, device=asked.device)
        if isinstance(self.backend, TorchTables):
            return self._by_table(self.backend, asked)
        if not self._still:
            return self._whole(self.backend, asked, None)
        table = torch.bucketize(asked, self._starts(asked)[1:], right=True)
        still = torch.tensor([name in self._still for name in self._ranges], device=asked.device)[table]
        with torch.no_grad():
            rest = self._whole(self.backend, asked, still)
        return self._whole(self.backend, asked, ~still) + rest

    def _whole(self, backend: FbgemmTables, asked: Tensor, keep: Tensor | None) -> Tensor:
        """Rows of the stack; zeros where they are not to be kept, by empty bags."""
        rows, lengths = asked.numel(), None
        if keep is not None:
            asked, lengths = asked[keep], keep.long()
        routed = RoutedIds((asked,), (lengths,), (None,), BatchLayout(rows, ((rows,),)))
        return backend.forward(routed)[:, : self.stack.dim].contiguous()  # FBGEMM pads rows

    def _starts(self, asked: Tensor) -> Tensor:
        """Where each table begins, in the type of what is asked."""
        return torch.tensor([rows.start for rows in self._ranges.values()]).to(asked)

    def _by_table(self, backend: TorchTables, asked: Tensor) -> Tensor:
        starts = self._starts(asked)
        table = torch.bucketize(asked, starts[1:], right=True)
        order = torch.argsort(table, stable=True)
        parts = asked[order].split(torch.bincount(table, minlength=len(starts)).tolist())
        found = [
            backend.rows_of(name, part - rows.start)
            for (name, rows), part in zip(self._ranges.items(), parts, strict=True)
        ]
        return found[0] if len(found) == 1 else torch.cat(found)[torch.argsort(order)]

    def freeze(self, tables: Collection[str]) -> None:
        """These tables are not updated from now on, beside those whose rule is frozen; the others are."""
        if isinstance(self.backend, TorchTables):
            self.backend.freeze(tables)
        elif self.backend is not None:
            own = frozenset(tables).intersection(self._ranges)
            self._still = own if len(own) < len(self._ranges) else frozenset()
            self.backend.freeze(() if len(own) < len(self._ranges) else (self.stack.name,))

    def asked_by_table(self, asked: Tensor) -> dict[str, int]:
        """How many of the rows that are asked for, ``(n,)``, are of each table."""
        if len(self._ranges) < 2:
            return dict.fromkeys(self._ranges, asked.numel())
        table = torch.bucketize(asked, self._starts(asked)[1:], right=True)
        counts = torch.bincount(table, minlength=len(self._ranges))
        return dict(zip(self._ranges, counts.tolist(), strict=True))

    def weight(self, table: str) -> Tensor:
        """``(rows, dim)`` view of a table."""
        assert self.backend is not None
        if isinstance(self.backend, TorchTables):
            return self.backend.weight(table)
        return self.backend.weight(self.stack.name)[self._ranges[table]]

    def state(self, table: str) -> dict[str, Tensor]:
        """Views of the optimizer state of a table."""
        assert self.backend is not None
        if isinstance(self.backend, TorchTables):
            return self.backend.state(table)
        return {key: value[self._ranges[table]] for key, value in self.backend.state(self.stack.name).items()}

    @property
    def steps(self) -> dict[str, int]:
        """Updates so far of each table whose rule counts them; FBGEMM's rules do not."""
        return {} if self.backend is None else self.backend.steps

    def set_steps(self, steps: Mapping[str, int]) -> None:
        """How many updates tables have had."""
        if self.backend is not None:
            self.backend.set_steps(steps)


def all_names(stacks: Sequence[Stack]) -> list[str]:
    """Tables of all stacks."""
    return [name for stack in stacks for name, _ in stack.tables]
