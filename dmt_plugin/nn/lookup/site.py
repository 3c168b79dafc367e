"""Types that describe the embedding lookup of one rank: its pooled lookups, the tables' optimizer, and the backend.

1. A *site* is one pooled lookup: which ids it reads, from which table, pooled how.
2. A *rule* is the optimizer of the tables: SGD, Adagrad or row-wise Adagrad, with its options.
3. A *backend* (FBGEMM or PyTorch) holds the tables' values, computes the sites on them, and updates them by the rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from dmt_plugin.comm.input_dist.input_dist import RoutedIds


@dataclass(frozen=True)
class LookupSite:
    """One pooled lookup on this rank.

    Attributes:
        name: unique name of the site.
        table: name of the shard that this rank holds: the table's own where it is whole; several sites may share one.
        slot: index into ``RoutedIds``' tuples on this rank.
        rows: rows held here.
        dim: columns held here.
        pooling: ``"sum"`` or ``"mean"``.
        weighted: ids carry weights (sum only).
        position: of a sequence, which of the slot's ids per row this site looks up.
        padding: at a position, the id that gives a zero row and no gradient.
        first_row: of a table in row ranges, the id of the first row held here; ids of other ranges add nothing, and
            a mean still divides by the whole bag.
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

    @property
    def mode(self) -> Literal["sum", "mean"]:
        """How a backend pools it: what a row range adds to a mean is a sum with weights."""
        return "mean" if self.pooling == "mean" and self.first_row is None else "sum"

    @property
    def needs_weights(self) -> bool:
        """Whether a backend gets a weight for each id."""
        return self.weighted or self.mode != self.pooling


@dataclass(frozen=True)
class Rule:
    """Update rule of the tables: ``w -= lr * g / (sqrt(m) + eps)``, or ``w -= lr * g`` for ``"sgd"``.

    ``m`` adds up ``g ** 2`` (``"adagrad"``) or its mean over the row (``"rowwise_adagrad"``).
    """

    name: str
    lr: float
    eps: float


class Tables(Protocol):
    """What a backend does for its tables."""

    sites: tuple[LookupSite, ...]

    @property
    def tables(self) -> tuple[str, ...]:
        """Names."""
        ...

    @property
    def columns(self) -> list[int]:
        """First column of each site in the output."""
        ...

    def forward(self, routed: RoutedIds) -> Tensor:
        """``(rows, sum of dims)`` pooled embeddings."""
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

    def set_lr(self, lr: float) -> None:
        """Learning rate of the updates to come."""
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


def check_sites(sites: Sequence[LookupSite], weights: Mapping[str, Tensor]) -> None:
    """Make sure that sites do not contradict each other or the weights ``(rows, dim)`` by table.

    Raises:
        ValueError: they do; with the name of the site.
    """
    names: set[str] = set()
    for site in sites:
        if site.name in names:
            raise ValueError(f"two lookups are named '{site.name}'")
        names.add(site.name)
        if site.pooling not in ("sum", "mean"):
            raise ValueError(f"lookup '{site.name}': pooling {site.pooling!r} found, 'sum' or 'mean' expected")
        if site.weighted and site.pooling == "mean":
            raise ValueError(
                f"lookup '{site.name}': per-sample weights go with pooling 'sum' only, as in nn.EmbeddingBag"
            )
        if site.table not in weights:
            raise ValueError(f"lookup '{site.name}': no weights given for table '{site.table}'")
        if tuple(weights[site.table].shape) != (site.rows, site.dim):
            raise ValueError(
                f"lookup '{site.name}': table '{site.table}' of shape ({site.rows}, {site.dim}) expected, "
                f"weights of shape {tuple(weights[site.table].shape)} found"
            )
