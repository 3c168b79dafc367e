"""Lookups on plain PyTorch: ``F.embedding_bag`` with sparse gradients, the exactness reference; knows every rule.

1. forward pools the ids of each site from its table; gradients of all sites of a table, and of all backward passes
   since ``zero_grad``, are collected as rows beside their numbers, so that nothing as large as a table is made;
2. ``step`` adds up what belongs to one row, and applies the table's rule once to every row that was looked up;
3. rows that are kept in 16 bits are widened when they are looked up: pooling, gradients and updates are those of fp32,
   and an updated row is rounded once, when it is written (:mod:`.rounding`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.nn.lookup.border import watched
from dmt_plugin.nn.lookup.max_pooling import max_bags
from dmt_plugin.nn.lookup.rounding import TORCH_TYPES, Place, written
from dmt_plugin.nn.lookup.site import Fill, LookupSite, write_start
from dmt_plugin.nn.lookup.site_ids import ids_of
from dmt_plugin.nn.lookup.updates import new_states, updated


class TorchTables:
    """Tables of one rank as leaf tensors.

    Args:
        sites: lookups to serve.
        weights: ``(rows, dim)`` starting values of each table, which are copied, or what writes them.
        rules: update rule of each table.
        device: where tables live.
        places: where in a parameter the rows and columns of a table are; by default, it is the parameter.
        seed: of stochastic rounding.
        instead: by table why FBGEMM does not have it; none where it was not asked.

    Attributes:
        instead: as given.
    """

    def __init__(
        self,
        sites: Sequence[LookupSite],
        weights: Mapping[str, Tensor | Fill],
        rules: Mapping[str, Rule],
        device: torch.device,
        places: Mapping[str, Place] | None = None,
        seed: int = 0,
        instead: Mapping[str, str] | None = None,
    ) -> None:
        self.sites = tuple(sites)
        self.instead = dict(instead or {})
        self._tables: dict[str, Tensor] = {}
        self._states: dict[str, dict[str, Tensor]] = {}
        for site in self.sites:
            if site.table in self._tables:
                continue
            table = torch.empty(site.rows, site.dim, device=device, dtype=TORCH_TYPES[rules[site.table].dtype])
            write_start(table, weights[site.table])
            self._tables[site.table] = table
            self._states[site.table] = new_states(rules[site.table], site.rows, site.dim, device)
        self._rules = {table: rules[table] for table in self._tables}
        self._lr = {table: rule.lr for table, rule in self._rules.items()}
        self._steps = dict.fromkeys(self._tables, 0)
        whole = {site.table: Place(site.table, 0, 1, range(site.dim), site.dim) for site in self.sites}
        self._places, self._seed = whole | dict(places or {}), seed
        self._wide: dict[str, list[tuple[Tensor, Tensor]]] = {table: [] for table in self._tables}
        self._still: frozenset[str] = frozenset()
        self.freeze(())

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables held."""
        return tuple(self._tables)

    @property
    def columns(self) -> list[int]:
        """First column of each site in the output."""
        starts = [0]
        for site in self.sites:
            starts.append(starts[-1] + site.dim)
        return starts[:-1]

    def forward(self, routed: RoutedIds) -> Tensor:
        """``(rows, sum of dims)`` pooled embeddings."""
        rows = routed.layout.rows
        pooled = [self._pool(site, routed, rows) for site in self.sites]
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=1)

    def _pool(self, site: LookupSite, routed: RoutedIds, rows: int) -> Tensor:
        values, lengths, weights = ids_of(site, routed)
        if lengths is None:
            hotness = values.numel() // max(rows, 1)
            offsets = torch.arange(0, rows * hotness + 1, max(hotness, 1), device=values.device)
        else:
            offsets = F.pad(lengths.cumsum(0), (1, 0))
        table = self._tables[site.table]
        short = table.dtype != torch.float32
        if site.mode == "max" and not short:
            return max_bags(values, table, offsets)
        return F.embedding_bag(
            torch.arange(len(values), device=values.device, dtype=values.dtype) if short else values,
            self._widened(site.table, values) if short else table,
            offsets.to(values.dtype),
            mode=site.mode,
            per_sample_weights=weights,
            include_last_offset=True,
            sparse=not short,
        )

    def rows_of(self, name: str, ids: Tensor) -> Tensor:
        """``(n, dim)`` rows of one table in fp32, one for each id ``(n,)``."""
        table = self._tables[name]
        return self._widened(name, ids) if table.dtype != torch.float32 else F.embedding(ids, table, sparse=True)

    def _widened(self, name: str, ids: Tensor) -> Tensor:
        """``(ids, dim)`` rows in fp32, one for each id, whose gradients are collected."""
        rows = self._tables[name].index_select(0, ids).float()
        if not torch.is_grad_enabled() or name in self._still:
            return rows
        return watched(rows, lambda gradient: self._wide[name].append((ids, gradient)))

    def _gradient(self, name: str) -> Tensor | None:
        """Of the rows of a table that were looked up, each once; None where nothing was collected."""
        table, wide = self._tables[name], self._wide[name]
        if wide:
            ids, rows = torch.cat([ids for ids, _ in wide]).long(), torch.cat([gradient for _, gradient in wide])
            return torch.sparse_coo_tensor(ids.unsqueeze(0), rows, table.shape, check_invariants=False).coalesce()
        return None if table.grad is None else table.grad.coalesce()

    @torch.no_grad()
    def step(self) -> None:
        """Apply the rule of every table that got a gradient to the rows that were looked up."""
        for name, table in self._tables.items():
            gradient = self._gradient(name)
            if gradient is None or name in self._still:
                continue
            self._steps[name] += 1
            numbers, values = gradient.indices()[0], gradient.values()
            states = self._states[name]
            kept = {key: state.index_select(0, numbers) for key, state in states.items()}
            rows, rule, step = table.index_select(0, numbers).float(), self._rules[name], self._steps[name]
            new = updated(rule, self._lr[name], step, rows, values, kept)
            table.index_copy_(0, numbers, written(rule, new, numbers, self._places[name], self._seed, step))
            for key, state in states.items():
                state.index_copy_(0, numbers, kept[key])

    def zero_grad(self) -> None:
        """Forget the gradients collected so far."""
        for name, table in self._tables.items():
            table.grad = None
            self._wide[name].clear()

    @property
    def holds(self) -> bool:
        """Whether gradients were collected since ``zero_grad``."""
        return any(table.grad is not None or self._wide[name] for name, table in self._tables.items())

    def hold_gradients(self, hold: bool, once: bool) -> None:
        """Nothing: gradients always wait for ``step``."""

    def delay_updates(self, delay: bool) -> None:
        """Nothing: gradients always wait for ``step``."""

    def freeze(self, tables: Collection[str]) -> None:
        """These tables get no gradients from now on; the others do, but for those whose rule is frozen."""
        self._still = frozenset(name for name in self._tables if name in tables or self._rules[name].frozen)
        for name, table in self._tables.items():
            table.requires_grad_(name not in self._still and table.dtype == torch.float32)

    def set_lr(self, lr_of: Callable[[Rule], float]) -> None:
        """Learning rates of the next steps, by rule."""
        self._lr = {table: lr_of(rule) for table, rule in self._rules.items()}

    def settle(self) -> None:
        """Nothing: there is no cache."""

    def weight(self, table: str) -> Tensor:
        """``(rows, dim)`` view of a table."""
        return self._tables[table].detach()

    def state(self, table: str) -> dict[str, Tensor]:
        """Views of the optimizer state of a table."""
        return dict(self._states[table])

    @property
    def steps(self) -> dict[str, int]:
        """Updates so far of each table whose rule counts them; may be written to by :meth:`set_steps`."""
        return {table: self._steps[table] for table, rule in self._rules.items() if rule.counts_steps}

    def set_steps(self, steps: Mapping[str, int]) -> None:
        """How many updates tables have had."""
        self._steps.update(steps)
