"""Lookups on plain PyTorch: ``F.embedding_bag`` with dense gradients, the exactness reference.

1. forward pools the ids of each site from its table; gradients of all sites of a table, and of all backward passes
   since ``zero_grad``, add up in the table's gradient;
2. ``step`` applies the update rule once per table: the rules of FBGEMM's exact optimizers, written densely
   (a row nobody looked up has a zero gradient, which changes neither the row nor its state).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.nn.lookup.site import LookupSite, Rule
from dmt_plugin.nn.lookup.site_ids import ids_of


class TorchTables:
    """Tables of one rank as leaf tensors.

    Args:
        sites: lookups to serve.
        weights: ``(rows, dim)`` initial values of each table; copied.
        rule: update rule.
        device: where tables live.
    """

    def __init__(
        self, sites: Sequence[LookupSite], weights: Mapping[str, Tensor], rule: Rule, device: torch.device
    ) -> None:
        self.sites = tuple(sites)
        self.rule = rule
        self.lr = rule.lr
        self._tables: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        for site in self.sites:
            if site.table in self._tables:
                continue
            initial = weights[site.table].detach().to(device, torch.float32, copy=True)
            self._tables[site.table] = initial.requires_grad_()
            if rule.name == "rowwise_adagrad":
                self._sums[site.table] = torch.zeros(site.rows, device=device)
            elif rule.name == "adagrad":
                self._sums[site.table] = torch.zeros(site.rows, site.dim, device=device)

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
        )

    @torch.no_grad()
    def step(self) -> None:
        """Apply the update rule to every table that got a gradient."""
        for name, table in self._tables.items():
            gradient = table.grad
            if gradient is None:
                continue
            if self.rule.name == "sgd":
                table.sub_(gradient * self.lr)
                continue
            total = self._sums[name]
            if self.rule.name == "rowwise_adagrad":
                total.add_(gradient.square().mean(dim=1))
                table.sub_(gradient * (self.lr / (total.sqrt() + self.rule.eps)).unsqueeze(1))
            else:
                total.add_(gradient.square())
                table.sub_(self.lr * gradient / (total.sqrt() + self.rule.eps))

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

    def set_lr(self, lr: float) -> None:
        """Learning rate of the next steps."""
        self.lr = lr

    def settle(self) -> None:
        """Nothing: there is no cache."""

    def weight(self, table: str) -> Tensor:
        """``(rows, dim)`` view of a table."""
        return self._tables[table].detach()

    def state(self, table: str) -> dict[str, Tensor]:
        """Views of the optimizer state of a table."""
        return {"sum": self._sums[table]} if table in self._sums else {}
