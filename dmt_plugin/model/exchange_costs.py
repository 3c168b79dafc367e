"""Bytes of the exchanges and of the sums of gradients of one step of a placed model, by formula."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from dmt_plugin.capture import graph_module_over
from dmt_plugin.comm.distinct.requests import RowRequests
from dmt_plugin.comm.output_dist.output_dist import OutputDist
from dmt_plugin.fxtools.names import INDEX, REQUESTS
from dmt_plugin.model.placed import PlacedGraph, PlacedModel
from dmt_plugin.planner.cost import ExchangeCost, exchange_costs
from dmt_plugin.planner.distinct_cost import Needs, distinct_costs
from dmt_plugin.planner.gradient_cost import GradientSums, gradient_costs


def costs_of(
    placed: PlacedGraph | PlacedModel,
    batch: int,
    as_trained: bool = False,
    needs: Sequence[Needs] | None = None,
) -> list[ExchangeCost]:
    """Bytes of every exchange of one step.

    Args:
        placed: one rank's graph, or model.
        batch: samples per rank.
        as_trained: as if no table were frozen.
        needs: by group the distinct rows that were counted; without them, of rows that travel once the most
            that can be.
    """
    placement = placed.placement
    formats = {name: x.formats for name, x in placement.exchanges.items() if isinstance(x, OutputDist)}
    requests = placement.exchanges.get(REQUESTS)
    blocks = requests.blocks if isinstance(requests, RowRequests) else 1
    once = distinct_costs(
        placement.groups, placement.distinct_slots, placed.topology, placed.rank, batch, formats, as_trained, needs,
        blocks,
    )  # fmt: skip
    if INDEX not in placement.exchanges:
        return once
    return once + exchange_costs(
        placement.slots,
        placement.rank_widths,
        sent_by_host(placed),
        placed.topology,
        placed.rank,
        batch,
        placement.route,
        formats=formats,
        rank_gradients=None if as_trained else placement.rank_gradients,
        host_gradients=None if as_trained else placement.host_gradients,
    )


def sent_by_host(placed: PlacedGraph | PlacedModel) -> list[int]:
    """Entries of a sample that each host sends to the others' ranks; none on the flat route."""
    return [sum(c.width for c in own) for own in placed.placement.host_columns]


def gradient_costs_of(placed: PlacedGraph | PlacedModel, sums: GradientSums) -> list[ExchangeCost]:
    """Bytes of summing the gradients of one step of a placed model, by formula."""
    return gradient_costs(sums, *trained_entries(placed), placed.topology)


def trained_entries(placed: PlacedGraph | PlacedModel) -> tuple[int, int]:
    """Entries with gradients in one rank's graph: those that all ranks hold, and those of its host's towers alone."""
    graph: fx.GraphModule = placed.__dict__["graph_module"]
    own = graph_module_over(graph, graph.graph)  # tables and other hosts' towers may still be there; nothing reads them
    # On one host every rank holds all towers: they are part of what all ranks share.
    paths = placed.placement.tower_paths if placed.topology.hosts > 1 else ()
    towers = {id(p) for path in paths for p in own.get_submodule(path).parameters()}
    towers |= {id(own.get_parameter(name)) for name in placed.placement.own_parameters}
    trained = [p for p in own.parameters() if p.requires_grad]
    inside = sum(p.numel() for p in trained if id(p) in towers)
    return sum(p.numel() for p in trained) - inside, inside
