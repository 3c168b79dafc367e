"""Lookups on FBGEMM's table-batched embeddings (TBE), which update their tables inside the backward pass.

1. sites are grouped by pooling mode, and inside a group by table: one TBE per group, features of a table adjacent;
2. dims are padded to a multiple of 4 (FBGEMM's rule); pads are zero, get no gradient, and are cut from the output;
3. forward joins the ids of a group's sites feature-major, with ``features * rows + 1`` offsets; an unweighted site
   beside a weighted one gets ones;
4. backward adds up the gradients of each row over sites and samples, then applies the exact update rule.

FBGEMM's row-wise Adagrad averages over the padded columns too, so such tables are refused here, and so is a table
that is pooled in two ways: two TBEs cannot share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmt_plugin.nn.site_ids import SiteIds, ids_of
from dmt_plugin.pairing import import_fbgemm

if TYPE_CHECKING:
    from dmt_plugin.comm.index_exchange import RoutedIds
    from dmt_plugin.nn.lookup import LookupSite, Rule

OPTIMIZERS = {
    "sgd": "EXACT_SGD",
    "adagrad": "EXACT_ADAGRAD",
    "rowwise_adagrad": "EXACT_ROWWISE_ADAGRAD",
}


def refusals(sites: Sequence[LookupSite], optimizer: str) -> dict[str, str]:
    """Tables that FBGEMM cannot serve exactly, each with the reason."""
    reasons: dict[str, str] = {}
    poolings: dict[str, str] = {}
    for site in sites:
        if poolings.setdefault(site.table, site.pooling) != site.pooling:
            reasons[site.table] = "it is pooled with both sum and mean, and a TBE pools in one way"
        elif site.dim % 4 and optimizer == "rowwise_adagrad":
            reasons[site.table] = (
                f"its dim {site.dim} is no multiple of 4, and row-wise Adagrad would average over the padding"
            )
    return reasons


class FbgemmTables:
    """Tables of one rank in one TBE; all sites pool in the same way.

    Args:
        sites: lookups to serve.
        weights: ``(rows, dim)`` initial values of each table; copied.
        rule: update rule.
        device: device of the computation.
        location: ``"auto"``, ``"host"`` or ``"device"``: memory that holds the tables.
    """

    def __init__(
        self,
        sites: Sequence[LookupSite],
        weights: Mapping[str, Tensor],
        rule: Rule,
        device: torch.device,
        location: str,
    ) -> None:
        import_fbgemm()
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, PoolingMode
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        tables = {site.table: site for site in sites}
        self._index = {table: index for index, table in enumerate(tables)}
        self._dims = {table: site.dim for table, site in tables.items()}
        self.sites = tuple(sorted(sites, key=lambda site: self._index[site.table]))
        self.weighted = any(site.weighted for site in sites)
        place = _placement(device, location)
        self._tbe: Any = SplitTableBatchedEmbeddingBagsCodegen(
            embedding_specs=[(site.rows, padded(site.dim), *place) for site in tables.values()],
            feature_table_map=[self._index[site.table] for site in self.sites],
            optimizer=getattr(EmbOptimType, OPTIMIZERS[rule.name]),
            learning_rate=rule.lr,
            eps=rule.eps,
            stochastic_rounding=False,
            pooling_mode=PoolingMode.MEAN if sites[0].pooling == "mean" else PoolingMode.SUM,
            bounds_check_mode=BoundsCheckMode.FATAL,
            device=device,
        )
        self._views: list[Tensor] = self._tbe.split_embedding_weights()
        for table in tables:
            self._views[self._index[table]].zero_()
            self.weight(table).copy_(weights[table].detach())
        self._offsets: tuple[int, tuple[int, ...], Tensor] | None = None

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables held."""
        return tuple(self._index)

    @property
    def columns(self) -> list[int]:
        """First column of each site in the output; pads lie between them."""
        return [0, *accumulate(padded(site.dim) for site in self.sites)][:-1]

    def forward(self, routed: RoutedIds) -> Tensor:
        """``(rows, sum of padded dims)`` pooled embeddings."""
        own = [ids_of(site, routed) for site in self.sites]
        indices = torch.cat([ids.values for ids in own]) if len(own) > 1 else own[0].values
        weights = torch.cat([_weights(ids) for ids in own]) if self.weighted else None
        output: Tensor = self._tbe(indices.long(), self._offset(own, routed.layout.rows), weights)
        return output

    def _offset(self, own: Sequence[SiteIds], rows: int) -> Tensor:
        lengths = [ids.lengths for ids in own]
        sizes = tuple(ids.values.numel() for ids in own)
        fixed = all(length is None for length in lengths)
        if fixed and self._offsets is not None and self._offsets[:2] == (rows, sizes):
            return self._offsets[2]
        device = own[0].values.device
        filled = [
            torch.full((rows,), size // max(rows, 1), dtype=torch.int64, device=device)
            if length is None
            else length.long()
            for length, size in zip(lengths, sizes, strict=True)
        ]
        offsets = torch.nn.functional.pad(torch.cat(filled).cumsum(0), (1, 0))
        if fixed:
            self._offsets = (rows, sizes, offsets)
        return offsets

    def step(self) -> None:
        """Nothing: the update has happened in the backward pass."""

    def zero_grad(self) -> None:
        """Nothing: gradients are used up in the backward pass."""

    def set_lr(self, lr: float) -> None:
        """Learning rate of the next backward passes."""
        self._tbe.set_learning_rate(lr)

    def weight(self, table: str) -> Tensor:
        """``(rows, dim)`` view of a table."""
        return self._views[self._index[table]].detach()[:, : self._dims[table]]

    def state(self, table: str) -> dict[str, Tensor]:
        """Views of the optimiser state of a table."""
        states = self._tbe.split_optimizer_states()
        if not states or not states[self._index[table]]:
            return {}
        total = states[self._index[table]][0].detach()
        return {"sum": total if total.dim() == 1 else total[:, : self._dims[table]]}


def padded(dim: int) -> int:
    """The next multiple of 4."""
    return (dim + 3) // 4 * 4


def _weights(ids: SiteIds) -> Tensor:
    if ids.weights is not None:
        return ids.weights
    return torch.ones(ids.values.numel(), dtype=torch.float32, device=ids.values.device)


def _placement(device: torch.device, location: str) -> tuple[Any, Any]:
    """FBGEMM's names for where tables live and where they are looked up."""
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice

    if device.type == "cpu":
        return EmbeddingLocation.HOST, ComputeDevice.CPU
    on_host = EmbeddingLocation.MANAGED_CACHING
    return (on_host if location == "host" else EmbeddingLocation.DEVICE), ComputeDevice.CUDA
