"""TorchRec's ``DistributedModelParallel`` with its flat shardings: the baselines.

``tw`` assigns whole tables to the ranks in turn; ``cw`` cuts each table into two halves of columns, assigned alike;
``twrw`` deals tables to hosts and cuts their rows over the host's ranks; ``rw`` cuts rows over all ranks.

What TorchRec's own planner chooses: ``planner`` if every table is to train in the backward pass; ``planner_dp_cpu`` and
``planner_dp_cuda`` if it may replicate tables, by its costs of CPUs and of GPUs. The latter two are asked without a
codec, whatever is on the wire then: given one of fp16 or int8 the planner replicates nothing, and sends more. Where
their plan has rows that are summed inside a host, int8 leaves that sum in fp32: TorchRec's codec for it does not run.

``vbe`` is the plan of ``planner`` under TorchRec's variable batch per feature: every distinct bag of a rank's batch is
given to it once. Finding them is not timed. It takes no replicated tables: FBGEMM's dense kernel refuses such batches
on a CPU.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.step.model import FastDense, make_model
from benchmarks.step.protocols import Variant
from benchmarks.step.setting import Setting
from benchmarks.step.torchrec_pipelined import PipelinedTrainer, Training
from benchmarks.step.torchrec_trainer import (
    TorchRecTrainer,
    collection,
    feature_name,
    fused_sgd,
    load_tables,
    table_name,
)
from benchmarks.step.torchrec_wire import codecs

_PLANNED = {"planner": "cpu", "vbe": "cpu", "planner_dp_cpu": "cpu", "planner_dp_cuda": "cuda"}
"""What the planner chooses, and whose costs it goes by."""

SHARDINGS = ("tw", "cw", "twrw", "rw", *_PLANNED)


class FlatCollection(nn.Module):
    """The flat model over an ``EmbeddingBagCollection``."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.names = [feature_name(feature) for feature in range(setting.features)]
        self.tables = collection(setting, range(setting.features))
        self.dense = FastDense(setting)

    def forward(self, dense: Tensor, features: Any) -> Tensor:
        """Logits ``(B,)``."""
        # By key: the order of keys depends on the sharding.
        pooled = self.tables(features).to_dict()
        return self.dense(dense, [pooled[name] for name in self.names])


def flat_trainer(setting: Setting, sharding: str = "tw", precision: str = "fp32", messages: bool = True) -> Variant:
    """The flat model, sharded.

    Args:
        setting: what is measured.
        sharding: one of ``SHARDINGS``.
        precision: on the wire.
        messages: whether its all-to-all goes as single messages.
    """
    model = FlatCollection(setting)
    sharded = _sharded(setting, model, model, "tables", sharding, precision)
    return TorchRecTrainer(setting, sharded, messages, distinct=sharding == "vbe")


def pipelined_trainer(setting: Setting, precision: str = "fp32") -> Variant:
    """The flat model, sharded table-wise, under TorchRec's pipeline.

    Args:
        setting: what is measured.
        precision: on the wire.
    """
    model = FlatCollection(setting)
    return PipelinedTrainer(setting, _sharded(setting, Training(model), model, "model.tables", "tw", precision))


def _sharded(
    setting: Setting, module: nn.Module, flat: FlatCollection, path: str, sharding: str, precision: str
) -> nn.Module:
    """A module with the flat model inside, under ``path``, sharded and with the weights that everyone starts from."""
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.types import ShardingEnv, ShardingPlan

    start = make_model(setting)
    flat.dense.load_state_dict(start.dense.state_dict())
    wire = codecs(precision, reductions=precision != "int8" or not sharding.startswith("planner_dp"))
    sharder = EmbeddingBagCollectionSharder(fused_params=fused_sgd(setting), qcomm_codecs_registry=wire)
    if sharding in _PLANNED:
        plan = _planned(setting, module, sharder, sharding)
    else:
        plan = ShardingPlan(plan={path: _plan(setting, flat.tables, sharder, sharding)})
    result = DistributedModelParallel(
        module,
        env=ShardingEnv.from_process_group(dist.group.WORLD),
        device=torch.device("cpu"),
        plan=plan,
        sharders=[sharder],
    )
    load_tables(result, start.weights())
    return result


def _planned(setting: Setting, module: nn.Module, sharder: Any, sharding: str) -> Any:
    from torchrec.distributed.embedding_types import EmbeddingComputeKernel
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology

    replicas, costs = sharding.startswith("planner_dp"), _PLANNED[sharding]
    if replicas:
        sharder = EmbeddingBagCollectionSharder(fused_params=fused_sgd(setting))
    kernels = None if replicas else [EmbeddingComputeKernel.FUSED.value]
    own = ParameterConstraints(compute_kernels=kernels, pooling_factors=[float(setting.bag)])
    planner = EmbeddingShardingPlanner(
        topology=Topology(world_size=setting.world_size, local_world_size=setting.lanes, compute_device=costs),
        batch_size=setting.batch,
        constraints={table_name(feature): own for feature in range(setting.features)},
    )
    plan = planner.collective_plan(module, [sharder], dist.group.WORLD)
    for tables in plan.plan.values():  # its blocks are where these ranks are, whatever costs it went by
        for table in tables.values():
            for block in table.sharding_spec.shards if table.sharding_spec else ():
                block.placement = torch.distributed._remote_device(f"rank:{block.placement.rank()}/cpu")
    return plan


def _plan(setting: Setting, tables: nn.Module, sharder: Any, sharding: str) -> Any:
    from torchrec.distributed.embedding_types import EmbeddingComputeKernel
    from torchrec.distributed.sharding_plan import (
        column_wise,
        construct_module_sharding_plan,
        row_wise,
        table_row_wise,
        table_wise,
    )

    ranks, fused = setting.world_size, EmbeddingComputeKernel.FUSED.value
    # No device is named: with one, every table would silently land on rank 0.
    if sharding == "tw":
        chosen = [table_wise(rank=i % ranks, compute_kernel=fused) for i in range(setting.features)]
    elif sharding == "cw":
        chosen = [
            column_wise(ranks=[2 * i % ranks, (2 * i + 1) % ranks], compute_kernel=fused)
            for i in range(setting.features)
        ]
    elif sharding == "twrw":
        chosen = [table_row_wise(host_index=i % setting.hosts) for i in range(setting.features)]
    elif sharding == "rw":
        chosen = [row_wise(compute_kernel=fused) for _ in range(setting.features)]
    else:
        raise ValueError(f"sharding {sharding!r}; expected one of {', '.join(SHARDINGS)}")
    # Fused: the default would leave the tables to a dense optimizer.
    plan = construct_module_sharding_plan(
        tables,
        {table_name(i): choice for i, choice in enumerate(chosen)},
        sharder=sharder,
        local_size=setting.lanes,
        world_size=ranks,
        device_type="cpu",
    )
    for parameter in plan.values():
        parameter.compute_kernel = fused  # table_row_wise() takes none and would leave it to a dense optimizer
    return plan
