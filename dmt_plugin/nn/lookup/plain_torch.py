"""Lookups on plain PyTorch: ``F.embedding_bag`` with sparse gradients, the exactness reference; knows every rule.

1. forward pools the ids of each site from its table; gradients of all sites of a table, and of all backward passes
   since ``zero_grad``, are collected as rows beside their numbers, so that nothing as large as a table is made;
2. ``step`` adds up what belongs to one row, and applies the table's rule once to every row that was looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.core.update_rule import Rule
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
    """

    def __init__(
        self,
        sites: Sequence[LookupSite],
        weights: Mapping[str, Tensor | Fill],
        rules: Mapping[str, Rule],
        device: torch.device,
    ) -> None:
        self.sites = tuple(sites)
        self._tables: dict[str, Tensor] = {}
        self._states: dict[str, dict[str, Tensor]] = {}
        for site in self.sites:
            if site.table in self._tables:
                continue
            table = torch.empty(site.rows, site.dim, device=device)
            write_start(table, weights[site.table])
            self._tables[site.table] = table.requires_grad_()
            self._states[site.table] = new_states(rules[site.table], site.rows, site.dim, device)
        self._rules = {table: rules[table] for table in self._tables}
        self._lr = {table: rule.lr for table, rule in self._rules.items()}
        self._steps = dict.fromkeys(self._tables, 0)

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
        return F.embedding_bag(
            values,
            self._tables[site.table],
            offsets.to(values.dtype),
            mode=site.mode,
            per_sample_weights=weights,
            include_last_offset=True,
            sparse=True,
        )

    @torch.no_grad()
    def step(self) -> None:
        """Apply the rule of every table that got a gradient to the rows that were looked up."""
        for name, table in self._tables.items():
            if table.grad is None:
                continue
            self._steps[name] += 1
            gradient = table.grad.coalesce()
            numbers, values = gradient.indices()[0], gradient.values()
            states = self._states[name]
            kept = {key: state.index_select(0, numbers) for key, state in states.items()}
            rows = table.index_select(0, numbers)
            new = updated(self._rules[name], self._lr[name], self._steps[name], rows, values, kept)
            table.index_copy_(0, numbers, new)
            for key, state in states.items():
                state.index_copy_(0, numbers, kept[key])

    def zero_grad(self) -> None:
        """Forget the gradients collected so far."""
        for table in self._tables.values():
            table.grad = None

    @property
    def holds(self) -> bool:
        """Whether gradients were collected since ``zero_grad``."""
        return any(table.grad is not None for table in self._tables.values())

    def hold_gradients(self, hold: bool, once: bool) -> None:
        """Nothing: gradients always wait for ``step``."""

    def delay_updates(self, delay: bool) -> None:
        """Nothing: gradients always wait for ``step``."""

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
