"""What ``comm.dedup`` would make of the bytes of a step, by the distinct rows of real batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dmt_plugin.config.section import DMTConfig
from dmt_plugin.fxtools.names import REQUESTS
from dmt_plugin.model.exchange_costs import costs_of, gradient_costs_of
from dmt_plugin.model.placed import PlacedGraph, place_graph
from dmt_plugin.model.row_counts import CountedRows, count_rows
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.planner.cost import ExchangeCost
from dmt_plugin.planner.distinct_cost import Needs
from dmt_plugin.planner.gradient_cost import GradientSums
from dmt_plugin.report.explain.content import DistinctRows, FeatureRows


@dataclass(frozen=True)
class Counted:
    """What was counted, and under which configuration.

    Attributes:
        rows: the counts.
        config: of the model that was counted: with ``comm.dedup`` as it is, or on where nothing travels once with it.
        on: whether anything does as it is.
    """

    rows: CountedRows
    config: DMTConfig
    on: bool

    def needs_of(self, placed: PlacedGraph) -> Sequence[Needs] | None:
        """The counts for the exchanges of a graph; None if it has no rows that travel once."""
        return self.rows.needs if self.on and placed.placement.groups else None


def count_of(placed: PlacedGraph, config: DMTConfig, samples: int, data: Iterable[Any], steps: int) -> Counted | None:
    """Counts the distinct rows of all features that travel once; where none does, of those that could.

    Args:
        placed: a rank's graph.
        config: the ``"dmt"`` section.
        samples: per rank and step.
        data: batches.
        steps: the most that are counted.

    Returns:
        None where no feature can travel once.
    """
    on = bool(placed.placement.groups)
    counted = config if on else _with(config, "on")
    graph = place_graph(placed.logical, counted, placed.topology, 0)
    if REQUESTS not in graph.placement.exchanges:
        return None
    return Counted(count_rows(graph, data, samples, steps), counted, on)


def rows_once(
    placed: PlacedGraph, config: DMTConfig, counted: Counted, shares: RowShares, sums: GradientSums
) -> DistinctRows:
    """The counts, and the bytes of the graph's rank with and without ``comm.dedup``.

    Where tower modules run where the samples are, summing their gradients over all ranks counts with it.
    """
    logical, topology, rank, rows = placed.logical, placed.topology, placed.rank, counted.rows
    once = place_graph(logical, counted.config, topology, rank)
    by_sample = place_graph(logical.with_plan(logical.plan.by_sample()), _with(config, "off"), topology, rank)
    on = [choice for choice in placed.placement.choices if choice.on]
    tables, mixed = ({t for c in own for t in c.tables} for own in (on, [c for c in on if c.mixed]))
    tables_of = {feature.name: feature.tables for feature in placed.plan.features}
    features = [
        FeatureRows(f.feature, f.ids, f.rank, f.host, _way(tables, mixed, tables_of[f.feature]))
        for f in shares.features
    ]
    away, near = _sum(costs_of(once, rows.samples, needs=rows.needs))
    (more_away, more_near), (less_away, less_near) = (_sum(gradient_costs_of(x, sums)) for x in (once, by_sample))
    return DistinctRows(
        rows.samples,
        rows.steps,
        features,
        _sum(costs_of(by_sample, rows.samples)),
        (away + more_away - less_away, near + more_near - less_near),
        shares,
        counted.on,
    )


def _way(once: set[str], mixed: set[str], tables: Sequence[str]) -> str:
    own = once.intersection(tables)
    if mixed.intersection(tables):
        return "once, and by sample"
    return "by sample" if not own else "once" if own == set(tables) else "once, of some tables"


def _with(config: DMTConfig, dedup: str) -> DMTConfig:
    comm = config.comm.model_copy(update={"dedup": dedup, "dedup_features": {}})
    return config.model_copy(update={"comm": comm})


def _sum(costs: Iterable[ExchangeCost]) -> tuple[int, int]:
    found = list(costs)
    return sum(cost.other_hosts for cost in found), sum(cost.same_host for cost in found)
