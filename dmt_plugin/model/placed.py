"""The placed model: makes of the logical tower model the part of one rank, with its exchanges and share of the tables.

1. Copy the logical graph (parameters stay shared) and run the placement and scheduling
   passes for this rank. The result holds no table: it is there to be looked at, whatever
   the tables' size.
2. Build the sharded lookup from this rank's own tables; the rest of the tables is not
   part of the model.
3. Bind the exchanges to a transport when there is one; until then the model can be looked
   at but not run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dmt_plugin.capture import CapturedModel, ExampleBatch, GraphModel, InputBinder, copy_graph, graph_module_over
from dmt_plugin.capture.graph_state import load_graph_module, save_graph_module
from dmt_plugin.comm.input_dist.input_dist import InputDist
from dmt_plugin.comm.wire.transport import Transport, Wire
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import PlanError
from dmt_plugin.fxtools.names import LOOKUP
from dmt_plugin.model.id_prefetch import IdPrefetcher
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from dmt_plugin.passes.base import PassContext, PassResult, run_passes
from dmt_plugin.passes.pipeline import KNOWN_OF_A_RANK, rank_passes
from dmt_plugin.passes.rank_facts import Placement
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.topology.shape import Topology


@dataclass(frozen=True)
class PlacedGraph:
    """What one rank will run, without its tables.

    Attributes:
        graph_module: the placed graph; an empty module stands where the lookup goes.
        logical: the tower model it was made from.
        topology: hosts and lanes.
        rank: the rank it is for.
        placement: exchanges, lookups and towers of this rank.
        passes: what each pass of the placement did.
    """

    graph_module: fx.GraphModule
    logical: TowerModel
    topology: Topology
    rank: int
    placement: Placement
    passes: tuple[PassResult, ...]

    @property
    def plan(self) -> TowerPlan:
        """Features to towers to hosts."""
        return self.logical.plan

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "graph_module": save_graph_module(self.graph_module)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, graph_module=load_graph_module(state["graph_module"]))


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
    plan: TowerPlan
    topology: Topology
    rank: int
    placement: Placement
    exchanges: Sequence[nn.Module]
    tower_paths: tuple[str, ...]
    passes: tuple[PassResult, ...]
    prefetcher: Any  # an IdPrefetcher, or None
    compiled: Any  # what runs in place of the graph's own code, or None

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
        self._keep(
            logical=logical,
            lookup=lookup,
            plan=logical.plan,
            topology=topology,
            rank=rank,
            placement=placement,
            exchanges=tuple(placement.exchanges.values()),
            tower_paths=placement.tower_paths,
            passes=(),
            prefetcher=None,
            compiled=None,
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the graph with the user's arguments; ids that were distributed ahead are used."""
        inputs = self.binder.inputs(args, kwargs)
        prefetcher: IdPrefetcher | None = self.prefetcher
        if prefetcher is not None:
            ran, result = prefetcher.run(inputs)
            if ran:
                return result
        graph_module: fx.GraphModule = self.__dict__["graph_module"]
        return graph_module(*inputs) if self.compiled is None else self.compiled(graph_module, *inputs)

    def prefetch_over(self, transport: Transport) -> IdPrefetcher:
        """From now on let the next batch's ids be distributed early.

        Args:
            transport: a wire over groups that nothing else uses.
        """
        index = self.placement.exchanges["index"]
        assert isinstance(index, InputDist)
        prefetcher = IdPrefetcher(self.__dict__["graph_module"], index, transport)
        self._keep(prefetcher=prefetcher)
        return prefetcher

    def compute_in(self, dtype: torch.dtype) -> None:
        """Towers and dense part compute in ``dtype``: rows leave the tables in it; the tables stay as they are."""
        self.lookup.row_dtype = dtype
        self.placement.compute_in(dtype)

    def bind(self, transport: Wire) -> None:
        """Connects every exchange to its wire."""
        for exchange in self.exchanges:
            exchange.bind(transport)  # type: ignore[operator]


def place_graph(logical: TowerModel, config: DMTConfig, topology: Topology, rank: int) -> PlacedGraph:
    """Specialises the graph of a tower model to one rank, without touching its tables.

    Args:
        logical: the tower model; it stays usable.
        config: the ``"dmt"`` section.
        topology: the topology that the plan is for.
        rank: the rank to look at.

    Raises:
        PlanError: the plan is for another topology.
    """
    logical.plan.check(model="", topology=topology)
    graph_module = copy_graph(logical.__dict__["graph_module"])
    captured = CapturedModel(graph_module, logical.binder, ExampleBatch(), logical.batch_size)
    facts = logical.stored_facts.over(graph_module.graph)
    ctx = PassContext(captured, config, topology, rank, facts, plan=logical.plan, tags=set(KNOWN_OF_A_RANK))
    run_passes(rank_passes(), ctx)
    return PlacedGraph(ctx.gm, logical, topology, rank, ctx.placement, tuple(ctx.results))


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
        weights: initial value of each table, or part of one, this rank owns; by default the logical model's own.
        device: where the tables are.

    Returns:
        The rank's model, not yet bound to a transport.

    Raises:
        PlanError: the plan is for another topology, or a table is not float32 or holds no values.
    """
    graph = place_graph(logical, config, topology, rank)
    own = {site.table for site in graph.placement.sites}
    if weights is None:
        weights = {table: logical.plan.shard(table).of(logical) for table in own}
    wrong = {t: weights[t].dtype for t in own if weights[t].dtype != torch.float32}
    if wrong:
        raise PlanError(f"tables must be float32 to be sharded; found {wrong}. Call model.float() first.")
    empty = sorted(t for t in own if weights[t].is_meta)
    if empty:
        raise PlanError(
            f"rank {rank} owns {len(empty)} table(s) on the meta device, such as {empty[0]!r}: there are no values to "
            "start from. Build the model on a real device to train it; explain and transform need none."
        )
    lookup = ShardedLookup(
        graph.placement.sites,
        {table: weights[table] for table in own},
        backend=config.lookup.backend,
        optimizer=config.lookup.optimizer,
        lr=config.lookup.lr,
        eps=config.lookup.eps,
        location=config.lookup.location,
        device=device,
    )
    setattr(graph.graph_module, LOOKUP, lookup)
    placed = graph_module_over(graph.graph_module, graph.graph_module.graph)
    model = PlacedModel(placed, logical.binder, logical, topology, rank, graph.placement, lookup)
    model._keep(passes=graph.passes)
    return model
