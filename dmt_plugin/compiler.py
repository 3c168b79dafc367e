"""The compiler: from the user's model to towers in one process, and to one rank's part of them.

``transform`` is all of it for one process:

1. capture the model with the example batch, and check the graph against the model;
2. find lookups and joins, make the tower plan, insert pass-through towers, and check
   again: this is the semantic-preserving transform, equal bit for bit;
3. insert tower modules and repair the shapes behind them, if the config asks for them.

A group that the layers behind it cannot take through tower modules is an error, or goes
another way: ``transform.on_unsupported`` names one. Shape repair finds all such groups; then
the passes run once more, on another copy of the capture, now knowing of them.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmt_plugin.capture import CapturedModel, ExampleBatch, GraphModel, capture, copy_graph
from dmt_plugin.capture.example_call import example_of
from dmt_plugin.capture.graph_state import keep_unread
from dmt_plugin.capture.misfits import misfit
from dmt_plugin.checkpoint.folder import find_checkpoint, what_is_there
from dmt_plugin.config.section import DMTConfig, load_ds_config, read_dmt_config
from dmt_plugin.core.errors import CaptureError, ConfigError, PlanError
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.model.placed import PlacedModel, place
from dmt_plugin.model.same_outputs import ANOTHER_BATCH, OutputsCheck, why_not_taken
from dmt_plugin.partitioner.files import GivenPartition, given_partition
from dmt_plugin.partitioner.partition import Partition
from dmt_plugin.passes.base import DataToCount, PassContext, run_passes
from dmt_plugin.passes.logical.find_lookups import FindLookups
from dmt_plugin.passes.logical.make_tower_plan import MakeTowerPlan, candidate_rows, describe
from dmt_plugin.passes.pipeline import modules_passes, towers_passes
from dmt_plugin.passes.placement.read_ids import count_shares
from dmt_plugin.plan.file import read_json
from dmt_plugin.plan.row_shares import RowShares
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
    row_shares: RowShares | DataToCount | None = None,
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
            or as a partition file holds them. The number of towers, and the topology of a plan, follow where nothing
            else says them.
        row_shares: how many of the rows that batches look up are distinct, for ``comm.dedup``; or data to count them
            on. ``None``: what the partition or ``dmt.comm.dedup_shares`` says.

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
    if given is not None and given.is_plan and topology is None and settings.topology.hosts == "auto":
        topology = given.plan.topology
    example = example_of(example_batch, model)
    where = _topology(settings, topology)
    captured = captured_of(model, example, settings)
    check = OutputsCheck(model, example, settings.lookup) if settings.transform.verify else None
    if check is not None:
        check.run(captured.as_module(), "the capture")

    return transform_captured(captured, model, settings, where, given=given, row_shares=row_shares, check=check)


def transform_captured(
    captured: CapturedModel,
    model: nn.Module,
    config: DMTConfig,
    topology: Topology,
    *,
    given: GivenPartition | None = None,
    row_shares: RowShares | DataToCount | None = None,
    check: OutputsCheck | None = None,
) -> TowerModel:
    """The second half of :func:`transform`, for a model that is rewritten in several ways: it is captured once.

    Args:
        captured: the capture; it is not changed.
        model: the user's model that was captured.
        config: the ``"dmt"`` section.
        topology: hosts and lanes that the towers are for.
        given: a partition that goes before ``dmt.partition``.
        row_shares: as for :func:`transform`.
        check: compares what is rewritten with the model; None: nothing is compared.

    Raises:
        TransformError: it cannot be rewritten safely; carries coded findings.
        PlanError: the partition does not fit.
    """
    known: list[RowShares | DataToCount | None] = [row_shares]

    def compiled(blocked: Mapping[str, str]) -> _Attempt:
        own = dataclasses.replace(captured, graph_module=copy_graph(captured.graph_module))
        ctx = new_context(own, config, topology, given)
        ctx.blocked = dict(blocked)
        if isinstance(known[0], DataToCount):
            ctx.data = known[0]
        else:
            ctx.row_shares = known[0]
        attempt = _compile(ctx, model, check)
        if "row_shares" in ctx.tags:  # counted once, however often it is tried
            known[0] = ctx.row_shares
        return attempt

    return _around_refusals(compiled, config.transform.on_unsupported)


def captured_of(model: nn.Module, example: ExampleBatch, config: DMTConfig) -> CapturedModel:
    """The captured model; where that fails because the model does not take the batch at all, that is what is said.

    Args:
        model: the user's model.
        example: one call of it.
        config: the ``"dmt"`` section.

    Raises:
        CaptureError: the model cannot be captured.
    """
    try:
        return capture(model, example)
    except CaptureError as error:
        if any(finding.code == "DMT107" for finding in error.findings):
            why = why_not_taken(model, example, config.lookup)
            if why is not None:
                raise misfit(why, ANOTHER_BATCH) from error
        raise


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


def count_rows_of(model: nn.Module, example_batch: Any, data: DataToCount, lanes: int) -> RowShares | None:
    """Counts how many of the rows that batches look up are distinct; no plan is needed, nor which ranks own them.

    Args:
        model: the user's model; its weights do not matter.
        example_batch: one call of it.
        data: the batches.
        lanes: ranks per host.

    Returns:
        None where the data are fewer than one step of a host.

    Raises:
        CaptureError: the model cannot be captured.
        TransformError: its lookups cannot be read.
        IdRangeError: an id is outside its table.
    """
    ctx = PassContext(capture(model, example_of(example_batch, model)), DMTConfig(), Topology(1, lanes))
    passes = towers_passes()
    last = next(i for i, step in enumerate(passes) if isinstance(step, FindLookups))
    run_passes(passes[: last + 1], ctx)
    return count_shares(ctx.gm, ctx.captured.binder, ctx.facts.by_sample, data, lanes)


def candidate_rows_of(
    model: nn.Module, example_batch: Any, config: DMTConfig, topology: Topology, shares: RowShares
) -> dict[str, float]:
    """The distinct rows per sample by which a partition weighs the tables whose rows may travel once.

    Args:
        model: the user's model; its weights do not matter.
        example_batch: one call of it.
        config: the ``"dmt"`` section.
        topology: hosts and lanes that it is for.
        shares: what was counted.

    Raises:
        CaptureError: the model cannot be captured.
        TransformError: its lookups cannot be read.
    """
    moved = config.transform.model_copy(update={"on_unsupported": "transport"})  # a group that cannot is found later
    settings = config.model_copy(update={"transform": moved})
    ctx = PassContext(capture(model, example_of(example_batch, model)), settings, topology, row_shares=shares)
    passes = towers_passes()
    last = next(i for i, step in enumerate(passes) if isinstance(step, MakeTowerPlan))
    run_passes(passes[:last], ctx)
    return candidate_rows(ctx, describe(ctx.facts.lookups)[1])


def new_context(
    captured: CapturedModel, config: DMTConfig, topology: Topology, given: GivenPartition | None = None
) -> PassContext:
    """What the passes over one captured model share, with the partition that was given or that the config names.

    Raises:
        PlanError: there is no such file, or no checkpoint with a plan in the folder.
    """
    return PassContext(captured, config, topology, given=given or partition_on_disk(config.partition.file, topology))


def partition_on_disk(file: str | None, topology: Topology) -> GivenPartition | None:
    """A JSON file; or the plan of a checkpoint (of a folder with several: the newest), its towers for another shape.

    Args:
        file: ``dmt.partition.file``.
        topology: of the run.

    Raises:
        PlanError: no JSON, or no checkpoint with a plan.
    """
    if not file:
        return None
    if not Path(file).is_dir():
        return GivenPartition(read_json(file), file, counts=False)
    found = find_checkpoint(file)
    if found is None:
        raise PlanError(f"dmt.partition.file: {file} has no checkpoint with a plan: {what_is_there(file)}")
    plan = dict(found.manifest.plan)
    if plan["topology"] != str(topology):
        plan = {key: plan[key] for key in ("towers", "model", "provenance", "row_shares") if key in plan}
    return GivenPartition(plan, file, resumed=True)


@dataclass(frozen=True)
class _Attempt:
    """What became of compiling with some groups blocked.

    Attributes:
        model: the tower model, if it worked.
        refused: else the groups that must be blocked as well, with the reason.
    """

    model: TowerModel | None
    refused: Mapping[str, str]


def _compile(ctx: PassContext, model: nn.Module, check: OutputsCheck | None) -> _Attempt:
    """Runs the passes on a captured model; the semantic-preserving part is checked, where a check is given."""
    run_passes(towers_passes(), ctx)
    if check is not None:
        check.run(GraphModel(ctx.gm, ctx.captured.binder), "inserting towers", exact=not ctx.other_layout)
        ctx.findings.extend(check.findings)
    assert ctx.plan is not None
    if ctx.plan.module.kind != "none" and any(g.kind == "tower" for g in ctx.facts.groups):
        run_passes(modules_passes(), ctx)
    if ctx.refused:
        return _Attempt(None, ctx.refused)
    keep_unread(model, ctx.gm)
    made = TowerModel(
        ctx.gm, ctx.captured.binder, model, ctx.plan, ctx.facts, ctx.findings, ctx.results, ctx.captured.batch_size
    )
    return _Attempt(made, {})


def _around_refusals(compiled: Callable[[Mapping[str, str]], _Attempt], on_unsupported: str) -> TowerModel:
    """Compiles, and again with the groups blocked whose new streams the model cannot take: mostly once more."""
    blocked: dict[str, str] = {}
    attempt = compiled(blocked)
    while attempt.model is None:
        for group, reason in attempt.refused.items():
            blocked[group] = reason
            logger.warning("%s: %s; going on with %r", group, reason, on_unsupported)
        attempt = compiled(blocked)
    return attempt.model


def _topology(config: DMTConfig, given: Topology | str | None) -> Topology:
    if isinstance(given, str):
        return Topology.parse(given)
    return given or Topology(*config.shape_without_launcher())
