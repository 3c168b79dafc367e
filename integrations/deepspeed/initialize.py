"""``initialize``: DeepSpeed's, for a model that is rewritten on the way if its configuration has a "dmt" section.

1. Read the configuration. Without a "dmt" section, or with ``"enabled": false``, DeepSpeed gets exactly the
   arguments of the user.
2. Refuse by name what does not go together (:mod:`.arguments.guards`); connect the ranks (:mod:`.connect`).
3. Resolve hosts and lanes, compare them between the ranks, make the groups.
4. Find an example batch, rewrite the model and make this rank's graph, which holds no table yet; compare the plans of
   all ranks, and the memory that they need with what there is (:mod:`.memory_need`). Only then are tables allocated,
   each shard by its owner, and filled (:mod:`.table_start`). What the flat model has of them is let go
   (:mod:`dmt_plugin.model.guard`).
5. Wrap tower modules for DeepSpeed (:mod:`.tower_shell`), translate ``model_parameters``, compare the ranks again.
6. Call DeepSpeed's own ``initialize`` with a copy of the configuration and an engine class of ours.

Until groups with ``dmt.comm.timeout_s`` exist, the default group, whoever has made it, has the same time limit.
"""

from __future__ import annotations

import copy
import functools
import hashlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepspeed.constants import TORCH_DISTRIBUTED_DEFAULT_PORT
from deepspeed.utils.logging import print_dist
from torch import nn

from dmt_plugin.checkpoint.user_objects import UserObjects
from dmt_plugin.comm.wire.failure_notes import FailureNotes
from dmt_plugin.comm.wire.transport import Traffic, Transport
from dmt_plugin.compiler import transform
from dmt_plugin.config.deepspeed import DeepSpeedSettings
from dmt_plugin.config.section import DMTConfig, load_ds_config, read_dmt_config
from dmt_plugin.core.run_files import check_folder, write_description
from dmt_plugin.integrations.deepspeed import private
from dmt_plugin.integrations.deepspeed.arguments import guards
from dmt_plugin.integrations.deepspeed.arguments.example_batch import find_example
from dmt_plugin.integrations.deepspeed.arguments.optimizers import built_again, is_built
from dmt_plugin.integrations.deepspeed.arguments.parameters import (
    FlatParameters,
    positions_of,
    read_parameters,
    remap_parameters,
)
from dmt_plugin.integrations.deepspeed.arguments.table_rules import said, trained
from dmt_plugin.integrations.deepspeed.connect import connect, select_device
from dmt_plugin.integrations.deepspeed.engine.engine import DMTEngine
from dmt_plugin.integrations.deepspeed.engine.state import DMTState
from dmt_plugin.integrations.deepspeed.memory_need import check_need
from dmt_plugin.integrations.deepspeed.observer import observer_of
from dmt_plugin.integrations.deepspeed.row_shares import agreed_link, agreed_shares, check_same_rows
from dmt_plugin.integrations.deepspeed.share_watch import ShareWatch
from dmt_plugin.integrations.deepspeed.summary import summary
from dmt_plugin.integrations.deepspeed.table_start import agree, find_start, values_of
from dmt_plugin.integrations.deepspeed.tower_shell import mark_as_hosts, wrap_towers
from dmt_plugin.integrations.deepspeed.weight_sync import sync_feature_layers, sync_tables
from dmt_plugin.model.guard import let_go
from dmt_plugin.model.placed import PlacedModel, place_graph, place_tables, seed_of
from dmt_plugin.nn.lookup.rounding import TORCH_TYPES
from dmt_plugin.planner.gradient_cost import gradient_sums
from dmt_plugin.tables.materialize import check_buffers, dense_from_meta
from dmt_plugin.topology.agreement import check_same_plan, gather, together
from dmt_plugin.topology.discovery import discover_topology
from dmt_plugin.topology.group_names import names_of, names_on_route
from dmt_plugin.topology.groups import RankGroups, create_groups, release, renewed

EXPERT_TOPOLOGY_KEY = "use_data_before_expert_parallelism"


@dataclass
class Call:
    """The arguments of one call of :func:`initialize` that go on to DeepSpeed.

    Attributes:
        options: Arguments by name, as the user gave them.
        settings: The DeepSpeed configuration they lead to.
    """

    options: dict[str, Any]
    settings: DeepSpeedSettings


@dataclass(frozen=True)
class OwnArguments:
    """The arguments of :func:`initialize` that DeepSpeed's does not have."""

    example_batch: Any = None
    weights: Any = None
    table_init: Any = None
    shares_from: Any = None


def initialize(
    args: Any = None,
    model: Any = None,
    optimizer: Any = None,
    model_parameters: Any = None,
    training_data: Any = None,
    lr_scheduler: Any = None,
    distributed_port: int = TORCH_DISTRIBUTED_DEFAULT_PORT,
    mpu: Any = None,
    dist_init_required: bool | None = None,
    collate_fn: Callable[..., Any] | None = None,
    config: Any = None,
    mesh_param: Any = None,
    config_params: Any = None,
    *,
    example_batch: Any = None,
    weights: Any = None,
    table_init: Any = None,
    shares_from: Any = None,
) -> tuple[Any, Any, Any, Any]:
    """``deepspeed.initialize`` for a model that becomes a tower-decomposed one.

    Takes and returns what ``deepspeed.initialize`` does. Where the configuration has a "dmt" section, the engine is
    a :class:`DMTEngine`: its ``module`` is this rank's part of the rewritten model, with the same forward
    signature, and ``engine.dmt`` has the plan, the topology and the byte counts.

    Args:
        args: Namespace with ``deepspeed_config`` and ``local_rank``.
        model: The flat model, the same on every rank. Its parameters may start from different random states: rank 0's
            are used. Its tables may be on the meta device (:func:`dmt_plugin.tables_on_meta`).
        optimizer: ``None`` (named in the configuration), a callable that builds one from parameters, or an optimizer
            on the flat model, in place of which one like it is built and returned.
        model_parameters: Parameters or groups of them, of the flat model.
        training_data: Dataset for the returned data loader.
        lr_scheduler: As for DeepSpeed; tables follow it with ``dmt.lookup.schedule`` = "follow".
        distributed_port: As for DeepSpeed.
        mpu: Not supported together with "dmt".
        dist_init_required: As for DeepSpeed.
        collate_fn: As for DeepSpeed.
        config: Path or dict of the DeepSpeed configuration; it is not changed.
        mesh_param: Not supported together with "dmt".
        config_params: Old name of ``config``.
        example_batch: A batch as the training loop passes it to the model, a
            :class:`~dmt_plugin.capture.inputs.ExampleBatch`, or a function that returns either. Not needed where
            ``training_data`` or ``dmt.transform.example_batch`` can provide one.
        weights: What tables start from, in place of ``dmt.lookup.weights``: the path of a checkpoint, a folder of
            ``.safetensors`` files or a file of ``torch.save``; paths by table name; or a state dict, of which rank 0's
            is used.
        table_init: Makes rows of tables that are on meta, in place of ``dmt.lookup.table_init``: a function ``(name,
            first_row, shape, generator)`` that returns a tensor of that shape.
        shares_from: Batches to count distinct rows on before the run (``"dedup": "auto"``), in place of
            ``training_data``: a list, a loader, or a function or ``"file.py:factory"`` that returns them. The first
            rank that has some counts.

    Returns:
        Engine, optimizer, data loader, learning-rate scheduler.

    Raises:
        ConfigError: What was asked for does not go together; names the key or argument and the way out.
        TopologyError: Ranks disagree about hosts, or hosts are unequal.
        TransformError: The model cannot be rewritten safely.
        MemoryNeedError: The ranks need more memory than their machines or control groups have.
        TableInitError: A table on meta has no rule for its rows.
        CheckpointError: Starting weights do not fit the model.
        DMTError: Another rank failed.
    """
    options: dict[str, Any] = {
        "args": args,
        "model": model,
        "optimizer": optimizer,
        "model_parameters": model_parameters,
        "training_data": training_data,
        "lr_scheduler": lr_scheduler,
        "distributed_port": distributed_port,
        "mpu": mpu,
        "dist_init_required": dist_init_required,
        "collate_fn": collate_fn,
        "config": config,
        "mesh_param": mesh_param,
        "config_params": config_params,
    }
    source = find_config(args, config, config_params)
    ds_config = None if source is None else load_ds_config(source)
    towers = None if ds_config is None else read_dmt_config(ds_config, _name_of(source))
    if ds_config is None or towers is None:
        return private.stock_initialize(**options)
    own = OwnArguments(example_batch, weights, table_init, shares_from)
    return _initialize_towers(Call(options, DeepSpeedSettings(ds_config)), towers, own)


def find_config(args: Any, config: Any, config_params: Any) -> Any:
    """The configuration DeepSpeed would use, ``None`` where there is none or DeepSpeed would refuse the call."""
    named = [getattr(args, name, None) for name in ("deepspeed_config", "deepscale_config")]
    given = [value for value in (*named, config if config is not None else config_params) if value is not None]
    return given[0] if len(given) == 1 else None


def _name_of(source: Any) -> str:
    return str(source) if isinstance(source, (str, Path)) else "config"


def _initialize_towers(call: Call, config: DMTConfig, own: OwnArguments) -> tuple[Any, Any, Any, Any]:
    options, model = call.options, call.options["model"]
    guards.check_call(model, options["optimizer"], options["mpu"], options["mesh_param"], options["lr_scheduler"])
    guards.check_config(call.settings)
    guards.check_schedule(config.lookup.schedule, call.settings, options["optimizer"])
    connect(options["distributed_port"], options["dist_init_required"], config.comm.timeout_s)
    select_device(options["args"])
    with private.limited_default_group(config.comm.timeout_s):
        return _on_connected_ranks(call, config, own)


def _on_connected_ranks(call: Call, config: DMTConfig, own: OwnArguments) -> tuple[Any, Any, Any, Any]:
    options, model = call.options, call.options["model"]
    resolved = discover_topology(**config.topology.model_dump())
    groups = create_groups(resolved.topology, timeout_s=config.comm.timeout_s)
    rank = groups.rank
    if rank == 0:
        guards.say_exceptions(call.settings, options["lr_scheduler"], config.lookup.keeps_rate)

    seed = gather(groups, seed_of(config))[0]
    with together(groups, "building its part of the model"):
        if config.report.dir is not None and (rank == 0 or config.report.every):
            check_folder(config.report.dir)
        UserObjects(config.checkpoint.classes)  # a class that is not there is told now, not by the first load
        check_buffers(model)
        dense_from_meta(model, seed)
        example = find_example(
            model,
            example_batch=own.example_batch,
            factory=config.transform.example_batch,
            training_data=options["training_data"],
            collate_fn=options["collate_fn"],
        )
        flat = read_parameters(model, to_optimize(options))
    config = agreed_link(config, groups)
    counted = agreed_shares(
        model, example, config, call.settings, groups, shares_from=own.shares_from,
        training_data=options["training_data"], collate_fn=options["collate_fn"],
    )  # fmt: skip
    with together(groups, "building its part of the model"):
        config = config.model_copy(update={"lookup": trained(config.lookup, options["optimizer"], call.settings, flat)})
        logical = transform(model, example, config, resolved.topology, row_shares=counted.shares)
        graph = place_graph(logical, config, resolved.topology, rank)
        config.lookup.check_names([(table.name, table.parameter) for table in graph.plan.tables])
        config.lookup.check_types([(table.name, table.parameter, table.dtype) for table in graph.plan.tables])
        samples = graph.logical.binder.samples or 1
    check_same_plan(groups, graph.plan.fingerprint)
    check_same_rows(groups, graph.placement)
    need = check_need(graph, config, call.settings, samples, groups)
    with together(groups, "finding what its tables start from"):
        share = (rank, resolved.topology.world_size)
        found = find_start(model, graph.plan, config.lookup, seed, own.weights, own.table_init, share)
    start = agree(found, groups)
    lines = (f"dmt: {line}" for line in (said(config.lookup, graph.plan.tables), *start.lines))
    with together(groups, "filling its tables"):
        placed = place_tables(graph, config, start.sources, device=groups.device)
        placed.compute_in(TORCH_TYPES[call.settings.row_dtype(graph.plan.row_dtype)])
        if rank == 0 and config.report.dir is not None:
            write_description(placed, samples, gradient_sums(call.settings.given, config), config.report.dir)
    sent = {name for name in placed.lookup.tables if placed.plan.shard(name).table.parameter in start.sent}
    sync_tables(placed.lookup, functools.partial(values_of, placed.plan, start), groups, only=sent)
    sync_feature_layers(placed, model, groups)
    del found, start
    with together(groups, "letting the tables of the flat model go"):
        let_go(placed, model)
    on_torch = gather(groups, placed.lookup.instead_of_fbgemm)
    for line in (*summary(placed, resolved.source, counted.why, on_torch), *lines):
        print_dist(line, ranks=[0])  # whatever the log level: a rewritten model should not be a secret
    with private.limited_waits(config.comm.timeout_s):
        results = launch(placed, call, config, groups, resolved.source, flat)
    if config.checkpoint.asynchronous:
        with together(groups, "making room for the snapshots of asynchronous saves"):
            results[0].behind.prepare(need.ranks[rank].snapshot)
    return results


def launch(
    placed: PlacedModel, call: Call, config: DMTConfig, groups: RankGroups, source: str, flat: FlatParameters
) -> tuple[Any, Any, Any, Any]:
    """From this rank's model to the engine; all ranks call it together.

    Args:
        placed: This rank's model, not yet bound.
        call: The user's call.
        config: The "dmt" config.
        groups: This rank's groups.
        source: Where the topology was read.
        flat: What was noted of the flat model and of ``model_parameters``.

    Returns:
        DeepSpeed's 4-tuple.

    Raises:
        ConfigError: The ranks' models do not fit each other or the configuration.
    """
    topology, rank = groups.topology, groups.rank
    traffic = Traffic(topology, rank)
    observer = observer_of(config, call.settings, groups)
    transport = Transport(groups, traffic) if observer is None else observer.transport(groups, traffic)
    notes = FailureNotes(private.meeting_store(), groups.world.group_name, rank, topology.world_size)
    transport.failure_notes = notes
    placed.bind(transport)
    resources = ExitStack()
    resources.callback(release, groups, names_of(topology))
    resources.callback(notes.close)
    if config.comm.prefetch and topology.world_size > 1:
        ahead = renewed(groups, own := names_on_route(topology, config.comm.route == "flat"))
        early = Transport(ahead, traffic) if observer is None else observer.transport(ahead, traffic, ahead=True)
        early.failure_notes = notes
        resources.callback(release, ahead, own)
        resources.callback(placed.prefetch_over(early).close)
    placed.lookup.grad_scale = 1.0 / topology.world_size

    named = list(placed.named_parameters())
    towers = _tower_parameters(placed) if topology.hosts > 1 else []
    any_towers = any(gather(groups, bool(towers)))
    moe_group = f"ep_size_{topology.hosts}" if any_towers else None
    if any_towers:
        wrap_towers(placed, placed.tower_paths, topology, rank)
        mark_as_hosts(map(placed.get_parameter, placed.placement.own_parameters), topology)
    parameters = remap_parameters(flat, named, towers, moe_group)
    facts = _facts(groups, named, towers, parameters)
    guards.check_ranks(gather(groups, facts), call.settings)

    watch = None
    if placed.placement.groups:
        watch = ShareWatch(placed.plan, placed.placement, placed.lookup, speaks=rank == 0)
        resources.callback(watch.close)
    state = DMTState(
        config=config,
        plan=placed.plan,
        topology=topology,
        source=source,
        groups=groups,
        transport=transport,
        traffic=traffic,
        lookup=placed.lookup,
        placed=placed,
        resources=resources,
        group_positions=positions_of(parameters),
        share_watch=watch,
    )
    options = _options_for(call, placed, parameters, any_towers)
    if is_built(options["optimizer"]):
        options["optimizer"] = built_again(options["optimizer"], parameters or [])
    with private.engine_class(functools.partial(DMTEngine, dmt=state)):
        results: tuple[Any, Any, Any, Any] = private.stock_initialize(**options)
    if observer is not None:
        observer.watch(results[0])
        resources.callback(observer.close)
    notes.at_exit(lambda: transport.step)
    return results


def to_optimize(options: Mapping[str, Any]) -> Any:
    """What the user's call says is to be optimized: an optimizer's groups, or ``model_parameters``."""
    optimizer: Any = options.get("optimizer")
    return optimizer.param_groups if is_built(optimizer) else options.get("model_parameters")


def _tower_parameters(placed: PlacedModel) -> list[nn.Parameter]:
    found = [p for path in placed.tower_paths for p in placed.get_submodule(path).parameters()]
    found += [placed.get_parameter(name) for name in placed.placement.own_parameters]
    return list({id(p): p for p in found}.values())


def _options_for(call: Call, placed: nn.Module, parameters: list[Any] | None, any_towers: bool) -> dict[str, Any]:
    """The user's arguments with this rank's model, and with copies of what would have to be changed."""
    ds_config = copy.deepcopy(dict(call.settings.given))
    if any_towers:
        ds_config[EXPERT_TOPOLOGY_KEY] = True
    args = call.options.get("args")
    if any(getattr(args, name, None) is not None for name in ("deepspeed_config", "deepscale_config")):
        args = copy.copy(args)
        for name in ("deepspeed_config", "deepscale_config"):
            if hasattr(args, name):
                setattr(args, name, None)
    own = {"args": args, "model": placed, "model_parameters": parameters, "config": ds_config, "config_params": None}
    return call.options | own


def _facts(
    groups: RankGroups, named: list[tuple[str, nn.Parameter]], towers: list[nn.Parameter], parameters: list[Any] | None
) -> guards.RankFacts:
    tower_ids = {id(p) for p in towers}
    dense = [(name, tuple(p.shape)) for name, p in named if p.requires_grad and id(p) not in tower_ids]
    sizes: list[int] = []
    for group in parameters or []:
        if isinstance(group, dict):
            sizes.append(-1 if group.get("moe") else len(group["params"]))
        else:
            sizes = [len(parameters or [])]
    tower_sizes = tuple(p.numel() for p in towers if p.requires_grad)
    return guards.RankFacts(
        rank=groups.rank,
        host=groups.host,
        dense=hashlib.sha256(repr(dense).encode()).hexdigest(),
        dense_count=len(dense),
        groups=tuple(sizes),
        tower_count=len(towers),
        tower_sizes=tower_sizes,
        trainable=sum(p.numel() for _, p in named if p.requires_grad),
    )
