"""Types that describe the embedding lookup of one rank: its pooled lookups, and what a backend does for them.

1. A *site* is one pooled lookup: which ids it reads, from which table, pooled how.
2. A *backend* (FBGEMM or PyTorch) holds the tables' values, computes the sites on them, and updates each by its rule
   (:mod:`dmt_plugin.core.update_rule`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.core.update_rule import Rule

Fill = Callable[[Tensor], None]
"""Writes the starting values of a table, or of a shard, into the ``(rows, dim)`` view of it that it gets."""


@torch.no_grad()
def write_start(view: Tensor, start: Tensor | Fill) -> None:
    """Give a table its starting values: from a tensor of its shape, or by what makes them in place."""
    if isinstance(start, Tensor):
        view.copy_(start.detach())
    else:
        start(view)


@dataclass(frozen=True)
class LookupSite:
    """One pooled lookup on this rank.

    Attributes:
        name: unique name of the site.
        table: name of the shard that this rank holds: the table's own where it is whole; several sites may share one.
        slot: index into ``RoutedIds``' tuples on this rank.
        rows: rows held here.
        dim: columns held here.
        pooling: ``"sum"``, ``"mean"`` or ``"max"``.
        weighted: ids carry weights (sum only).
        position: of a sequence, which of the slot's ids per row this site looks up.
        padding: at a position, the id that gives a zero row and no gradient.
        first_row: of a table in row ranges, the id of the first row held here; ids of other ranges add nothing, and
            a mean still divides by the whole bag.
        step: of a table in row ranges, the distance of neighbours: row ``i`` held here is that of the id
            ``first_row + i * step``.
    """

    name: str
    table: str
    slot: int
    rows: int
    dim: int
    pooling: str
    weighted: bool
    position: int | None = None
    padding: int | None = None
    first_row: int | None = None
    step: int = 1

    @property
    def mode(self) -> Literal["sum", "mean", "max"]:
        """How a backend pools it: what a row range adds to a mean is a sum with weights."""
        if self.pooling == "max":
            return "max"
        return "mean" if self.pooling == "mean" and self.first_row is None else "sum"

    @property
    def needs_weights(self) -> bool:
        """Whether a backend gets a weight for each id."""
        return self.weighted or self.mode != self.pooling


class Pools(Protocol):
    """What gives the columns of some sites."""

    sites: tuple[LookupSite, ...]

    @property
    def columns(self) -> list[int]:
        """First column of each site in the output."""
        ...

    def forward(self, routed: RoutedIds) -> Tensor:
        """``(rows, sum of dims)`` pooled embeddings."""
        ...


class Tables(Pools, Protocol):
    """What a backend does for its tables."""

    @property
    def tables(self) -> tuple[str, ...]:
        """Names."""
        ...

    def step(self) -> None:
        """Apply the update rule to what was collected, where backward has not."""
        ...

    def zero_grad(self) -> None:
        """Forget what was collected."""
        ...

    @property
    def holds(self) -> bool:
        """Whether gradients were collected that no table has yet."""
        ...

    def hold_gradients(self, hold: bool, once: bool) -> None:
        """See ``ShardedLookup.hold_gradients``."""
        ...

    def delay_updates(self, delay: bool) -> None:
        """Whether no table is updated before ``step``."""
        ...

    def freeze(self, tables: Collection[str]) -> None:
        """Which of its tables are not updated from now on, beside those whose rule says so; the others are."""
        ...

    def set_lr(self, lr_of: Callable[[Rule], float]) -> None:
        """Learning rates of the updates to come, by the rule of a table."""
        ...

    @property
    def steps(self) -> dict[str, int]:
        """Updates so far of each table whose rule counts them."""
        ...

    def set_steps(self, steps: Mapping[str, int]) -> None:
        """How many updates tables have had."""
        ...

    def settle(self) -> None:
        """Write back what an accelerator has cached."""
        ...

    def weight(self, table: str) -> Tensor:
        """``(rows, dim)`` view of a table."""
        ...

    def state(self, table: str) -> dict[str, Tensor]:
        """Views of the optimizer state of a table."""
        ...


def check_sites(sites: Sequence[LookupSite], weights: Mapping[str, Tensor | Fill]) -> None:
    """Make sure that sites do not contradict each other, one table's sizes, or the weights ``(rows, dim)`` by table.

    Raises:
        ValueError: they do; with the name of the site.
    """
    names: set[str] = set()
    sizes: dict[str, tuple[int, int]] = {}
    for site in sites:
        if site.name in names:
            raise ValueError(f"two lookups are named '{site.name}'")
        names.add(site.name)
        if site.pooling not in ("sum", "mean", "max"):
            raise ValueError(f"lookup '{site.name}': pooling {site.pooling!r} found, 'sum', 'mean' or 'max' expected")
        if site.pooling == "max" and site.first_row is not None:
            raise ValueError(f"lookup '{site.name}': a range of rows does not know the maximum over a whole bag")
        if site.weighted and site.pooling != "sum":
            raise ValueError(
                f"lookup '{site.name}': per-sample weights go with pooling 'sum' only, as in nn.EmbeddingBag"
            )
        if site.table not in weights:
            raise ValueError(f"lookup '{site.name}': no weights given for table '{site.table}'")
        start = weights[site.table]
        known = start.shape if isinstance(start, Tensor) else sizes.setdefault(site.table, (site.rows, site.dim))
        if tuple(known) != (site.rows, site.dim):
            raise ValueError(
                f"lookup '{site.name}': table '{site.table}' of shape ({site.rows}, {site.dim}) expected, "
                f"weights of shape {tuple(known)} found"
            )
