"""The compiler: from the user's model to towers in one process, and to one rank's part of them.

``transform`` is all of it for one process:

1. capture the model with the example batch, and check the graph against the model;
2. find lookups and joins, make the tower plan, insert pass-through towers, and check
   again: this is the semantic-preserving transform, equal bit for bit;
3. insert tower modules and repair the shapes behind them, if the config asks for them.

A group that the layers behind it cannot take through tower modules is an error, or goes
another way: ``transform.on_unsupported`` names one. That is found out by trying, so the
compiler starts again from the capture, now knowing of the group.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmt_plugin.capture import CapturedModel, ExampleBatch, GraphModel, capture
from dmt_plugin.capture.inputs import example_of
from dmt_plugin.checkpoint.folder import find_checkpoint, what_is_there
from dmt_plugin.config.section import DMTConfig, load_ds_config, read_dmt_config
from dmt_plugin.core.errors import ConfigError, PlanError, TransformError
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.model.placed import PlacedModel, place
from dmt_plugin.model.same_outputs import can_run, check_same_outputs
from dmt_plugin.partitioner.files import GivenPartition, given_partition
from dmt_plugin.partitioner.partition import Partition
from dmt_plugin.passes.base import PassContext, run_passes
from dmt_plugin.passes.pipeline import modules_passes, towers_passes
from dmt_plugin.plan.file import read_json
from dmt_plugin.plan.tower_plan import TowerPlan
from dmt_plugin.topology.shape import ResolvedTopology, Topology

logger = logging.getLogger(__name__)

ConfigSource = DMTConfig | Mapping[str, Any] | str | Path | None


def read_config(config: ConfigSource) -> DMTConfig:
    """A config from what users hand over: a model of it, a DeepSpeed config or its file, or nothing.

    Raises:
        ConfigError: the section is switched off or not there.
    """
    if isinstance(config, DMTConfig):
        return config
    if config is None:
        return DMTConfig()
    found = read_dmt_config(load_ds_config(config), str(config) if isinstance(config, (str, Path)) else "config")
    if found is None:
        raise ConfigError(
            'the configuration has no "dmt" section, or "enabled" is false, so there is nothing to transform. '
            'Add {"dmt": {}} for the defaults.'
        )
    return found


def transform(
    model: nn.Module,
    example_batch: Any,
    config: ConfigSource = None,
    topology: Topology | str | None = None,
    *,
    partition: Partition | TowerPlan | Mapping[str, Any] | None = None,
) -> TowerModel:
    """Rewrites a flat recommender into a tower-decomposed model for one process.

    Args:
        model: the user's model; it is not changed, and shares its tables and untouched
            layers with the result.
        example_batch: one call of the model: a tuple, a dict or an ``ExampleBatch``.
        config: a ``DMTConfig``, a DeepSpeed configuration with a ``"dmt"`` section, or the
            path of one. ``None`` means the defaults.
        topology: ``Topology`` or ``"HxL"`` that the towers are for. ``None``: the numbers in
            the config, else one host per tower with one rank each.
        partition: which features form which tower, or a whole plan, in place of what ``dmt.partition`` says: as objects
            or as a partition file holds them. The number of towers follows where the config leaves it open.

    Returns:
        The tower model; ``.plan``, ``.findings`` and ``.repairs`` say what was done.

    Raises:
        CaptureError: the model cannot be captured.
        TransformError: it cannot be rewritten safely; carries coded findings.
        PlanError: the partition does not fit.
    """
    settings = read_config(config)
    given = None if partition is None else given_partition(partition)
    if given is not None and given.towers and settings.towers.count == "auto":
        towers = settings.towers.model_copy(update={"count": given.towers})
        settings = settings.model_copy(update={"towers": towers})
    example = example_of(example_batch, model)
    where = _topology(settings, topology)
    blocked: dict[str, str] = {}
    while True:
        ctx = new_context(capture(model, example), settings, where, given)
        try:
            return _compile(ctx, model, example, blocked)
        except TransformError as error:
            group = _group_to_block(ctx, error, blocked)
            if group is None:
                raise
            blocked[group] = next(f.reason for f in error.findings if f.code == "DMT401")
            logger.warning("%s: %s; going on with %r", group, blocked[group], settings.transform.on_unsupported)


def build_placed(
    model: nn.Module,
    config: DMTConfig,
    resolved: ResolvedTopology,
    rank: int,
    example: ExampleBatch,
    device: torch.device | None = None,
) -> PlacedModel:
    """This rank's part of ``model``: transform, then place. No process group is needed.

    Args:
        model: the user's model, with weights; this rank's tables are copied from it.
        config: the ``"dmt"`` section.
        resolved: the topology of the run.
        rank: this rank.
        example: one call of the model.
        device: where this rank's tables go; by default where the model's parameters are.

    Returns:
        The rank's model, not yet bound to a transport.
    """
    logical = transform(model, example, config, resolved.topology)
    where = device or next((p.device for p in model.parameters()), torch.device("cpu"))
    return place(logical, config, resolved.topology, rank, device=where)


def new_context(
    captured: CapturedModel, config: DMTConfig, topology: Topology, given: GivenPartition | None = None
) -> PassContext:
    """What the passes over one captured model share, with the partition that was given or that the config names.

    Raises:
        PlanError: there is no such file, or no checkpoint with a plan in the folder.
    """
    return PassContext(captured, config, topology, given=given or _partition_on_disk(config.partition.file, topology))


def _partition_on_disk(file: str | None, topology: Topology) -> GivenPartition | None:
    """A JSON file; or the plan of a checkpoint (of a folder with several: the newest), its towers for another shape."""
    if not file:
        return None
    if not Path(file).is_dir():
        return GivenPartition(read_json(file), file, counts=False)
    found = find_checkpoint(file)
    if found is None:
        raise PlanError(f"dmt.partition.file: {file} has no checkpoint with a plan: {what_is_there(file)}")
    plan = dict(found.manifest.plan)
    if plan["topology"] != str(topology):
        plan = {key: plan[key] for key in ("towers", "model", "provenance")}
    return GivenPartition(plan, file)


def _compile(ctx: PassContext, model: nn.Module, example: ExampleBatch, blocked: Mapping[str, str]) -> TowerModel:
    settings = ctx.config
    verify = settings.transform.verify and can_run(model)
    if verify:
        check_same_outputs(model, ctx.captured.as_module(), example, "the capture")
    ctx.blocked = dict(blocked)
    run_passes(towers_passes(), ctx)
    if verify:
        check_same_outputs(model, GraphModel(ctx.gm, ctx.captured.binder), example, "inserting towers")
    assert ctx.plan is not None
    if ctx.plan.module.kind != "none" and any(g.kind == "tower" for g in ctx.groups):
        run_passes(modules_passes(), ctx)
    return TowerModel(
        ctx.gm, ctx.captured.binder, model, ctx.plan, ctx.groups, ctx.findings, ctx.repairs, ctx.results,
        ctx.captured.batch_size,
    )  # fmt: skip


def _group_to_block(ctx: PassContext, error: TransformError, blocked: Mapping[str, str]) -> str | None:
    """The next group to take another way, where the config allows that."""
    if ctx.config.transform.on_unsupported == "error" or not any(f.code == "DMT401" for f in error.findings):
        return None
    return next((name for name in ctx.unsupported if name not in blocked), None)


def _topology(config: DMTConfig, given: Topology | str | None) -> Topology:
    if isinstance(given, str):
        return Topology.parse(given)
    return given or Topology(*config.shape_without_launcher())
