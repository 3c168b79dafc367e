"""Lookups on FBGEMM's table-batched embeddings (TBE), which update their tables inside the backward pass.

1. sites are grouped by pooling mode, and inside a group by table: one TBE per group, features of a table adjacent;
2. dims are padded to a multiple of 4 (FBGEMM's rule); pads are zero, get no gradient, and are cut from the output;
3. forward joins the ids of a group's sites feature-major, with ``features * rows + 1`` offsets; an unweighted site
   beside a weighted one gets ones;
4. backward adds up the gradients of each row over sites and samples, then applies the exact update rule;
5. where several micro-batches make one step, forward keeps their ids, backward their gradients, and ``step`` looks all
   of them up once more, as one batch, for the one backward pass that updates the tables;
6. where updates are delayed, a forward pass keeps the graph of its lookup, and ``step`` goes backward through it. With
   more than one, or after a change of the learning rate, which a lookup takes when it is made, step 5 holds;
7. tables of a frozen rule are looked up without a graph. While some tables of a TBE are frozen, there are two lookups
   with empty bags in the place of the others' ids, of which one has a graph: no row of a frozen table is touched.

FBGEMM's row-wise Adagrad averages over the padded columns too, so such tables are refused here, and so is a table
that is pooled in two ways: two TBEs cannot share it. Which rules and types it has is tried out (:mod:`.fbgemm_rules`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.core.errors import DMTError
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.core.versions import import_fbgemm
from dmt_plugin.nn.lookup.border import watched
from dmt_plugin.nn.lookup.site import Fill, LookupSite, write_start
from dmt_plugin.nn.lookup.site_ids import SiteIds, emptied, ids_of, joined

OPTIMIZERS = {"sgd": "EXACT_SGD", "adagrad": "EXACT_ADAGRAD", "rowwise_adagrad": "EXACT_ROWWISE_ADAGRAD"}

_LOCATIONS = {
    "auto": "DEVICE",
    "device": "DEVICE",
    "host": "MANAGED_CACHING",
    "managed": "MANAGED",
    "managed_caching": "MANAGED_CACHING",
}


def refusals(sites: Sequence[LookupSite], rules: Mapping[str, Rule]) -> dict[str, str]:
    """Tables that FBGEMM cannot serve exactly whatever its version, each with the reason.

    Args:
        sites: the lookups.
        rules: update rule of each table.
    """
    reasons: dict[str, str] = {}
    modes: dict[str, str] = {}
    for site in sites:
        rule = rules[site.table]
        if site.mode == "max":
            reasons[site.table] = "it is pooled by maximum, and a TBE pools by sum or mean"
        elif modes.setdefault(site.table, site.mode) != site.mode:
            reasons[site.table] = "it is pooled with both sum and mean, and a TBE pools in one way"
        elif rule.name not in OPTIMIZERS:
            reasons[site.table] = f"its rule {rule.name} is looked for on PyTorch only"
        elif rule.momentum or rule.clip_value is not None or rule.clip_norm is not None:
            reasons[site.table] = f"FBGEMM has no momentum and no clipping of whole rows ({rule})"
        elif site.dim % 4 and rule.name == "rowwise_adagrad":
            reasons[site.table] = (
                f"its dim {site.dim} is no multiple of 4, and row-wise Adagrad would average over the padding"
            )
    return reasons


@dataclass
class _Held:
    """A gradient that waits for ``step``.

    Attributes:
        own: ids of each site.
        rows: rows of the lookup.
        gradient: ``(rows, sum of padded dims)``.
        graph: where the lookup's graph begins, if that was kept; its rows are not, whose memory others may have.
        lr: learning rate that the graph would use.
        frozen: tables that the graph does not reach.
    """

    own: list[SiteIds]
    rows: int
    gradient: Tensor
    graph: GradientEdge | None
    lr: float
    frozen: frozenset[str]


class FbgemmTables:
    """Tables of one rank in one TBE; all sites pool in the same way, and all tables have one rule.

    Args:
        sites: lookups to serve.
        weights: ``(rows, dim)`` starting values of each table, which are copied, or what writes them.
        rule: update rule.
        device: device of the computation.
        location: memory that holds the tables, see :class:`dmt_plugin.nn.lookup.sharded.ShardedLookup`.
    """

    def __init__(
        self,
        sites: Sequence[LookupSite],
        weights: Mapping[str, Tensor | Fill],
        rule: Rule,
        device: torch.device,
        location: str,
    ) -> None:
        import_fbgemm()
        from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, PoolingMode
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen

        tables = {site.table: site for site in sites}
        self._index = {table: index for index, table in enumerate(tables)}
        self._dims = {table: site.dim for table, site in tables.items()}
        self.sites = tuple(sorted(sites, key=lambda site: self._index[site.table]))
        self.weighted = any(site.needs_weights for site in sites)
        place = _placement(device, location)
        self._tbe: Any = SplitTableBatchedEmbeddingBagsCodegen(
            embedding_specs=[(site.rows, padded(site.dim), *place) for site in tables.values()],
            feature_table_map=[self._index[site.table] for site in self.sites],
            optimizer=getattr(EmbOptimType, OPTIMIZERS[rule.name]),
            learning_rate=rule.lr,
            eps=rule.eps,
            weight_decay=rule.weight_decay,
            weight_decay_mode=_decay_mode(rule),
            weights_precision=getattr(SparseType, rule.dtype.upper()),
            output_dtype=SparseType.FP32,
            stochastic_rounding=rule.stochastic_rounding,
            pooling_mode=PoolingMode.MEAN if sites[0].mode == "mean" else PoolingMode.SUM,
            bounds_check_mode=BoundsCheckMode.FATAL,
            device=device,
        )
        self._views: list[Tensor] = self._tbe.split_embedding_weights()
        for table in tables:
            if self._dims[table] % 4:
                self._views[self._index[table]].zero_()  # the pads
            write_start(self.weight(table), weights[table])
            for state in self.state(table).values():
                state.fill_(rule.initial_accumulator_value)
        self._offsets: tuple[int, tuple[int, ...], Tensor] | None = None
        self._hold = self._once = self._delay = False
        self._held: list[_Held] = []
        self._rule, self._lr = rule, rule.lr
        self._updates = 0
        self._frozen: frozenset[str] = frozenset()

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
        own, rows = [ids_of(site, routed) for site in self.sites], routed.layout.rows
        if not torch.is_grad_enabled() or self._rule.frozen or self._frozen.issuperset(self._index):
            with torch.no_grad():
                return self._look_up(own, rows)
        if self._hold:
            with torch.no_grad():
                output = self._look_up(own, rows)
            return self._holding(own, rows, output, None)
        output, values = self._look_up_trained(own, rows)
        if self._delay:
            return self._holding(own, rows, values.detach(), get_gradient_edge(output))
        frozen = self._frozen
        output.register_hook(lambda gradient: self._count(frozen))
        return values

    def _holding(self, own: list[SiteIds], rows: int, values: Tensor, graph: GradientEdge | None) -> Tensor:
        lr, frozen = self._lr, self._frozen
        return watched(values, lambda gradient: self._held.append(_Held(own, rows, gradient, graph, lr, frozen)))

    def _look_up_trained(self, own: Sequence[SiteIds], rows: int) -> tuple[Tensor, Tensor]:
        """What has a graph, with zeros for frozen tables, and what was looked up in all."""
        output = self._look_up(self._without(own, rows, self._frozen), rows)
        if not self._frozen:
            return output, output
        with torch.no_grad():
            rest = self._look_up(self._without(own, rows, frozenset(self._index) - self._frozen), rows)
        return output, output + rest

    def _without(self, own: Sequence[SiteIds], rows: int, tables: Collection[str]) -> list[SiteIds]:
        """The ids of all sites, with empty bags for those of some tables."""
        return [emptied(ids, rows) if s.table in tables else ids for s, ids in zip(self.sites, own, strict=True)]

    def _look_up(self, own: Sequence[SiteIds], rows: int) -> Tensor:
        indices = torch.cat([ids.values for ids in own]) if len(own) > 1 else own[0].values
        weights = torch.cat([_weights(ids) for ids in own]) if self.weighted else None
        output: Tensor = self._tbe(indices.long(), self._offset(own, rows), weights)
        return output

    def _count(self, frozen: frozenset[str]) -> None:
        """Before an update that spares some tables."""
        if frozen != self._frozen:
            raise DMTError(
                f"tables were frozen, or not any more, between the forward and the backward pass of a step, and those "
                f"on FBGEMM, such as '{self.sites[0].table}', are updated in the backward pass. Call "
                "engine.freeze_tables between two steps"
            )
        self._updates += 1
        if self._once and self._updates > 1:
            raise DMTError(
                f"tables on FBGEMM, such as '{self.sites[0].table}', would be updated twice in one step: the model was "
                "called more than once for it, or its loss went backward more than once. Use "
                '"dmt": {"lookup": {"backend": "torch"}}, which adds up all gradients of a step; or say so with '
                'gradient_accumulation_steps; or allow it with "accumulation": "per_micro_batch" under dmt.lookup.'
            )

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
        """One update by all gradients that were held back; without any, it has happened in the backward pass."""
        held, self._held = self._held, []
        if not held:
            return
        self._count(self._frozen)
        first = held[0]
        as_then = first.lr == self._lr and first.frozen == self._frozen
        if len(held) == 1 and first.graph is not None and as_then:
            torch.autograd.backward(first.graph, first.gradient)
            return
        ids = [joined([h.own[i] for h in held], [h.rows for h in held]) for i in range(len(self.sites))]
        rows = sum(h.rows for h in held)
        with torch.enable_grad():
            output = self._look_up(self._without(ids, rows, self._frozen), rows)
        output.backward(torch.cat([h.gradient for h in held]))

    def zero_grad(self) -> None:
        """Forget what is held back."""
        self._held.clear()
        self._updates = 0

    @property
    def holds(self) -> bool:
        """Whether gradients are held back."""
        return bool(self._held)

    def hold_gradients(self, hold: bool, once: bool) -> None:
        """Whether the gradients of the next forward passes wait for ``step``, and two updates are an error."""
        self._hold, self._once = hold, once

    def delay_updates(self, delay: bool) -> None:
        """Whether no table is updated before ``step``."""
        self._delay = delay

    def freeze(self, tables: Collection[str]) -> None:
        """Which tables are not updated from now on; the others are, unless the rule is frozen."""
        self._frozen = frozenset(tables).intersection(self._index)

    def set_lr(self, lr_of: Callable[[Rule], float]) -> None:
        """Learning rate of the next backward passes, by rule."""
        if (lr := lr_of(self._rule)) != self._lr:
            self._lr = lr
            self._tbe.set_learning_rate(lr)

    def settle(self) -> None:
        """Empty the cache of rows that tables in host memory have on an accelerator."""
        self._tbe.flush()
        self._tbe.reset_cache_states()

    def weight(self, table: str) -> Tensor:
        """``(rows, dim)`` view of a table."""
        return self._views[self._index[table]].detach()[:, : self._dims[table]]

    def state(self, table: str) -> dict[str, Tensor]:
        """Views of the optimizer state of a table."""
        states = self._tbe.split_optimizer_states()
        if not states or not states[self._index[table]]:
            return {}
        total = states[self._index[table]][0].detach()
        return {"sum": total if total.dim() == 1 else total[:, : self._dims[table]]}

    @property
    def steps(self) -> dict[str, int]:
        """Nothing: none of its rules counts them."""
        return {}

    def set_steps(self, steps: Mapping[str, int]) -> None:
        """Nothing: none of its rules counts them."""


def padded(dim: int) -> int:
    """The next multiple of 4."""
    return (dim + 3) // 4 * 4


def _weights(ids: SiteIds) -> Tensor:
    if ids.weights is not None:
        return ids.weights.float()
    return torch.ones(ids.values.numel(), dtype=torch.float32, device=ids.values.device)


def _decay_mode(rule: Rule) -> Any:
    """FBGEMM's name for how rows decay."""
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import WeightDecayMode

    if not rule.weight_decay:
        return WeightDecayMode.NONE
    return WeightDecayMode.DECOUPLE if rule.decoupled else WeightDecayMode.L2


def _placement(device: torch.device, location: str) -> tuple[Any, Any]:
    """FBGEMM's names for where tables live and where they are looked up."""
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice

    if device.type == "cpu":
        return EmbeddingLocation.HOST, ComputeDevice.CPU
    return getattr(EmbeddingLocation, _LOCATIONS[location]), ComputeDevice.CUDA
