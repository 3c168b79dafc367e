"""Makes the tower plan: features to towers, towers to hosts, tables to lanes.

1. Collect the features and tables of the lookups; their fingerprint identifies the model.
2. The partitioner assigns features to towers. What was given (from a file, say) may hold only
   ``{"towers": [[...], ...]}``, or a whole plan: then that is the plan, and it must fit this
   model, this topology and every key of the "dmt" section that is set.
3. Towers go to hosts, tables to the lanes of their host (:mod:`dmt_plugin.passes.placement.table_placement`).
4. A tower group that leaves some tower without a feature cannot be exchanged evenly: it
   is refused, or moved unchanged.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from dmt_plugin.config.section import DMTConfig
from dmt_plugin.config.towers import TowersConfig
from dmt_plugin.core.errors import ConfigError, PlanError
from dmt_plugin.core.limits import TOWER_MODULES
from dmt_plugin.nn.towers import automatic_dim
from dmt_plugin.partitioner.files import resolve
from dmt_plugin.passes.base import WAYS_OUT, Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.facts import Lookup, StreamGroup
from dmt_plugin.passes.placement.table_placement import (
    asked_by_columns,
    check_placement,
    check_settings,
    place,
    rows_per_sample,
)
from dmt_plugin.passes.placement.travels_once import planned_towers, travelling_once
from dmt_plugin.plan.fit import model_fingerprint, weights_fingerprint
from dmt_plugin.plan.tower_plan import FeatureSpec, GroupSpec, TableSpec, TowerModuleSpec, TowerPlan
from dmt_plugin.planner import towers_to_hosts


class MakeTowerPlan(GraphPass):
    """See the module's docstring."""

    name = "partition_features"
    contract = Contract(provides=frozenset({"plan"}), requires=frozenset({"groups", "row_shares"}))

    def run(self, ctx: PassContext) -> PassResult:
        """Fills ``ctx.plan``."""
        tables, features = describe(ctx.facts.lookups)
        fingerprint = model_fingerprint(tables, features)
        given = ctx.given
        if given is not None and given.is_plan:
            plan = given.plan
            plan.check(model=fingerprint, topology=ctx.topology)
            plan.check_model(tables, features)
            plan = _kept_as(plan, tables)
            if plan.row_shares is None:
                plan = dataclasses.replace(plan, row_shares=ctx.row_shares)
            _check_settings(ctx.config, plan, given.named)
            check_settings(ctx.config, plan, given.named, ctx.topology)
            _apply_kinds(ctx, plan)
            ctx.plan = plan
            _check_placement(ctx)
            return self.result(len(features), note=f"plan from {given.named}")
        count = ctx.config.towers.count
        if count == "auto":
            count = (given and given.towers) or ctx.topology.hosts
        towers = int(count)
        hosts = towers_to_hosts(towers, ctx.topology)
        rows = candidate_rows(ctx, features)
        made = resolve(features, tables, towers, ctx.config.partition, fingerprint, given, rows)
        assigned = made.towers
        host_of = {name: hosts[t] for t, names in enumerate(assigned) for name in names}
        self._check_groups(ctx, assigned)
        width = next((g.width for g in ctx.facts.groups if g.kind == "tower"), 0)
        module, overrides = module_spec(ctx.config, width), override_specs(ctx.config, width, towers)

        def module_of(group: StreamGroup, tower: int) -> TowerModuleSpec:
            return dataclasses.replace(overrides.get(tower, module), dim=_dim(ctx.config, group))

        behind = planned_towers(ctx, assigned, module_of, lambda table: asked_by_columns(ctx.config, table))
        placed = place(ctx, tables, host_of, behind)
        ctx.plan = TowerPlan(
            topology=str(ctx.topology),
            tables=tables,
            features=features,
            groups=tuple(
                GroupSpec(
                    g.name,
                    g.kind,
                    g.width,
                    tuple(x.feature for x in g.lookups),
                    g.form,
                    _dim(ctx.config, g),
                    _own_parameters(ctx, g),
                )
                for g in ctx.facts.groups
            ),
            towers=assigned,
            tower_hosts=hosts,
            table_lanes=placed.lanes,
            table_splits=placed.splits,
            table_hosts=placed.hosts,
            module=module,
            overrides=overrides,
            model=fingerprint,
            weights=weights_fingerprint(tables),
            provenance=made.provenance,
            row_shares=ctx.row_shares,
        )
        _check_placement(ctx)
        return self.result(len(features), note=f"{towers} towers of {[len(t) for t in assigned]} features")

    def _check_groups(self, ctx: PassContext, towers: tuple[tuple[str, ...], ...]) -> None:
        for group in ctx.facts.groups:
            members = {lookup.feature for lookup in group.lookups}
            empty = [t for t, names in enumerate(towers) if not members & set(names)]
            if group.kind != "tower" or not empty or ctx.config.towers.module == "none":
                continue
            ctx.find(
                "DMT304", ctx.unsupported, group.lookups[0].table,
                f"tower(s) {empty} have no feature of {group.name}, so hosts would hold different numbers of tower "
                "modules",
                _fewer_towers(ctx, towers),
                at=group.joins,
            )  # fmt: skip
            _to_transport(group, f"tower(s) {empty} have none of its features")


def candidate_rows(ctx: PassContext, features: Sequence[FeatureSpec]) -> dict[str, float]:
    """What partitions are made by: how many rows tables give that travel once if the rest of their tower's do.

    Args:
        ctx: the model, with the groups of its features and what was counted.
        features: all of its features.

    Returns:
        By table the distinct rows that batches need, per sample.
    """
    width = next((g.width for g in ctx.facts.groups if g.kind == "tower"), 0)
    module = module_spec(ctx.config, width)
    alone = [(feature.name,) for feature in features]
    towers = planned_towers(ctx, alone, lambda group, tower: module, lambda table: asked_by_columns(ctx.config, table))
    rows = rows_per_sample(ctx)
    return {table: rows[table] for table in travelling_once(ctx, towers).towers if table in rows}


def _check_placement(ctx: PassContext) -> None:
    """What the plan says, once it is there."""
    plan = ctx.plan
    assert plan is not None
    specs = {group.name: group for group in plan.groups}
    towers = planned_towers(
        ctx,
        plan.towers,
        lambda group, tower: plan.module_of(specs[group.name], tower),
        lambda table: plan.kind_of(table) == "column_wise",
    )
    check_placement(ctx, travelling_once(ctx, towers).towers)


def _fewer_towers(ctx: PassContext, towers: tuple[tuple[str, ...], ...]) -> str:
    """What to do where a tower has no feature of a group: towers that can all have one, if there are any."""
    fewest = min(len({x.feature for x in g.lookups}) for g in ctx.facts.groups if g.kind == "tower")
    if fewest >= len(towers):
        return (
            "give every tower a feature of each group in dmt.partition.file; dmt partition --model ... --data ... "
            "writes one that does"
        )
    count = fewest - fewest % ctx.topology.hosts
    if count:
        return f"set dmt.towers.count to {count}, with a feature of each group for every tower in dmt.partition.file"
    return f"use at most {fewest} hosts (dmt.topology), with a tower each; or {WAYS_OUT}"


def _check_settings(config: DMTConfig, plan: TowerPlan, file: str) -> None:
    """A key that is set in the config and contradicts the plan is an error, not a suggestion."""
    planned: dict[str, object] = {**dataclasses.asdict(plan.module), "count": len(plan.towers)}
    planned["module"] = planned.pop("kind")
    wanted: object
    _check_own_modules(config, plan, file)
    if "overrides" in config.towers.model_fields_set:
        wanted = override_specs(config, 0, len(plan.towers), plan.module.dim)
        if wanted != dict(plan.overrides):
            raise PlanError(
                f"dmt.towers.overrides is for tower(s) {sorted(config.towers.overrides)}, but the plan in {file} was "
                f"made with others: {plan.to_dict()['overrides']}. Remove the key or make a new plan."
            )
    for key in sorted(config.towers.model_fields_set - {"overrides"}):
        wanted = getattr(config.towers, key)
        if wanted not in ("auto", planned[key]):
            raise PlanError(
                f"dmt.towers.{key} is {wanted!r}, but the plan in {file} says {planned[key]!r}. Remove the key, make a "
                'new plan, or keep only its towers: a partition file may hold just {"towers": [[...], ...]}.'
            )


def _check_own_modules(config: DMTConfig, plan: TowerPlan, file: str) -> None:
    """A plan is data: a class that it names is imported only if the configuration names it too."""
    towers = config.towers
    named = {kind.replace(":", ".") for kind in (towers.module, *(o.module for o in towers.overrides.values())) if kind}
    for spec in (plan.module, *plan.overrides.values()):
        if spec.kind not in TOWER_MODULES and spec.kind.replace(":", ".") not in named:
            raise PlanError(
                f"the plan in {file} was made with the tower module {spec.kind!r}, which the configuration does not "
                "name. A plan is data: nothing is imported because it says so. If the class is yours, and you trust "
                f'it, set dmt.towers.module to "{spec.kind}", or dmt.towers.overrides for single towers, as when the '
                "plan was made."
            )


def _kept_as(plan: TowerPlan, tables: Sequence[TableSpec]) -> TowerPlan:
    """A plan with the types of this model's tables, and those frozen that are, whatever it was planned with."""
    here = {table.name: table for table in tables}

    def own(planned: TableSpec) -> TableSpec:
        table = here.get(planned.name, planned)
        return dataclasses.replace(planned, dtype=table.dtype, frozen=table.frozen)

    return dataclasses.replace(plan, tables=tuple(map(own, plan.tables)))


def _apply_kinds(ctx: PassContext, plan: TowerPlan) -> None:
    """Groups take the kind they have in the plan."""
    planned = {g.name: g for g in plan.groups}
    found = {g.name: Counter(x.feature for x in g.lookups) for g in ctx.facts.groups}
    if found != {name: Counter(g.features) for name, g in planned.items()}:
        theirs = {name: sorted(g.features) for name, g in planned.items() if found.get(name) != Counter(g.features)}
        mine = {name: sorted(f) for name, f in found.items() if name not in planned or name in theirs}
        raise PlanError(
            f"the plan joins the features as {theirs}, this model as {mine}, and cannot be grouped as planned. Make a "
            'new plan for this model, or keep only its towers: a partition file may hold just {"towers": [[...], ...]}.'
        )
    for group in ctx.facts.groups:
        spec = planned[group.name]
        _check_group(ctx, plan, group, spec)
        if spec.kind == "transport":
            if group.kind == "tower":
                _to_transport(group, "the plan moves it as it is")
        elif spec.form != group.form:
            _to_form(group, spec)
        empty = [t for t in range(len(plan.towers)) if not plan.features_of(spec, t)]
        if spec.kind == "tower" and empty and plan.module.kind != "none":
            raise PlanError(f"the plan gives tower(s) {empty} no feature of {group.name}; each needs at least one.")


def _check_group(ctx: PassContext, plan: TowerPlan, group: StreamGroup, spec: GroupSpec) -> None:
    """What the plan says of a group can be had; widths, and parameters that go with features, are the model's."""
    if spec.kind == "tower" and group.kind == "transport":
        raise PlanError(
            f"the plan takes {group.name} through towers, but it cannot: {group.reason}. Make a new plan for this "
            "model."
        )
    widths = {group.width}
    if spec.kind == "transport":  # that of its streams, of its rows, or none as they differ
        widths |= {0, *(x.dim for x in group.lookups)}
    if spec.width not in widths:
        raise PlanError(
            f"the plan has vectors of width {spec.width} in {group.name}, this model of width {group.width}. Make a "
            "new plan for this model."
        )
    if spec.kind == "tower" and plan.module.kind != "none":
        own = _parameters(ctx, group)
        if unknown := sorted(set(spec.parameters) - set(own)):
            raise PlanError(
                f"the plan takes the parameters {unknown} into the towers of {group.name}; those that this model "
                f"applies to one feature of it alone are {list(own)}. Make a new plan for this model."
            )


def _to_form(group: StreamGroup, spec: GroupSpec) -> None:
    """Gives a group the form it has in the plan; only a regular group can be in the native one."""
    if group.kind == "tower" and spec.form == "native":
        raise PlanError(
            f"the plan has {group.name} in the native form, but here it is in the form {group.form!r}"
            + (f": {group.reason}" if group.reason else "")
            + ". Make a new plan for this model and configuration."
        )
    group.form, group.reason = spec.form, group.reason or "the plan says so"


def _to_transport(group: StreamGroup, reason: str) -> None:
    group.kind, group.joins, group.streams, group.reason = "transport", [], [x.node for x in group.lookups], reason
    group.form = "native"


def describe(lookups: list[Lookup]) -> tuple[tuple[TableSpec, ...], tuple[FeatureSpec, ...]]:
    """Tables and features of a model, in the order of their first lookup."""
    tables = {
        x.table: TableSpec(
            x.table,
            x.rows,
            x.dim,
            "" if x.weight == f"{x.table}.weight" else x.weight,
            x.first_row,
            x.dtype,
            x.frozen,
        )
        for x in lookups
    }
    features: dict[str, FeatureSpec] = {}
    for lookup in lookups:
        before = features.get(lookup.feature)
        own = (*(before.tables if before else ()), lookup.table)
        features[lookup.feature] = FeatureSpec(lookup.feature, tuple(dict.fromkeys(own)), lookup.hotness)
    return tuple(tables.values()), tuple(features.values())


def module_spec(config: DMTConfig, width: int) -> TowerModuleSpec:
    """The tower module the config asks for, with ``"auto"`` resolved for streams of ``width``."""
    towers = config.towers
    dim = automatic_dim(towers.module, towers.c, width) if towers.dim == "auto" else int(towers.dim)
    return _spec(towers, dim)


def override_specs(config: DMTConfig, width: int, towers: int, dim: int = 0) -> dict[int, TowerModuleSpec]:
    """The towers whose module differs.

    Args:
        config: the ``"dmt"`` section.
        width: width of the streams that ``"auto"`` is resolved for.
        towers: number of towers.
        dim: width of their outputs, where it is known already.

    Raises:
        ConfigError: a tower that is not there.
    """
    base = module_spec(config, width)
    found: dict[int, TowerModuleSpec] = {}
    for tower in sorted(map(int, config.towers.overrides)):
        if tower >= towers:
            raise ConfigError(
                f"dmt.towers.overrides.{tower}: there is no such tower; this run has {towers}, 0 to {towers - 1}."
            )
        own = config.towers.of_tower(tower)
        found[tower] = _spec(own, dim or base.dim)
    return found


def _spec(towers: TowersConfig, dim: int) -> TowerModuleSpec:
    rank, outputs = (0 if given == "auto" else given for given in (towers.rank, towers.outputs))
    return TowerModuleSpec(towers.module, towers.c, towers.p, dim, towers.init, towers.seed, rank, outputs)


def _own_parameters(ctx: PassContext, group: StreamGroup) -> tuple[str, ...]:
    """The parameters that features of a group with tower modules have to themselves."""
    if group.kind != "tower" or ctx.config.towers.module == "none":
        return ()
    return _parameters(ctx, group)


def _parameters(ctx: PassContext, group: StreamGroup) -> tuple[str, ...]:
    regions = [ctx.facts.regions[x.node] for x in group.lookups if x.node in ctx.facts.regions]
    return tuple(sorted({name for region in regions for name in region.parameters}))


def _dim(config: DMTConfig, group: StreamGroup) -> int:
    """Width of the outputs of a group's towers; ``"auto"`` depends on the width of its streams."""
    return module_spec(config, group.width).dim if group.kind == "tower" else 0
