"""This project's variants, as a user has them: ``dmt_plugin.initialize`` and the engine it returns."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
from collections.abc import Iterator
from typing import Any

from torch import Tensor

import dmt_plugin
from benchmarks.step.model import BATCHES, Batch, loss_of, make_batch, make_model
from benchmarks.step.parts import Part
from benchmarks.step.setting import Setting
from dmt_plugin.model.placed import PlacedGraph
from dmt_plugin.model.row_counts import count_rows
from dmt_plugin.planner.gradient_cost import gradient_sums
from dmt_plugin.report.explain.explanation import costs_of, gradient_costs_of


class OursVariant:
    """One route and kind of towers.

    Args:
        setting: what is measured.
        section: keys of the ``"dmt"`` section.
    """

    def __init__(self, setting: Setting, section: dict[str, Any]) -> None:
        self._config = {
            "train_micro_batch_size_per_gpu": setting.batch,
            "optimizer": {"type": "SGD", "params": {"lr": setting.lr}},
            "zero_optimization": {"stage": 0},
            "gradient_clipping": 0.0,
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
            "dmt": {
                "topology": {"hosts": setting.hosts, "ranks_per_host": setting.lanes},
                **copy.deepcopy(section),
                "lookup": {"optimizer": "sgd", "lr": setting.table_lr, **section.get("lookup", {})},
            },
        }
        example = make_batch(setting, 0, 0)
        flat = make_model(setting)
        self._features = {name: feature for feature, name in enumerate(flat.table_names())}
        # What it tells of a rewritten model is for its user; here a table follows, of many such models.
        with contextlib.redirect_stdout(io.StringIO()):
            self.engine, *_ = dmt_plugin.initialize(
                model=flat,
                config=self._config,
                example_batch=(example.dense[:8], example.ids[:8]),
                shares_from=_calls(setting) if section.get("comm", {}).get("dedup", "off") != "off" else None,
            )
        self._setting = setting
        self._coming: Iterator[Batch] | None = None
        self._next: Batch | None = None

    def prepare(self, batch: Batch) -> Any:
        """Batches are taken as they are."""
        return batch

    def look_ahead(self, batches: Iterator[Any]) -> None:
        """The batches of all steps to come: ids of the next one travel during each step."""
        self._coming, self._next = batches, next(batches, None)

    def step(self, batch: Batch) -> Tensor:
        """One optimizer step; the rank's loss before it. Ends when the next batch's ids are here as well."""
        if self._coming is not None:
            if self._next is not batch:
                raise RuntimeError("another batch than look_ahead() named for this step")
            self._next = next(self._coming, None)
            if self._next is not None:
                self.engine.prefetch(self._next.dense, self._next.ids)
        loss = loss_of(self.engine(batch.dense, batch.ids), batch.labels)
        self.engine.backward(loss)
        self.engine.step()
        if self.engine.dmt.placed.prefetcher is not None:
            self.engine.dmt.placed.prefetcher.settle()
        return loss.detach()

    def tables(self) -> dict[int, list[Part]]:
        """What this rank holds of the tables, by feature."""
        lookup, plan = self.engine.dmt.lookup, self.engine.dmt.plan
        held: dict[int, list[Part]] = {}
        for name in lookup.tables:
            part = plan.shard(name)
            block = Part(lookup.table_weight(name), part.first_row, part.first_column, part.step)
            held.setdefault(self._features[part.table.name], []).append(block)
        return held

    def formula_bytes(self) -> int:
        """Bytes that this rank sends to other hosts in one step, as ``dmt explain`` has them.

        Where rows travel once that is by the number of distinct ones in the batches of this benchmark.
        """
        state, needs = self.engine.dmt, None
        if state.placed.placement.groups:
            placed = state.placed
            graph = PlacedGraph(
                placed.__dict__["graph_module"], placed.logical, placed.topology, placed.rank, placed.placement, ()
            )
            needs = count_rows(graph, _calls(self._setting), self._setting.batch, BATCHES).needs
        costs = costs_of(state.placed, self._setting.batch, needs=needs)
        sums = gradient_costs_of(state.placed, gradient_sums(self._config, state.config))
        return sum(cost.other_hosts for cost in (*costs, *sums))


@functools.lru_cache(1)
def _calls(setting: Setting) -> list[tuple[Tensor, Tensor]]:
    """The batches of all ranks, step after step."""
    batches = [make_batch(setting, step, rank) for step in range(BATCHES) for rank in range(setting.world_size)]
    return [(batch.dense, batch.ids) for batch in batches]
