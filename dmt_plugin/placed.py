"""One rank's model: the logical tower graph, specialised, with its share of the tables.

1. Copy the logical graph (parameters stay shared) and run the placement and scheduling
   passes for this rank.
2. Build the sharded lookup from this rank's own tables; the rest of the tables is not
   part of the model.
3. Bind the exchanges to a transport when there is one; until then the model can be looked
   at but not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from dmt_plugin.capture import CapturedModel, ExampleBatch, GraphModel, InputBinder, graph_module_over
from dmt_plugin.comm.transport import Wire
from dmt_plugin.config import DMTConfig
from dmt_plugin.errors import PlanError
from dmt_plugin.nn.lookup import ShardedLookup
from dmt_plugin.passes.base import PassContext, PassResult, run_passes
from dmt_plugin.passes.find_lookups import FindLookups
from dmt_plugin.passes.place import LOOKUP, Place, Placement
from dmt_plugin.passes.schedule import Schedule
from dmt_plugin.plan import TowerPlan
from dmt_plugin.topology import Topology
from dmt_plugin.tower_model import TowerModel


class PlacedModel(GraphModel):
    """The model of one rank, called as the user's model is.

    Args:
        graph_module: the placed graph.
        binder: maps calls to graph inputs.
        logical: the tower model it was made from.
        topology: hosts and lanes.
        rank: this rank.
        placement: exchanges, lookups and towers of this rank.
        lookup: this rank's tables; outside the module tree's parameters.

    Attributes:
        exchanges: the exchange modules, in the order of the route.
        tower_paths: names of tower modules that only this host's lanes hold.
    """

    # Kept outside the module tree: their parameters are not this rank's to train.
    logical: TowerModel
    lookup: ShardedLookup

    def __init__(
        self,
        graph_module: fx.GraphModule,
        binder: InputBinder,
        logical: TowerModel,
        topology: Topology,
        rank: int,
        placement: Placement,
        lookup: ShardedLookup,
    ) -> None:
        super().__init__(graph_module, binder)
        self.__dict__["logical"] = logical
        self.__dict__["lookup"] = lookup
        self.plan: TowerPlan = logical.plan
        self.topology = topology
        self.rank = rank
        self.placement = placement
        self.exchanges: Sequence[nn.Module] = tuple(placement.exchanges.values())
        self.tower_paths = placement.tower_paths
        self.passes: tuple[PassResult, ...] = ()

    def bind(self, transport: Wire) -> None:
        """Connects every exchange to its wire."""
        for exchange in self.exchanges:
            exchange.bind(transport)  # type: ignore[operator]


def place(
    logical: TowerModel,
    config: DMTConfig,
    topology: Topology,
    rank: int,
    *,
    weights: Mapping[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
) -> PlacedModel:
    """Specialises a tower model to one rank.

    Args:
        logical: the tower model; it stays usable.
        config: the ``"dmt"`` section.
        topology: the topology that the plan is for.
        rank: this rank.
        weights: initial value of each table this rank owns; by default the logical model's own.
        device: where the tables are.

    Returns:
        The rank's model, not yet bound to a transport.

    Raises:
        PlanError: the plan is for another topology, or a table is not float32.
    """
    logical.plan.check(model="", topology=topology)
    graph_module = copy_graph(logical)
    captured = CapturedModel(graph_module, logical.binder, ExampleBatch(), logical.batch_size)
    ctx = PassContext(captured, config, topology, plan=logical.plan, tags={"single_lookups", "plan"})
    placing = Place(rank)
    run_passes([FindLookups(), placing, Schedule()], ctx)
    own = {site.table for site in placing.placement.sites}
    if weights is None:
        weights = {table: logical.get_parameter(f"{table}.weight").detach() for table in own}
    wrong = {t: weights[t].dtype for t in own if weights[t].dtype != torch.float32}
    if wrong:
        raise PlanError(f"tables must be float32 to be sharded; found {wrong}. Call model.float() first.")
    lookup = ShardedLookup(
        placing.placement.sites,
        {table: weights[table] for table in own},
        backend=config.lookup.backend,
        optimizer=config.lookup.optimizer,
        lr=config.lookup.lr,
        eps=config.lookup.eps,
        location=config.lookup.location,
        device=device,
    )
    setattr(ctx.gm, LOOKUP, lookup)
    placed = graph_module_over(ctx.gm, ctx.gm.graph)
    model = PlacedModel(placed, logical.binder, logical, topology, rank, placing.placement, lookup)
    model.passes = tuple(ctx.results)
    return model


def copy_graph(model: GraphModel) -> fx.GraphModule:
    """A graph module with its own copy of the graph and the same parameters."""
    source: fx.GraphModule = model.__dict__["graph_module"]
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(source.graph, values))
    return graph_module_over(source, graph)
