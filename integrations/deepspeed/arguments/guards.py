"""Checks the arguments of ``initialize`` and the DeepSpeed configuration, and refuses what towers do not support.

1. :func:`check_call` looks at the arguments of ``initialize``;
2. :func:`check_config` at the DeepSpeed configuration; both are the same on every rank and need no process group;
3. :func:`check_ranks` compares the ranks' placed models: what would end in ranks waiting for each other inside
   DeepSpeed is an error here.

Each refusal is one :class:`ConfigError` with the key, its value, the reason and the way out.
:func:`say_exceptions` is for what is allowed but leaves the tables out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deepspeed.moe.layer import MoE
from deepspeed.pipe import PipelineModule
from torch import nn

from dmt_plugin.config.deepspeed import MISSING, DeepSpeedSettings
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.integrations.deepspeed.arguments.optimizers import check_built, is_built
from dmt_plugin.tables.released import released_parameters

logger = logging.getLogger(__name__)

DISABLE = 'or train this model with "dmt": {"enabled": false}'


@dataclass(frozen=True)
class RankFacts:
    """What the ranks compare of their placed models before the engine is built.

    Attributes:
        rank: The rank.
        host: Its host.
        dense: Digest of names, shapes and order of the trainable parameters that all ranks share.
        dense_count: Number of those parameters.
        groups: Number of parameters in each optimizer group but the towers', -1 standing for the towers' group.
        tower_count: Number of tower parameters, trainable or not.
        tower_sizes: Elements of each trainable tower parameter, in order.
        trainable: Elements of all trainable parameters.
    """

    rank: int
    host: int
    dense: str
    dense_count: int
    groups: tuple[int, ...]
    tower_count: int
    tower_sizes: tuple[int, ...]
    trainable: int


def check_call(model: Any, optimizer: Any, mpu: Any, mesh_param: Any, lr_scheduler: Any = None) -> None:
    """Refuse arguments of ``initialize`` that do not go with towers.

    Raises:
        ConfigError: Naming the argument.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model must be a torch.nn.Module, found {type(model).__name__}")
    if isinstance(model, PipelineModule):
        raise ConfigError(
            f"model is a pipeline module ({type(model).__name__}): towers are not supported across pipeline stages. "
            f"Pass the plain nn.Module, {DISABLE}"
        )
    if mpu is not None:
        raise ConfigError(
            "mpu is given: with a model-parallel unit DeepSpeed knows one data-parallel group for all parameters, but "
            f"towers need one per host. Leave mpu out, {DISABLE}"
        )
    if mesh_param is not None:
        raise ConfigError(
            f"mesh_param = {mesh_param!r}: sequence-parallel meshes are not supported with towers. "
            f"Leave it out, {DISABLE}"
        )
    if is_built(optimizer):
        check_built(optimizer, lr_scheduler)
    for name, module in model.named_modules():
        if isinstance(module, MoE):
            raise ConfigError(
                f"the model has a DeepSpeed MoE layer ({name or 'the model itself'}): towers use DeepSpeed's expert "
                f"groups themselves, both at once are not supported. Use the model without it, {DISABLE}"
            )
    gone = released_parameters(model)
    if gone:
        raise ConfigError(
            f"the tables of this {type(model).__name__} ({', '.join(sorted(gone)[:4])}) are with the ranks that own "
            "their rows since it was given to dmt_plugin.initialize. Build a new model for another engine; "
            "dmt_plugin.to_flat of the first engine gives one with the trained weights."
        )
    for name, parameter in model.named_parameters():
        if hasattr(parameter, "ds_id"):
            raise ConfigError(
                f"parameter {name} was partitioned by deepspeed.zero.Init: ZeRO stage 3 is not supported with towers. "
                f"Build the model outside of zero.Init, {DISABLE}"
            )


_NO_FP16 = "towers train in fp32 or bf16"
_NO_OFFLOAD = "offloading has not been made to work with towers"

#: path, the values that are allowed, reason, way out.
_KEYS: tuple[tuple[str, tuple[Any, ...], str, str], ...] = (
    (
        "fp16.enabled",
        (False,),
        f"{_NO_FP16}: table updates of a step that a loss scale skips cannot be taken back",
        'use "bf16": {"enabled": true}',
    ),
    ("bf16.enabled", (True, False), "it has to be known before the model is rewritten", "set it to true or false"),
    ("bfloat16.enabled", (True, False), "it has to be known before the model is rewritten", "set it to true or false"),
    ("bf16.bf16_master_weights_and_grads", (False,), "it needs offloading, which towers do not have", "remove it"),
    ("bf16.bf16_optimizer_states", (False,), "it needs offloading, which towers do not have", "remove it"),
    ("torch_autocast.enabled", (False,), f"{_NO_FP16}, each as a whole", 'use "bf16": {"enabled": true}'),
    ("data_types.grad_accum_dtype", ("fp32", "bf16", None), _NO_FP16, "remove it"),
    ("zero_optimization.offload_optimizer.device", ("none", None), _NO_OFFLOAD, "remove it"),
    ("zero_optimization.offload_param.device", ("none", None), _NO_OFFLOAD, "remove it"),
    ("zero_optimization.cpu_offload", (False, None), _NO_OFFLOAD, "remove it"),
    ("zero_optimization.cpu_offload_param", (False, None), _NO_OFFLOAD, "remove it"),
    ("zero_optimization.zenflow", (None,), _NO_OFFLOAD, "remove it"),
    ("zero_optimization.zero_quantized_gradients", (False,), "its groups ignore towers", "remove it"),
    ("zero_optimization.reduce_scatter", (True,), "DeepSpeed reduces experts, and so towers, only with it", "set true"),
    ("zero_optimization.contiguous_gradients", (True,), "DeepSpeed reduces experts only with it", "set it to true"),
    ("sequence_parallel_size", (1,), "towers are data parallel only", "remove it"),
    ("tensor_parallel.autotp_size", (0, 1), "towers are data parallel only", "remove the tensor_parallel section"),
    ("tensor_parallel.enabled", (False,), "towers are data parallel only", "remove the tensor_parallel section"),
    ("expert_parallel.enabled", (False,), "towers use DeepSpeed's expert groups", "remove the expert_parallel section"),
    ("hybrid_engine.enabled", (False,), "it replaces the engine that towers extend", "remove it"),
    ("compile.deepcompile", (False,), "exchanges between ranks have not been made safe to compile", "remove it"),
    ("sparse_gradients", (False,), "tables are updated by rows anyway, and no other gradient is sparse", "remove it"),
    ("gradient_allreduce_op", ("mean",), "table gradients are averaged over ranks and would not fit", 'use "mean"'),
)

#: Optimizers that reduce gradients, or sort parameters, in ways of their own.
_OPTIMIZERS = ("onebitadam", "zerooneadam", "onebitlamb", "muon")


def check_config(settings: DeepSpeedSettings) -> None:
    """Refuse what a DeepSpeed configuration asks for and towers cannot do.

    Args:
        settings: The DeepSpeed configuration.

    Raises:
        ConfigError: Naming the key and its value.
    """
    stage = settings.zero_stage
    if stage not in (0, 1, 2):
        raise ConfigError(
            f"zero_optimization.stage = {stage}: ZeRO stage 3 partitions parameters over all ranks, but each host "
            f"holds other towers. Use stage 0, 1 or 2, {DISABLE}"
        )
    for path, allowed, reason, way_out in _KEYS:
        value = settings.at(path, MISSING)
        if value is not MISSING and value not in allowed:
            raise ConfigError(
                f"{path} = {value!r} is not supported with towers: {reason}. To mend it: {way_out}, {DISABLE}"
            )
    kept, computed = settings.kept_gradients, "bf16" if settings.bf16 else "fp32"
    if kept == "bf16" and computed == "fp32":
        raise ConfigError(
            "data_types.grad_accum_dtype = 'bf16' without bf16: gradients would be kept in less than they are computed "
            f'in. Remove it, or set "bf16": {{"enabled": true}}, {DISABLE}'
        )
    if kept == "fp32" and computed == "bf16" and stage == 0:
        raise ConfigError(
            "data_types.grad_accum_dtype = 'fp32' with bf16 and zero_optimization.stage = 0: DeepSpeed keeps gradients "
            f"in another dtype only at ZeRO stages 1 and 2. Use one of these, or remove the key, {DISABLE}"
        )
    name = settings.optimizer
    if isinstance(name, str) and name.lower() in _OPTIMIZERS:
        raise ConfigError(
            f"optimizer.type = {name!r} is not supported with towers: it treats all parameters as replicated on all "
            f"ranks. Use another optimizer (Adam, AdamW, SGD, Adagrad, Lamb, ...), {DISABLE}"
        )


def check_schedule(schedule: str, settings: DeepSpeedSettings, optimizer: Any) -> None:
    """Tables that are to follow a learning rate need one.

    Args:
        schedule: ``dmt.lookup.schedule``.
        settings: The DeepSpeed configuration.
        optimizer: The argument of ``initialize``.

    Raises:
        ConfigError: There is no optimizer.
    """
    if schedule == "follow" and optimizer is None and settings.optimizer is None:
        raise ConfigError(
            'dmt.lookup.schedule = "follow" without an optimizer: there is no learning rate to follow. Name one in the '
            'configuration ("optimizer") or pass one to initialize, or use "constant"'
        )


def say_exceptions(settings: DeepSpeedSettings, lr_scheduler: Any = None, constant: bool = True) -> None:
    """Warn of what is allowed but does not reach the tables; for one rank to call.

    Args:
        settings: The DeepSpeed configuration.
        lr_scheduler: The argument of ``initialize``.
        constant: whether tables keep their learning rate.
    """
    if settings.clipping:
        origin = "" if "gradient_clipping" in settings.given else ", DeepSpeed's default,"
        logger.warning(
            "gradient_clipping = %s%s covers dense and tower parameters; tables are neither clipped nor part of the "
            "norm, as they would be in the flat model (0.0 switches clipping off)",
            settings.clipping,
            origin,
        )
    if constant and (lr_scheduler is not None or settings.scheduler is not None):
        logger.warning(
            "the learning-rate scheduler applies to dense and tower parameters; tables keep dmt.lookup.lr all the time "
            '("dmt": {"lookup": {"schedule": "follow"}} lets them follow it)'
        )


def check_ranks(facts: Sequence[RankFacts], settings: DeepSpeedSettings) -> None:
    """Compare the ranks; every rank calls this with the same facts and so raises the same error.

    Args:
        facts: One entry per rank, in rank order.
        settings: The DeepSpeed configuration.

    Raises:
        ConfigError: Naming ranks, or the key.
    """
    first = facts[0]
    for other in facts[1:]:
        if other.dense != first.dense:
            raise ConfigError(
                f"ranks 0 and {other.rank} do not have the same dense parameters ({first.dense_count} and "
                f"{other.dense_count} of them, or other names or shapes). Build the same model on every rank: "
                "look for code that depends on the rank, or for data that differs between hosts."
            )
        if other.groups != first.groups:
            raise ConfigError(
                f"ranks 0 and {other.rank} have other optimizer groups (parameters per group {first.groups} and "
                f"{other.groups}, -1: towers): ranks would wait for each other in the gradient norm. "
                "Pass the same model_parameters on every rank."
            )
    _check_towers(facts)
    _check_buckets(facts, settings)


def _check_towers(facts: Sequence[RankFacts]) -> None:
    with_towers = sorted({f.host for f in facts if f.tower_sizes})
    without = sorted({f.host for f in facts if not f.tower_sizes})
    if with_towers and without:
        raise ConfigError(
            f"hosts {without} have no tower-module parameters to train while hosts {with_towers} have: the ranks would "
            "wait for each other in the gradient norm. Give every host a tower that has a module: set dmt.towers.count "
            'to a multiple of the number of hosts, or "dmt": {"towers": {"module": "none"}} for none anywhere'
        )
    if not with_towers and any(f.tower_count for f in facts):
        raise ConfigError(
            "all parameters of all tower modules have requires_grad = False: DeepSpeed has no optimizer group for "
            'them. Leave some trainable, or use "dmt": {"towers": {"module": "none"}}'
        )
    first_lane: dict[int, RankFacts] = {}
    for fact in facts:
        same_host = first_lane.setdefault(fact.host, fact)
        if fact.tower_sizes != same_host.tower_sizes:
            raise ConfigError(
                f"ranks {same_host.rank} and {fact.rank} of host {fact.host} have tower modules of other sizes "
                f"({same_host.tower_sizes} and {fact.tower_sizes} elements per parameter). A tower module of your own "
                "(dmt.towers.module) must build the same parameters on every rank of a host."
            )


def _check_buckets(facts: Sequence[RankFacts], settings: DeepSpeedSettings) -> None:
    stage = settings.zero_stage
    overlap = settings.overlap_comm
    flushes_in_hook_order = stage == 2 or (stage == 1 and overlap)
    unequal = len({f.tower_sizes for f in facts}) > 1
    if not flushes_in_hook_order or not unequal:
        return
    bucket, needed = int(settings.reduce_bucket_size), max(f.trainable for f in facts)
    if bucket < needed:
        raise ConfigError(
            f"zero_optimization.reduce_bucket_size = {bucket} is smaller than the {needed} trainable elements of the "
            f"largest rank, and the hosts' towers differ in size (ZeRO stage {stage}, overlap_comm = {overlap}): ranks "
            "would flush their gradient buckets at different points and reduce different pieces. Set it to at least "
            f"{needed}, or use ZeRO stage 1 without overlap_comm"
        )
