"""Finds out everything there is to say about one transformation.

1. Transform the model and place it for one rank of the topology; no process is started and no table is copied,
   so a model on the meta device serves.
2. If the model is refused, run the analysis alone, as far as it goes: findings say what is wrong, groups and
   the flat graph say with what.
3. Condense the graphs (:mod:`dmt_plugin.report.explain.graph_data`): flat, with towers, and of one rank, alone and
   beside the first ranks of other hosts.
4. List every collective of a training step with shape and bytes, by formula: exchanges and sums of gradients.
5. Add up the memory that every rank needs. Where all of them are on one host, it is compared with this machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import fx, nn

from dmt_plugin.capture import ExampleBatch, InputBinder, capture
from dmt_plugin.capture.batch_sizes import batch_size_of
from dmt_plugin.capture.example_call import example_of
from dmt_plugin.compiler import count_rows_of, new_context, transform
from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import CaptureError, ConfigError, FindingsError, TransformError
from dmt_plugin.core.findings import sort_findings
from dmt_plugin.core.memory import memory_limits
from dmt_plugin.fxtools.names import tower_part
from dmt_plugin.model.exchange_costs import costs_of, gradient_costs_of, sent_by_host
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.model.memory import memory_need_of
from dmt_plugin.model.placed import PlacedGraph, PlacedModel, place_graph
from dmt_plugin.nn.lookup.rounding import TORCH_TYPES
from dmt_plugin.passes.base import DataToCount, PassContext, run_passes
from dmt_plugin.passes.facts import StreamGroup
from dmt_plugin.passes.logical.dissolve_collections import DissolveCollections
from dmt_plugin.passes.pipeline import towers_passes
from dmt_plugin.passes.rank_facts import Placement
from dmt_plugin.plan.file import write_json
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.planner.distinct_cost import Needs
from dmt_plugin.planner.gradient_cost import GradientSums, gradient_sums
from dmt_plugin.planner.memory import MemoryNeed, shard_bytes
from dmt_plugin.planner.memory_check import shortage
from dmt_plugin.report.explain import content
from dmt_plugin.report.explain.content import Explanation
from dmt_plugin.report.explain.graph_data import condensed, node_lines
from dmt_plugin.report.explain.rows_once import count_of, rows_once
from dmt_plugin.topology.shape import Topology

_MOST_HOSTS = 3
"""How many hosts are shown beside each other."""

_INIT = {
    "orthogonal": "rows of a random rotation, bias 0",
    "identity": "averages of neighbouring inputs, bias 0",
    "torch": "the layer's own default",
}


def explain(
    model: nn.Module,
    batch: Any,
    config: DMTConfig,
    topology: Topology,
    *,
    rank: int = 0,
    batch_size: int | None = None,
    ds_config: Mapping[str, Any] | None = None,
    data: Iterable[Any] | None = None,
    data_steps: int = 20,
    data_source: str = "the data",
) -> Explanation:
    """Explains the transformation of ``model``.

    Args:
        model: the user's model; not changed. Its weights may be on the meta device.
        batch: one call of it.
        config: the ``"dmt"`` section.
        topology: hosts and lanes to explain for.
        rank: whose exchanges to list.
        batch_size: samples per rank for the byte counts; by default that of ``batch``.
        ds_config: the DeepSpeed configuration around the section, which says how gradients are summed; by default
            DeepSpeed's own defaults.
        data: batches to count distinct rows on; each as the model is called with it, labels behind it are left out.
        data_steps: the most steps of all ranks that are counted.
        data_source: what the counts call the data.

    Returns:
        Plan, groups, findings, repairs, new parameters, passes, load by rank, collectives, graphs; of a model that
        is refused, why, and what the analysis found.

    Raises:
        CaptureError: the batch is no call of the model.
        ConfigError: the data are fewer than one step needs.
        IdRangeError: an id of the data is outside its table.
    """
    example = example_of(batch, model)
    inputs = InputBinder(model.forward, example).inputs(example.args, example.kwargs)
    samples = batch_size or batch_size_of(inputs) or 1
    shown = partial(_refused, topology=topology, rank=rank, batch_size=samples, route=config.comm.route)
    try:
        captured = capture(model, example)
    except CaptureError as error:
        return shown(error)
    samples = batch_size or captured.binder.samples or samples
    shown = partial(shown, batch_size=samples)
    flat = PassContext(captured, config, topology)
    with suppress(TransformError):  # a collection that is not understood is shown as one; transform says what is wrong
        run_passes([DissolveCollections()], flat)
    before: dict[str, Any] = {
        "graph_before": condensed(flat.gm, captured.batch_size),
        "nodes_before": node_lines(flat.gm, captured.batch_size),
    }
    shares = None
    if data is not None:
        calls = _calls(data, model, samples * topology.world_size * data_steps)
        to_count = DataToCount(data_source, lambda: calls, samples, topology.by_machine.hosts * data_steps)
        shares = count_rows_of(model, example, to_count, topology.by_machine.ranks_per_host)
    try:
        logical = transform(model, example, config, topology, row_shares=shares)
    except TransformError as error:
        return replace(shown(error, new_context(capture(model, example), config, topology)), **before)
    by_host = {}
    for host in range(min(topology.hosts, _MOST_HOSTS)):
        graph = place_graph(logical, config, topology, topology.rank_of(host, 0))
        by_host[f"host {host}, lane 0"] = condensed(graph.graph_module, logical.batch_size)
    placed = place_graph(logical, config, topology, rank)
    placed.placement.compute_in(TORCH_TYPES[DeepSpeedSettings(ds_config or {}).row_dtype(placed.plan.row_dtype)])
    sums = gradient_sums(ds_config or {}, config)
    memory = _memory(placed, config, DeepSpeedSettings(ds_config or {}), samples)
    counted = None if data is None else count_of(placed, config, samples, calls, data_steps)
    if counted is not None and shares is not None:
        before["distinct_rows"] = rows_once(placed, config, counted, shares, sums)
    shown_data = describe(placed, samples, sums, config, counted.needs_of(placed) if counted is not None else None)
    return replace(shown_data, graphs_by_host=by_host, memory=memory, **before)


def _calls(data: Iterable[Any], model: nn.Module, samples: int) -> list[ExampleBatch]:
    """The first batches with so many samples, as calls of the model."""
    calls: list[ExampleBatch] = []
    for batch in data:
        calls.append(example_of(batch, model, labelled=True))
        samples -= batch_size_of([*calls[-1].args, *calls[-1].kwargs.values()]) or 0
        if samples <= 0:
            break
    return calls


def _memory(placed: PlacedGraph, config: DMTConfig, settings: DeepSpeedSettings, samples: int) -> MemoryNeed:
    """The need of every rank; of a run on one host, also what this machine would say to it."""
    need = memory_need_of(placed, config, settings, samples)
    if placed.topology.by_machine.hosts > 1:
        return need
    limits = [memory_limits()] * placed.topology.world_size
    return replace(need, shortage=shortage(placed.plan, config, need, limits))


def _refused(error: FindingsError, ctx: PassContext | None = None, **shown: Any) -> Explanation:
    """What is known of a model that cannot be rewritten: as much as the analysis of ``ctx`` finds out by itself."""
    for step in towers_passes() if ctx else ():
        assert ctx is not None
        try:
            run_passes([step], ctx)
        except TransformError:
            break
    return Explanation(
        refused=str(error).split("\n", 1)[0],
        towers=_towers(ctx.plan) if ctx and ctx.plan else [],
        groups=[_found_group(g) for g in ctx.facts.groups] if ctx else [],
        findings=list(sort_findings(error.findings)),
        passes=list(ctx.results) if ctx else [],
        **shown,
    )


def describe(
    placed: PlacedGraph | PlacedModel,
    batch_size: int,
    sums: GradientSums,
    config: DMTConfig | None = None,
    needs: Sequence[Needs] | None = None,
) -> Explanation:
    """What was made of a model, from one rank's graph: all of :func:`explain` but the flat graph and other hosts.

    Args:
        placed: the rank's graph, or its model.
        batch_size: samples per rank for the byte counts.
        sums: how gradients are summed.
        config: the ``"dmt"`` section, if it is to be said what state frozen tables save.
        needs: distinct rows that were counted, see :func:`dmt_plugin.model.exchange_costs.costs_of`.
    """
    logical = placed.logical
    plan = logical.plan
    graph: fx.GraphModule = placed.__dict__["graph_module"]
    size = logical.batch_size
    reasons, meeting_points = logical.group_reasons, logical.meeting_points
    return Explanation(
        refused=None,
        topology=placed.topology,
        rank=placed.rank,
        batch_size=batch_size,
        route=placed.placement.route,
        plan=plan,
        towers=_towers(plan),
        groups=[
            content.Group(g.name, g.kind, g.form, len(g.features), g.width, reasons[g.name], meeting_points[g.name])
            for g in plan.groups
        ],
        compression=_compression(placed),
        tower_modules=_tower_modules(logical, placed.placement),
        findings=list(sort_findings(logical.findings)),
        repairs=[content.Repair(r.target, r.what, r.init) for r in logical.repairs],
        new_parameters=_new_parameters(logical),
        passes=[*logical.passes, *placed.passes],
        lanes=list(placed.placement.loads),
        owners=list(placed.placement.owners),
        collectives=[*costs_of(placed, batch_size, needs=needs), *gradient_costs_of(placed, sums)],
        sent_by_host=sent_by_host(placed),
        gradient_sums=sums,
        dedup=placed.placement.once,
        frozen=_frozen(placed, batch_size, config),
        graph_after=condensed(logical.__dict__["graph_module"], size),
        graph_placed=condensed(graph, size),
        nodes_after=node_lines(graph, size),
        parameters=_parameters(logical),
    )


def write_report(placed: PlacedModel, batch_size: int, sums: GradientSums, folder: str | Path) -> None:
    """Writes ``plan.json`` (usable as ``partition.file``) and ``transform.json`` into a folder, which is made."""
    target = Path(folder)
    placed.plan.save(target / "plan.json")
    data = describe(placed, batch_size, sums).as_dict()
    of_one_rank = {k: v for k, v in data.items() if k not in ("graph_before", "nodes_before", "graphs_by_host")}
    write_json(target / "transform.json", of_one_rank)


def _towers(plan: TowerPlan) -> list[content.Tower]:
    widths = {t.name: t.dim for t in plan.tables}
    return [
        content.Tower(
            t,
            plan.tower_hosts[t],
            list(names),
            width=sum(widths[table] for f in plan.features if f.name in names for table in f.tables),
            rows=sum(plan.table(x).rows for x in _tables_of(plan, names)),
        )
        for t, names in enumerate(plan.towers)
    ]


def _tables_of(plan: TowerPlan, features: Sequence[str]) -> set[str]:
    return {table for f in plan.features if f.name in features for table in f.tables}


def _found_group(group: StreamGroup) -> content.Group:
    many = len(group.lookups)
    return content.Group(group.name, group.kind, group.form, many, group.width, group.reason, group.meeting_point)


def _tower_modules(logical: TowerModel, placement: Placement) -> list[content.TowerModule]:
    """Every tower module, with its shapes and where it runs."""
    found = []
    for node in logical.graph.nodes:
        part = tower_part(str(node.target)) if node.op == "call_module" else None
        if part is None or part.kind != "tower" or part.inside:
            continue
        tower = part.number
        group = next(g for g in logical.plan.groups if g.name == part.group)
        (packed,) = node.args
        module = logical.get_submodule(str(node.target))
        kind = logical.plan.module_of(group, tower).kind
        everywhere = kind != "none" and (placement.route == "flat" or str(node.target) in placement.at_samples)
        found.append(
            content.TowerModule(
                str(node.target),
                group.name,
                tower,
                None if everywhere else logical.plan.tower_hosts[tower],
                kind,
                input=f"(B, {', '.join(map(str, packed.meta['val'].shape[1:]))})",
                output=f"(B, {node.meta['val'].shape[1]})",
                parameters=sum(p.numel() for p in module.parameters()),
            )
        )
    return found


def _new_parameters(logical: TowerModel) -> list[content.NewParameter]:
    """Parameters that do not continue the flat model's: those of towers, and those of another size or meaning."""
    tables = {t.parameter for t in logical.plan.tables}
    new = logical.state_map.new
    found = []
    for name, parameter in logical.named_parameters():
        if name not in new or name in tables:
            continue
        repair = new[name]
        why, init = ("new", _start(logical.plan, name)) if repair is None else (repair.what, repair.init)
        found.append(content.NewParameter(name, list(parameter.shape), parameter.numel(), why, init))
    return found


def _start(plan: TowerPlan, name: str) -> str:
    """How a parameter of a tower module starts."""
    part = tower_part(name)
    if part is None or part.kind != "tower":
        return "as its module starts"
    spec = plan.module_of(next(g for g in plan.groups if g.name == part.group), part.number)
    if (spec.kind, spec.init) == ("preserve", "orthogonal"):
        return "a small rotation, bias 0"
    return _INIT.get(spec.init, spec.init) if spec.kind in ("dlrm", "dcn", "preserve") else "as its module starts"


def _frozen(placed: PlacedGraph | PlacedModel, batch: int, config: DMTConfig | None) -> content.Frozen | None:
    """What is saved by tables that are frozen; None where none is."""
    tables = [table for table in placed.plan.tables if table.frozen]
    if not tables:
        return None
    both = costs_of(placed, batch, as_trained=True), costs_of(placed, batch)
    (away, near), (now_away, now_near) = (
        (sum(cost.other_hosts for cost in costs), sum(cost.same_host for cost in costs)) for costs in both
    )
    state = None
    if config is not None:
        with suppress(ConfigError):  # as the optimizer could not train it
            rules = {t.name: config.lookup.rule_of(t.name, t.parameter, t.dtype) for t in tables}
            shards = [shard for table in tables for shard in placed.plan.shards_of(table.name)]
            state = sum(shard_bytes(shard, rules[shard.table.name], padded=False)[1] for shard in shards)
    return content.Frozen([table.name for table in tables], away - now_away, near - now_near, state)


def _compression(placed: PlacedGraph | PlacedModel) -> float | None:
    """``CR = sum(F_t * N) / sum(O_t)`` over the tower modules that run before rows cross hosts; None without any."""
    plan = placed.plan
    sent = sum(c.width for own in placed.placement.host_columns for c in own if c.tower)
    sent += sum(tower.features * tower.width for tower in placed.placement.row_towers)
    if not sent:
        return None
    moved = {part.group for path in placed.placement.at_samples if (part := tower_part(path)) is not None}
    groups = [g for g in plan.groups if g.kind == "tower" and g.name not in moved]
    return sum(g.width * len(g.features) for g in groups) / sent


def _parameters(model: TowerModel) -> content.ParameterCounts:
    tables = {t.parameter for t in model.plan.tables}
    counts = {"tables": 0, "towers": 0, "dense": 0}
    for name, parameter in model.named_parameters():
        part = tower_part(name)
        inside = part is not None and part.kind == "tower"  # a decoder is a layer of the dense part
        kind = "tables" if name in tables else "towers" if inside else "dense"
        counts[kind] += parameter.numel()
    return content.ParameterCounts(**counts)
