"""Assigns tables, or shards of them, to the lanes of their host, and refuses what would change the numbers.

1. For every table: ids per sample and entries that its lookups give, and whether it can be divided. It cannot where
   the model does something to its rows that needs their ids as well (a masked sum of a sequence): that runs at the
   owner of the whole table. Of tables whose rows travel once, which owners only send, also how many rows batches need,
   where that was counted.
2. The placer (:mod:`dmt_plugin.planner.placement`) puts whole tables on lanes and divides others, as
   ``dmt.placement`` says.
3. The same checks hold for a placement from a file: a divided table must be one that can be; columns must not be
   divided under rules that compute with a whole row, as row-wise Adagrad does; and the keys of
   ``dmt.placement`` that are set must agree with it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Protocol

from dmt_plugin.config.messages import one_of
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import ConfigError, PlanError
from dmt_plugin.core.update_rule import Rule
from dmt_plugin.passes.base import PassContext
from dmt_plugin.passes.facts import Lookup
from dmt_plugin.passes.placement.table_shards import SentShard
from dmt_plugin.passes.placement.travels_once import PlannedTower, travelling_once
from dmt_plugin.plan.tower_plan import TableSpec, TowerPlan
from dmt_plugin.planner import PlacementRules, TablePlacement, place_tables
from dmt_plugin.planner.load import ASSUMED_IDS, CostModel, HostRows, LaneLoad, Load, TableUse, total
from dmt_plugin.planner.ranges import divisible
from dmt_plugin.topology.shape import Topology


class RowTower(Protocol):
    """A tower module that rows go through, each by itself."""

    @property
    def width(self) -> int:
        """Entries that it makes of a row."""

    @property
    def mixed(self) -> int:
        """Entries per sample that it makes of all its rows together, beside those."""


def cost_model(config: DMTConfig, topology: Topology) -> CostModel:
    """The cost model for the exchange that looked-up rows take."""

    @cache
    def rule_of(table: TableSpec) -> Rule:
        return config.lookup.rule_of(table.name, table.parameter, table.dtype, table.frozen)

    if config.comm.route == "flat":
        members, formats = topology.world_size, config.comm.formats_of("world")
        return CostModel(rule_of, members, formats, members, formats)
    lanes, peers = config.comm.formats_of("lanes"), config.comm.formats_of("peers")
    return CostModel(rule_of, topology.ranks_per_host, lanes, topology.by_machine.hosts, peers)


def place(
    ctx: PassContext, tables: Sequence[TableSpec], host_of_feature: Mapping[str, int], towers: Sequence[PlannedTower]
) -> TablePlacement:
    """Lanes of every table; findings for tables that cannot be divided as asked.

    Args:
        ctx: the model.
        tables: all of its tables.
        host_of_feature: host of each feature's tower.
        towers: what tower modules are going to read.

    Raises:
        ConfigError: an override of a table that is not there, or a host with too little memory.
    """
    config = ctx.config.placement
    names = [t.name for t in tables]
    for name in config.overrides:
        if name not in names:
            raise ConfigError(f"dmt.placement.overrides.{name}: {one_of(name, names)}.")
    once = travelling_once(ctx, towers).towers
    uses = counted(ctx, uses_of(ctx, tables), once)
    rules = PlacementRules(config.strategy, config.memory_limit, config.split_gain, config.overrides)
    host_of = {x.table: host_of_feature[x.feature] for x in ctx.facts.lookups}
    placed = place_tables(uses, host_of, ctx.topology, rules, cost_model(ctx.config, ctx.topology))
    if ctx.topology.ranks_per_host > 1:
        for use in uses:
            _say_undivided(ctx, use, placed)
    return placed


def asked_by_columns(config: DMTConfig, table: str) -> bool:
    """Whether ``dmt.placement`` asks for a table's columns to be divided."""
    return config.placement.overrides.get(table, config.placement.strategy) == "column_wise"


def uses_of(ctx: PassContext, tables: Sequence[TableSpec]) -> list[TableUse]:
    """What is looked up in each table."""
    return [
        TableUse(table, sum(map(ids_per_sample, own)), sum(x.width for x in own), _why_whole(ctx, own), _why_rows(own))
        for table in tables
        if (own := [x for x in ctx.facts.lookups if x.table == table.name])
    ]


def counted(ctx: PassContext, uses: Sequence[TableUse], once: Mapping[str, RowTower | None]) -> list[TableUse]:
    """The uses, those of tables whose rows travel once with the rows that batches need, where these were counted.

    Args:
        ctx: the model, and what was counted.
        uses: of all tables.
        once: the tables whose rows travel once, each with the tower module that they go through, if any.
    """
    rows = rows_per_sample(ctx)
    found = []
    for use in uses:
        name = use.table.name
        if name in once and name in rows:
            tower = once[name]
            use = replace(use, whole="", rows=rows[name], free=tower is None, **_through(tower))
        found.append(use)
    return found


def _through(tower: RowTower | None) -> dict[str, Any]:
    """What a use says of the tower module that rows go through."""
    return {} if tower is None else {"row_width": tower.width, "mixed": tower.mixed > 0}


def rows_per_sample(ctx: PassContext) -> dict[str, float]:
    """By table the distinct rows that the batches of a host (on the flat route: a rank) need, per sample of these."""
    shares = ctx.row_shares or (ctx.plan.row_shares if ctx.plan is not None else None)
    if shares is None:
        return {}
    if ctx.config.comm.route == "flat":
        return {own.table: own.rank / shares.samples for own in shares.tables}
    return {own.table: own.host / (shares.samples * shares.lanes) for own in shares.tables}


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


def check_placement(ctx: PassContext, once: Collection[str]) -> None:
    """Findings for divided tables of the plan that would not compute what the whole table does.

    Args:
        ctx: the model, with its plan.
        once: the tables whose rows travel once.
    """
    assert ctx.plan is not None
    model = cost_model(ctx.config, ctx.topology)
    for use in uses_of(ctx, ctx.plan.tables):
        name, kind = use.table.name, ctx.plan.kind_of(use.table.name)
        if kind == "table_wise":
            continue
        if kind == "row_wise" and name in once:  # owners only send rows; what the model does to them is done elsewhere
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
    ctx: PassContext, shards: Sequence[Sequence[SentShard]], once: Mapping[str, RowTower | None]
) -> tuple[LaneLoad, ...]:
    """The predicted load of every rank.

    Args:
        ctx: the model, with its plan.
        shards: what each rank looks up by sample.
        once: the tables whose rows travel once, each with the tower module that they go through, if any.
    """
    assert ctx.plan is not None
    model = cost_model(ctx.config, ctx.topology)
    loads: list[list[Load]] = [[] for _ in shards]
    for use in uses_once(ctx, once):
        for shard in ctx.plan.shards_of(use.table.name):
            loads[ctx.topology.rank_of(shard.host, shard.lane)].append(model.load(use, shard))
    found = []
    for rank, of_rank in enumerate(shards):
        own = [p for p in of_rank if p.shard.table.name not in once]  # else they are in the loads of those
        parts = {p.shard for p in own}
        lookups = sum(ids_per_sample(p.value.lookup) * p.shard.rows / p.shard.table.rows for p in own)
        memory = sum(model.memory(part.table, part.rows, part.columns) for part in parts)
        back = sum(p.width for p in own if not p.shard.table.frozen)
        by_sample = Load(memory, lookups, width=sum(p.width for p in own), back=back)
        load = total([by_sample, *loads[rank]])
        host, lane = ctx.topology.host_of(rank), ctx.topology.lane_of(rank)
        count = len(parts) + len(loads[rank])
        found.append(LaneLoad(host, lane, count, load.memory, load.lookups, model.exchange(load)))
    return tuple(found)


def uses_once(ctx: PassContext, once: Mapping[str, RowTower | None]) -> list[TableUse]:
    """What is looked up in the tables whose rows travel once; where nobody has counted, every id is another row."""
    assert ctx.plan is not None
    uses = [use for use in uses_of(ctx, ctx.plan.tables) if use.table.name in once]
    return [
        use if use.rows is not None else replace(use, rows=use.ids, **_through(tower))
        for use in counted(ctx, uses, once)
        for tower in [once[use.table.name]]
    ]


def host_rows(ctx: PassContext, once: Mapping[str, RowTower | None]) -> tuple[HostRows, ...]:
    """What the owners on each host send in a step of the batches that were counted; empty where none were.

    Args:
        ctx: the model, with its plan.
        once: the tables whose rows travel once, each with the tower module that they go through, if any.
    """
    plan, topology = ctx.plan, ctx.topology
    assert plan is not None
    shares, model = plan.row_shares, cost_model(ctx.config, topology)
    others = topology.by_machine.hosts - 1
    if shares is None or topology.hosts == 1:
        return ()
    samples = shares.samples * shares.lanes
    whole, parts = [set[str]() for _ in range(topology.hosts)], [set[str]() for _ in range(topology.hosts)]
    rows, sent = [0.0] * topology.hosts, [0.0] * topology.hosts
    for use in counted(ctx, uses_of(ctx, plan.tables), once):
        for shard in plan.shards_of(use.table.name) if use.rows is not None else ():
            part = shard.rows * shard.columns / (use.table.rows * use.table.dim)
            (whole if shard.kind == "table_wise" else parts)[shard.host].add(use.table.name)
            rows[shard.host] += samples * (use.rows or 0.0) * shard.rows / use.table.rows
            sent[shard.host] += samples * others * part * model.between_hosts(use)
    mean = sum(sent) / topology.hosts
    return tuple(
        HostRows(h, len(whole[h]), len(parts[h]), rows[h], sent[h], sent[h] / mean if mean else 1.0)
        for h in range(topology.hosts)
        if mean
    )
