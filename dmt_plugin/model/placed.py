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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dmt_plugin.capture import CapturedModel, ExampleBatch, GraphModel, InputBinder, copy_graph, graph_module_over
from dmt_plugin.capture.graph_state import load_graph_module, save_graph_module
from dmt_plugin.capture.misfits import said_to_the_user
from dmt_plugin.comm.id_exchange import IdExchange
from dmt_plugin.comm.wire.transport import Transport, Wire
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import PlanError, TablesReleasedError
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.fxtools.names import LOOKUP
from dmt_plugin.model.id_prefetch import IdPrefetcher
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.model.unread_ids import Ends, ends_of, told_to_others
from dmt_plugin.nn.lookup.rounding import TORCH_TYPES, Place, type_of
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from dmt_plugin.nn.lookup.site import Fill
from dmt_plugin.passes.base import PassContext, PassResult, run_passes
from dmt_plugin.passes.pipeline import KNOWN_OF_A_RANK, rank_passes
from dmt_plugin.passes.rank_facts import Placement
from dmt_plugin.plan.tables import TableShard, TableSpec
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.tables.layer_rules import meta_sources
from dmt_plugin.tables.sources import RowSource, TableInit, ValuesSource
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
        id_exchanges: those of ids, by name.
        id_ends: their ends in the order of the graph.
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
    id_exchanges: Mapping[str, IdExchange]
    id_ends: Ends
    tower_paths: tuple[str, ...]
    passes: tuple[PassResult, ...]
    prefetcher: Any  # an IdPrefetcher, or None
    compiled: Any  # what runs in place of the graph's own code, or None
    guard: Any  # of the user's model, once its tables were let go (dmt_plugin.model.guard)

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
            id_exchanges={n: x for n, x in placement.exchanges.items() if isinstance(x, IdExchange)},
            id_ends=ends_of(graph_module.graph),
            tower_paths=placement.tower_paths,
            passes=(),
            prefetcher=None,
            compiled=None,
            guard=None,
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the graph with the user's arguments; ids that were distributed ahead are used."""
        prefetcher: IdPrefetcher | None = self.prefetcher
        if prefetcher is not None and prefetcher.busy:  # the other ranks wait for no ids of this call
            return self._run(args, kwargs, prefetcher)
        with told_to_others(self.id_ends, self.id_exchanges):
            return self._run(args, kwargs, prefetcher)

    def _run(self, args: Sequence[Any], kwargs: dict[str, Any], prefetcher: IdPrefetcher | None) -> Any:
        inputs = self.binder.inputs(args, kwargs)
        with said_to_the_user(self.binder, inputs):
            if prefetcher is not None:
                ran, result = prefetcher.run(inputs)
                if ran:
                    return result
            graph_module: fx.GraphModule = self.__dict__["graph_module"]
            if self.compiled is not None:
                return self.compiled(graph_module, *inputs)
            return nn.Module.__call__(graph_module, *inputs)  # fx's own call prints generated code

    def own_state(self, *, keep_vars: bool = False) -> dict[str, Any]:
        """Parameters and buffers of this rank's towers and dense part, by name; no tables.

        Args:
            keep_vars: as for ``state_dict``.
        """
        state: dict[str, Any] = super().state_dict(keep_vars=keep_vars)
        return state

    def put_under(self, guard: Any) -> None:
        """From now on this model is one of many ranks, and neither gives nor takes a state as if it were whole."""
        self._keep(guard=guard)

    def _refuse(self, what: str) -> None:
        if self.__dict__.get("guard") is not None:
            raise TablesReleasedError(f"{what} of one rank's part of the model")

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As for any module, until tables are with their owners: then an error, as this rank's would be half a model.

        Raises:
            TablesReleasedError: the model belongs to an engine.
        """
        self._refuse("state_dict()")
        return super().state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._refuse("load_state_dict()")  # also of what wraps this model
        super()._load_from_state_dict(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModel:
        self._refuse("a copy")
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[str, Any]:
        self._refuse("pickling")
        return super().__getstate__()

    def prefetch_over(self, transport: Transport) -> IdPrefetcher:
        """From now on let the next batch's ids be distributed early.

        Args:
            transport: a wire over groups that nothing else uses.
        """
        prefetcher = IdPrefetcher(self.__dict__["graph_module"], self.id_exchanges, transport)
        self._keep(prefetcher=prefetcher)
        return prefetcher

    def compute_in(self, dtype: torch.dtype) -> None:
        """Rows leave the tables in ``dtype``, for what computes with them; the tables stay as they are."""
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
    sources: Mapping[str, RowSource] | None = None,
    device: torch.device | str = "cpu",
) -> PlacedModel:
    """Specialises a tower model to one rank.

    Args:
        logical: the tower model; it stays usable.
        config: the ``"dmt"`` section.
        topology: the topology that the plan is for.
        rank: this rank.
        sources: by parameter where its rows come from, see :func:`place_tables`; by default the logical model's own
            tables.
        device: where the tables are.

    Returns:
        The rank's model, not yet bound to a transport.

    Raises:
        PlanError: the plan is for another topology, or a table is not float32, bfloat16 or float16.
        TableInitError: a table is on the meta device, and there is no rule for its rows.
    """
    graph = place_graph(logical, config, topology, rank)
    if sources is None:
        sources, _ = sources_of(logical.flat, graph.plan.tables, seed=seed_of(config))
    return place_tables(graph, config, sources, device=device)


def seed_of(config: DMTConfig) -> int:
    """Seed of the rows of tables on meta: the configuration's, else that of torch in this process."""
    return torch.initial_seed() % 2**63 if config.lookup.seed == "auto" else config.lookup.seed


def sources_of(
    flat: nn.Module,
    tables: Iterable[TableSpec],
    *,
    seed: int,
    table_init: TableInit | None = None,
    strict: bool = False,
) -> tuple[dict[str, RowSource], list[str]]:
    """Where the rows of a flat model's tables come from: the tables themselves, or the rules of those on meta.

    Args:
        flat: the user's model.
        tables: those that are asked for.
        seed: of the rules' random numbers.
        table_init: makes rows of tables on meta, see :func:`dmt_plugin.tables.sources.meta_sources`.
        strict: a table on meta without a rule of its own is an error.

    Returns:
        Sources by parameter; and a line for each table whose rule is that of its layer.

    Raises:
        PlanError: a table is of another type than float32, bfloat16 and float16.
        TableInitError: there is no rule for a table on meta.
    """
    parameters = {name: flat.get_parameter(name) for name in sorted({table.parameter for table in tables})}
    wrong = {name: p.dtype for name, p in parameters.items() if type_of(p.dtype) is None}
    if wrong:
        raise PlanError(
            f"tables must be float32, bfloat16 or float16 to be sharded; found {wrong}. Call model.float() first."
        )
    on_meta = [name for name, p in parameters.items() if p.is_meta]
    made, lines = meta_sources(flat, on_meta, seed=seed, table_init=table_init, strict=strict)
    return {name: made[name] if name in made else ValuesSource(p.detach()) for name, p in parameters.items()}, lines


def place_tables(
    graph: PlacedGraph,
    config: DMTConfig,
    sources: Mapping[str, RowSource],
    *,
    device: torch.device | str = "cpu",
) -> PlacedModel:
    """Allocates the tables of one rank and fills them in place; rows have the dtype that the flat model's have.

    Args:
        graph: what the rank runs.
        config: the ``"dmt"`` section.
        sources: by parameter of the flat model where its rows come from; tables without one start from zeros.
        device: where the tables are.
    """
    own = {name: graph.plan.shard(name) for name in graph.placement.shards}
    lookup = ShardedLookup(
        graph.placement.sites,
        {name: _fill(shard, sources) for name, shard in own.items()},
        backend=config.lookup.backend,
        rules={name: _rule(config, shard.table) for name, shard in own.items()},
        location=config.lookup.location,
        device=device,
        places={name: Place.of(shard) for name, shard in own.items()},
        seed=0 if config.lookup.seed == "auto" else config.lookup.seed,
        stacks=graph.placement.stacks,
    )
    setattr(graph.graph_module, LOOKUP, lookup)
    placed = graph_module_over(graph.graph_module, graph.graph_module.graph)
    logical = graph.logical
    model = PlacedModel(placed, logical.binder, logical, graph.topology, graph.rank, graph.placement, lookup)
    model._keep(passes=graph.passes)
    model.compute_in(TORCH_TYPES[graph.plan.row_dtype])
    return model


def _rule(config: DMTConfig, table: TableSpec) -> Rule:
    return config.lookup.rule_of(table.name, table.parameter, table.dtype, table.frozen)


def _fill(shard: TableShard, sources: Mapping[str, RowSource]) -> Fill:
    """What writes the rows of one shard into the table that is to hold them."""

    def fill(view: Tensor) -> None:
        source = sources.get(shard.table.parameter)
        if source is None:
            view.zero_()
        else:
            source.fill(shard.parameter_rows, shard.parameter_columns, view)

    return fill
