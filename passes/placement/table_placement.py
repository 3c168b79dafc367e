"""Assigns tables, or shards of them, to the lanes of their host, and refuses what would change the numbers.

1. For every table: ids per sample and entries that its lookups give, and whether it can be divided. It cannot where
   the model does something to its rows that needs their ids as well (a masked sum of a sequence): that runs at the
   owner of the whole table.
2. The placer (:mod:`dmt_plugin.planner.placement`) puts whole tables on lanes and divides others, as
   ``dmt.placement`` says.
3. The same checks hold for a placement from a file: a divided table must be one that can be; columns must not be
   divided under rules that compute with a whole row, as row-wise Adagrad does; and the keys of
   ``dmt.placement`` that are set must agree with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dmt_plugin.config.messages import one_of
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError, PlanError
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.passes.base import PassContext
from dmt_plugin.passes.facts import Lookup
from dmt_plugin.passes.placement.table_shards import SentShard
from dmt_plugin.plan.tower_plan import TableSpec, TowerPlan
from dmt_plugin.planner import PlacementRules, TablePlacement, place_tables
from dmt_plugin.planner.load import ASSUMED_IDS, CostModel, LaneLoad, Load, TableUse
from dmt_plugin.planner.ranges import divisible
from dmt_plugin.topology.shape import Topology


def cost_model(config: DMTConfig, topology: Topology) -> CostModel:
    """The cost model for the exchange that looked-up rows take."""

    def rule_of(table: TableSpec) -> Rule:
        return config.lookup.rule_of(table.name, table.parameter, table.dtype, table.frozen)

    if config.comm.route == "flat":
        return CostModel(rule_of, topology.world_size, config.comm.formats_of("world"))
    return CostModel(rule_of, topology.ranks_per_host, config.comm.formats_of("lanes"))


def place(ctx: PassContext, tables: Sequence[TableSpec], host_of_feature: Mapping[str, int]) -> TablePlacement:
    """Lanes of every table; findings for tables that cannot be divided as asked.

    Raises:
        ConfigError: an override of a table that is not there, or a host with too little memory.
    """
    config = ctx.config.placement
    names = [t.name for t in tables]
    for name in config.overrides:
        if name not in names:
            raise ConfigError(f"dmt.placement.overrides.{name}: {one_of(name, names)}.")
    uses = uses_of(ctx, tables)
    rules = PlacementRules(config.strategy, config.memory_limit, config.split_gain, config.overrides)
    host_of = {x.table: host_of_feature[x.feature] for x in ctx.facts.lookups}
    placed = place_tables(uses, host_of, ctx.topology, rules, cost_model(ctx.config, ctx.topology))
    if ctx.topology.ranks_per_host > 1:
        for use in uses:
            _say_undivided(ctx, use, placed)
    return placed


def uses_of(ctx: PassContext, tables: Sequence[TableSpec]) -> list[TableUse]:
    """What is looked up in each table."""
    return [
        TableUse(table, sum(map(ids_per_sample, own)), sum(x.width for x in own), _why_whole(ctx, own), _why_rows(own))
        for table in tables
        if (own := [x for x in ctx.facts.lookups if x.table == table.name])
    ]


def ids_per_sample(lookup: Lookup) -> float:
    """Ids of a lookup per sample, assumed where their number varies."""
    return lookup.hotness or ASSUMED_IDS


def _why_whole(ctx: PassContext, lookups: Sequence[Lookup]) -> str:
    for lookup in lookups:
        region = ctx.facts.regions.get(lookup.node)
        if region is not None and region.ids:
            return (
                f"what the model does to its rows up to {region.stream.name} needs their ids as well, and runs where "
                "all its rows are"
            )
    return ""


def _why_rows(lookups: Sequence[Lookup]) -> str:
    if any(lookup.pooling == "max" for lookup in lookups):
        return "it is pooled by maximum, and a range of rows does not know what of a bag is largest in the others"
    return ""


def _say_undivided(ctx: PassContext, use: TableUse, placed: TablePlacement) -> None:
    """Says why a table is whole that was to be divided."""
    name, config = use.table.name, ctx.config.placement
    kind = config.overrides.get(name, config.strategy)
    if kind in ("auto", "table_wise") or name in placed.splits:
        return
    why = use.why_not(kind) or "it has one row or column"
    if name in config.overrides:
        _refuse(ctx, name, kind, why)
    else:
        ctx.find("DMT308", "info", name, f"the table stays whole although dmt.placement.strategy is {kind}: {why}")


def _refuse(ctx: PassContext, table: str, kind: str, why: str) -> None:
    ctx.find(
        "DMT309", "error", table,
        f"the table cannot be placed {kind}: {why}",
        'set "table_wise" for it in dmt.placement.overrides, or in table_lanes of the plan; or pool the rows with '
        'nn.EmbeddingBag, if ids are what they need; pooled by maximum, "column_wise" is possible too',
    )  # fmt: skip


def check_placement(ctx: PassContext) -> None:
    """Findings for divided tables of the plan that would not compute what the whole table does."""
    assert ctx.plan is not None
    model = cost_model(ctx.config, ctx.topology)
    for use in uses_of(ctx, ctx.plan.tables):
        name, kind = use.table.name, ctx.plan.kind_of(use.table.name)
        if kind == "table_wise":
            continue
        if use.why_not(kind) or not divisible(use.table, kind):
            _refuse(ctx, name, kind, use.why_not(kind) or "it has one row or column")
        elif kind == "column_wise" and (why := model.rule_of(use.table).mixes_columns):
            ctx.find(
                "DMT310", "error", name,
                f"the table's columns are divided, and {why}: each range would take its own, and the table would be "
                "trained by another rule",
                'place it "row_wise" (dmt.placement), or set dmt.lookup.optimizer to "adam", "adagrad" or "sgd", which '
                "know no rows",
            )  # fmt: skip


def check_settings(config: DMTConfig, plan: TowerPlan, file: str, topology: Topology) -> None:
    """A key of ``dmt.placement`` that is set and contradicts the plan is an error, not a suggestion.

    Raises:
        PlanError: naming the key and the table.
    """
    placement = config.placement
    for table in plan.tables:
        wanted = placement.overrides.get(table.name, placement.strategy)
        found = plan.kind_of(table.name)
        if wanted in ("auto", found) or topology.ranks_per_host == 1:
            continue
        key = f"overrides.{table.name}" if table.name in placement.overrides else "strategy"
        if key == "strategy" and found == "table_wise":
            continue  # a table that cannot be divided stays whole
        raise PlanError(
            f"dmt.placement.{key} is {wanted!r}, but the plan in {file} has table {table.name} {found}. Remove the "
            'key, make a new plan, or keep only its towers: a partition file may hold just {"towers": [[...], ...]}.'
        )
    limit = placement.memory_limit
    if limit is None:
        return
    model = cost_model(config, topology)
    used: dict[tuple[int, int], int] = {}
    for table in plan.tables:
        for part in plan.shards_of(table.name):
            where = (part.host, part.lane)
            used[where] = used.get(where, 0) + model.memory(part.table, part.rows, part.columns)
    full = {f"host {h}, lane {j}": need for (h, j), need in sorted(used.items()) if need > limit}
    if full:
        raise PlanError(
            f"dmt.placement.memory_per_rank is {limit} bytes, but the plan in {file} needs more: {full}. Raise the "
            "limit or make a new plan."
        )


def lane_loads(
    shards: Sequence[Sequence[SentShard]], config: DMTConfig, topology: Topology, widths: Sequence[int]
) -> tuple[LaneLoad, ...]:
    """The predicted load of every rank.

    Args:
        shards: what each rank looks up.
        config: the ``"dmt"`` section.
        topology: hosts and lanes.
        widths: entries per sample that each rank sends.
    """
    model = cost_model(config, topology)
    found = []
    for rank, own in enumerate(shards):
        parts = {p.shard for p in own}
        lookups = [ids_per_sample(p.value.lookup) * p.shard.rows / p.shard.table.rows for p in own]
        memory = sum(model.memory(part.table, part.rows, part.columns) for part in parts)
        back = sum(p.width for p in own if not p.shard.table.frozen)
        sent = model.exchange(Load(width=widths[rank], back=back))
        found.append(LaneLoad(topology.host_of(rank), topology.lane_of(rank), len(parts), memory, sum(lookups), sent))
    return tuple(found)
