"""Lookup and pooling of the tables one rank owns.

1. every table is given to a backend: FBGEMM where it is exact, else PyTorch (or the one that was asked for);
2. forward lets each backend pool its sites and puts the columns in the order of the sites;
3. at the border of this module (:mod:`dmt_plugin.nn.lookup.border`) rows take the dtype that the model computes in,
   and the gradient that enters the backends is multiplied by ``grad_scale``;
4. FBGEMM updates its tables inside backward, PyTorch's are updated by ``step``. Where several micro-batches make one
   step, or a table is read in two ways (:mod:`dmt_plugin.nn.lookup.stack_sites`), FBGEMM's gradients are held back,
   and ``step`` updates the tables once, by all of them;
5. ``watch_gradients`` delays every update until ``step``, and notes of each gradient that enters the backends its least
   and largest entry: ``finite`` says whether ``step`` would do harm, and ``zero_grad`` drops what was collected.

The tables are neither parameters nor buffers of the module: an engine that walks over parameters must not
broadcast, cast or decay shards that differ from rank to rank. They go in and out by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from dmt_plugin.comm.batch_layout import BatchLayout
from dmt_plugin.comm.distinct.requests import Requests
from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.comm.micro_blocks import layouts_of
from dmt_plugin.core.finite import all_finite, bounds_of
from dmt_plugin.core.update_rule import RULES, Rule
from dmt_plugin.nn.lookup.backends import check_location, column_runs, make_backends
from dmt_plugin.nn.lookup.border import CutBlocks, OneBlock, ScaleGradient, WholeGradient
from dmt_plugin.nn.lookup.plain_torch import TorchTables
from dmt_plugin.nn.lookup.rounding import Place
from dmt_plugin.nn.lookup.site import Fill, LookupSite, Pools, Tables, check_sites
from dmt_plugin.nn.lookup.stack_sites import StackSites
from dmt_plugin.nn.lookup.stacks import Stack, StackedTables, all_names

LOCATIONS = ("auto", "host", "device", "managed", "managed_caching")


class ShardedLookup(nn.Module):
    """Lookups of one rank; its tables are no parameters of the module.

    Args:
        sites: the lookups, in the order of the output's columns; may be empty.
        weights: ``(rows, dim)`` starting values by table, which are copied, or what writes them: then a table is never
            in memory twice.
        backend: ``"auto"``, ``"fbgemm"`` or ``"torch"``.
        optimizer: one of ``dmt_plugin.core.update_rule.RULES``.
        lr: learning rate of the tables.
        eps: added to the denominator of Adagrad and Adam.
        rules: update rule by table, in place of the three before.
        location: memory that holds the tables, one of ``LOCATIONS``; what is not the memory of ``device`` itself
            needs FBGEMM and an accelerator.
        device: device of the computation.
        places: where in a parameter the rows and columns of a table are; by default, it is the parameter.
        seed: of stochastic rounding on PyTorch.
        stacks: tables that are asked for by distinct rows, in the order of the groups of the requests; sites may read
            them as well, one row per sample.

    Attributes:
        grad_scale: factor on the gradient that enters the tables, read in forward.
        row_dtype: dtype of the rows that ``forward`` gives, whatever type the tables are kept in.
        rules: update rule by table.

    Raises:
        ValueError: sites contradict each other or the weights, ``"fbgemm"`` cannot serve a table exactly, or tables
            cannot be in the memory asked for.
        PairingError: fbgemm is asked for, or installed, but cannot be loaded.
    """

    def __init__(
        self,
        sites: Sequence[LookupSite],
        weights: Mapping[str, Tensor | Fill],
        *,
        backend: str = "auto",
        optimizer: str = "rowwise_adagrad",
        lr: float = 0.01,
        eps: float = 1e-8,
        rules: Mapping[str, Rule] | None = None,
        location: str = "auto",
        device: torch.device | str = "cpu",
        places: Mapping[str, Place] | None = None,
        seed: int = 0,
        stacks: Sequence[Stack] = (),
    ) -> None:
        super().__init__()
        for key, value, known in (
            ("optimizer", optimizer, RULES),
            ("backend", backend, ("auto", "fbgemm", "torch")),
            ("location", location, LOCATIONS),
        ):
            if value not in known:
                raise ValueError(f"dmt.lookup.{key}: {value!r} found, one of {', '.join(known)} expected")
        check_sites(sites, weights)
        self.sites = tuple(sites)
        self.device = torch.device(device)
        names = dict.fromkeys([*(site.table for site in sites), *all_names(stacks)])
        self.rules = {name: rules[name] if rules else Rule(optimizer, lr, eps) for name in names}  # type: ignore[arg-type]
        self._rates = {name: rule.lr for name, rule in self.rules.items()}
        self.grad_scale = 1.0
        self.row_dtype = torch.float32
        asked_for = set(all_names(stacks))
        alone = [site for site in sites if site.table not in asked_for]
        # A tuple hides the backends, which are or hold modules, from nn.Module's registration.
        self._backends: tuple[Tables, ...] = tuple(
            make_backends(alone, weights, backend, self.rules, location, self.device, places, seed)
        )
        self._stacks = tuple(
            StackedTables(stack, weights, self.rules, backend, location, self.device, places, seed) for stack in stacks
        )
        holders: list[Tables | StackedTables] = [*self._backends, *self._stacks]
        shared = [(stack, [site for site in sites if site.table in stack.tables]) for stack in self._stacks]
        self._pooled: tuple[Pools, ...] = (*self._backends, *(StackSites(stack, own) for stack, own in shared if own))
        self._read_twice = [sites.held for sites in self._pooled if isinstance(sites, StackSites) and sites.held]
        self._backends += tuple(stack.backend for stack in self._stacks if stack.backend is not None)
        check_location(location, self.device, self._backends)
        self._holders = tuple(holders)
        self._of_table = {table: tables for tables in self._holders for table in tables.tables}
        self._order = column_runs(self.sites, self._pooled)
        self.cut_rows = _CutRows(self)
        self.distinct = _Distinct(self)
        self._watches = False
        self._bounds: list[Tensor] = []
        self.hold_gradients(False, once=False)

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables of this rank."""
        return tuple(self._of_table)

    def backend_of(self, table: str) -> str:
        """``"fbgemm"`` or ``"torch"``."""
        found = self._find(table)
        held_by = found.backend if isinstance(found, StackedTables) else found
        return "torch" if isinstance(held_by, TorchTables) else "fbgemm"

    @property
    def instead_of_fbgemm(self) -> dict[str, str]:
        """Why FBGEMM, which was asked, does not have a table that PyTorch looks up, by table."""
        on_torch = [tables for tables in self._backends if isinstance(tables, TorchTables)]
        return {table: why for tables in on_torch for table, why in tables.instead.items() if why}

    def forward(self, routed: RoutedIds, scaled: bool = True) -> Tensor:
        """Pool the ids of all sites.

        Args:
            routed: ids of all rows.
            scaled: whether rows take their dtype, and their gradient its scale, here; else ``cut`` does that.

        Returns:
            ``(rows, sum of dims)``, columns in the order of the sites; the mean of an empty bag is zero.
        """
        if not self._pooled:
            return torch.zeros(routed.layout.rows, 0, device=self.device, dtype=self.row_dtype)
        for site in self.sites:
            if site.weighted and routed.weights[site.slot] is None:
                raise ValueError(f"lookup '{site.name}' is weighted, but its ids came without weights")
        outputs = [tables.forward(routed) for tables in self._pooled]
        if self._order is None:
            pooled = outputs[0]
        else:
            pooled = torch.cat([outputs[b][:, start:end] for b, start, end in self._order], dim=1)
        self._watch(pooled)
        return self._scaled(pooled) if scaled else pooled

    def look_up_distinct(self, requests: Requests) -> tuple[tuple[Tensor, ...], ...]:
        """The rows that ranks ask for, each looked up once, whatever the blocks.

        Returns:
            By group of tables, in the order of the requests, one ``(n, width)`` for each micro-block.
        """
        found = []
        for stack, group in zip(self._stacks, requests.groups, strict=True):
            rows = stack.look_up(group.asked)
            self._watch(rows)
            found.append(self._cut(rows, group.asked_by_block))
        return tuple(found)

    def asked_by_table(self, requests: Requests) -> dict[str, int]:
        """How many rows of each table of this rank are asked for."""
        pairs = zip(self._stacks, requests.groups, strict=True)
        return {name: n for stack, group in pairs for name, n in stack.asked_by_table(group.asked).items()}

    def _watch(self, rows: Tensor) -> None:
        if self._watches and rows.requires_grad:
            rows.register_hook(self._note)  # of the gradient behind the scale, be it whole or put together by blocks

    def _scaled(self, rows: Tensor) -> Tensor:
        if self.row_dtype == rows.dtype and (self.grad_scale == 1.0 or not rows.requires_grad):
            return rows
        scaled: Tensor = ScaleGradient.apply(rows, self.grad_scale, self.row_dtype)
        return scaled

    def cut(self, rows: Tensor, layout: BatchLayout, blocks: int) -> tuple[Tensor, ...]:
        """Cut rows that came out of ``forward`` without its scale into micro-blocks, whose gradients are scaled.

        A gradient is scaled when that of its block arrives, into its place in that of all rows: while other blocks
        are still on the way, and in one pass over the memory.

        Args:
            rows: ``(layout.rows, width)``, sorted by block.
            layout: of the whole batch.
            blocks: number of blocks.
        """
        return self._cut(rows, [part.rows for part in layouts_of(layout, blocks)])

    def _cut(self, rows: Tensor, sizes: Sequence[int]) -> tuple[Tensor, ...]:
        if len(sizes) == 1:
            return (self._scaled(rows),)
        if not rows.requires_grad:
            return rows.to(self.row_dtype).split(sizes)
        whole = WholeGradient(sizes, self.grad_scale, rows.dtype, self.row_dtype)
        parts = CutBlocks.apply(rows, whole)
        return tuple(OneBlock.apply(part, whole, block) for block, part in enumerate(parts))

    def hold_gradients(self, hold: bool, once: bool = True) -> None:
        """Say how the forward passes from now on count towards a step.

        Args:
            hold: Other micro-batches belong to the same step: gradients wait until ``step``.
            once: Updating a table twice between two calls of ``zero_grad`` is an error.
        """
        for tables in self._backends:
            tables.hold_gradients(hold or tables in self._read_twice, once)

    def watch_gradients(self, watch: bool) -> None:
        """Say whether updates wait for ``step``, with ``finite`` to tell before whether they would do harm."""
        self._watches = watch
        for tables in self._backends:
            tables.delay_updates(watch)

    @property
    def finite(self) -> Tensor:
        """Whether all row gradients since ``zero_grad`` are finite: a bool scalar on ``device``, not waited for."""
        return all_finite(self._bounds, self.device)

    def _note(self, gradient: Tensor) -> None:
        self._bounds += bounds_of([gradient.detach()])

    @property
    def holds(self) -> bool:
        """Whether gradients of this step are held back."""
        return any(tables.holds for tables in self._backends)

    def step(self) -> None:
        """Update the tables by the gradients collected; FBGEMM's may have been updated in backward (see above)."""
        for tables in self._backends:
            tables.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget collected table gradients."""
        self._bounds.clear()
        for tables in self._backends:
            tables.zero_grad()

    def freeze(self, tables: Collection[str]) -> None:
        """From now on these tables are not updated, beside those whose rule is frozen; all others are.

        What is kept for their updates stays as it is, so that these can go on later. To be called between two steps.

        Args:
            tables: names; those of other ranks' tables are no error.
        """
        for own in self._holders:
            own.freeze(tables)

    def set_lr(self, lr: float | Callable[[Rule], float]) -> None:
        """Set the learning rate of the updates to come: of all tables, or by their rule."""
        lr_of = lr if callable(lr) else lambda rule: lr
        self._rates = {name: 0.0 if rule.frozen else lr_of(rule) for name, rule in self.rules.items()}
        for tables in self._backends:
            tables.set_lr(lr_of)

    @property
    def lr(self) -> float:
        """Learning rate of the next update; where tables have several, the largest; 0 without tables."""
        return max(self._rates.values(), default=0.0)

    @property
    def rates(self) -> dict[str, float]:
        """Learning rate of the next update, by table."""
        return dict(self._rates)

    @property
    def steps(self) -> dict[str, int]:
        """Updates so far of each table whose rule counts them: Adam's and Lamb's."""
        return {table: count for tables in self._holders for table, count in tables.steps.items()}

    def set_steps(self, steps: Mapping[str, int]) -> None:
        """How many updates tables have had; names of other ranks' tables are no error."""
        for tables in self._holders:
            tables.set_steps({table: count for table, count in steps.items() if table in tables.tables})

    def settle(self) -> None:
        """Write back what an accelerator has cached of tables, and drop it: before views are saved, or written to."""
        for tables in self._backends:
            tables.settle()

    def table_weight(self, name: str) -> Tensor:
        """``(rows, dim)`` current values of a table, without gradient; a view."""
        return self._find(name).weight(name)

    def load_table(self, name: str, weight: Tensor) -> None:
        """Overwrite a table with ``(rows, dim)`` values."""
        _copy(self._find(name).weight(name), weight, f"table '{name}'")

    def optimizer_state(self, name: str) -> dict[str, Tensor]:
        """Optimizer state of a table by name, ``(rows,)`` or ``(rows, dim)`` (see ``Rule.states``); views."""
        return self._find(name).state(name)

    def load_optimizer_state(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Overwrite the optimizer state of a table with what ``optimizer_state`` gave."""
        own = self._find(name).state(name)
        if set(own) != set(state):
            raise ValueError(
                f"table '{name}': optimiser state {sorted(own)} expected, {sorted(state)} found; it was saved "
                "under another dmt.lookup.optimizer"
            )
        for key, value in own.items():
            _copy(value, state[key], f"optimiser state '{key}' of table '{name}'")

    def extra_repr(self) -> str:
        """Counts of sites and tables."""
        return f"sites={len(self.sites)}, tables={len(self.tables)}"

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each table of this rank."""
        return {name: tuple(tables.weight(name).shape) for name, tables in self._of_table.items()}  # type: ignore[misc]

    def _find(self, table: str) -> Tables | StackedTables:
        if table not in self._of_table:
            raise KeyError(f"this rank has no table '{table}'; it has {sorted(self._of_table)}")
        return self._of_table[table]


class _CutRows(nn.Module):
    """``ShardedLookup.cut`` as a graph node."""

    def __init__(self, lookup: ShardedLookup) -> None:
        super().__init__()
        self._lookup = (lookup,)  # a tuple hides it: the lookup holds this module

    def forward(self, rows: Tensor, layout: BatchLayout, blocks: int) -> tuple[Tensor, ...]:
        """See :meth:`ShardedLookup.cut`."""
        return self._lookup[0].cut(rows, layout, blocks)


class _Distinct(nn.Module):
    """``ShardedLookup.look_up_distinct`` as a graph node."""

    def __init__(self, lookup: ShardedLookup) -> None:
        super().__init__()
        self._lookup = (lookup,)  # a tuple hides it: the lookup holds this module

    def forward(self, requests: Requests) -> tuple[tuple[Tensor, ...], ...]:
        """See :meth:`ShardedLookup.look_up_distinct`."""
        return self._lookup[0].look_up_distinct(requests)


@torch.no_grad()
def _copy(target: Tensor, source: Tensor, what: str) -> None:
    if target.shape != source.shape:
        raise ValueError(f"{what} has shape {tuple(target.shape)}, found {tuple(source.shape)}")
    target.copy_(source)
