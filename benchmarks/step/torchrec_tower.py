"""TorchRec's ``EmbeddingTowerCollection``, written by hand: its own form of towers, with the same tower module.

1. Towers, the features of each and its host are those of this project's plan; so are all starting weights: tables,
   tower modules, dense part. With equal losses, the two differ in speed alone.
2. Inside a host each table is one rank's, assigned in turn. TorchRec's towers take table-column-wise or
   table-row-wise sharding only; a table-column-wise one of a single block of columns is a whole table, which moves the
   fewest bytes.
3. Each tower module is under DDP inside its host, the rest under DDP over all ranks, as TorchRec does it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import dmt_plugin
from benchmarks.step.model import FastDense, make_batch, make_model
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


class _Interaction(nn.Module):
    """What a tower makes of its rows: this project's tower module, given TorchRec's keyed rows."""

    def __init__(self, features: Sequence[int], module: nn.Module) -> None:
        super().__init__()
        self.names = [feature_name(feature) for feature in features]
        self.module = module

    def forward(self, pooled: Any) -> Tensor:
        # By key: column-wise sharding has its own order of keys.
        rows = pooled.to_dict()
        return self.module(torch.stack([rows[name] for name in self.names], dim=1))


class _TowerModel(nn.Module):
    """The model with towers over an ``EmbeddingTowerCollection``."""

    def __init__(self, setting: Setting, towers: Sequence[Sequence[int]], modules: Sequence[nn.Module], width: int):
        from torchrec.modules.embedding_tower import EmbeddingTower, EmbeddingTowerCollection

        super().__init__()
        self.width = width
        self.towers = EmbeddingTowerCollection(
            towers=[
                EmbeddingTower(collection(setting, features), _Interaction(features, module))
                for features, module in zip(towers, modules, strict=True)
            ]
        )
        self.dense = FastDense(setting, width)

    def forward(self, dense: Tensor, features: Any) -> Tensor:
        return self.dense(dense, self.towers(features).split(self.width, dim=1))


def tower_trainer(setting: Setting, ratio: int, precision: str = "fp32", pipelined: bool = False) -> Variant:
    """The model with hand-written towers, one for each host.

    Args:
        setting: what is measured.
        ratio: compression of the towers.
        precision: on the wire.
        pipelined: under TorchRec's pipeline.
    """
    from torchrec.distributed.embedding_tower_sharding import EmbeddingTowerCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.types import ShardingEnv, ShardingPlan

    flat = make_model(setting)
    logical = _logical(setting, flat, ratio)
    plan = logical.plan
    towers = [[_feature(name) for name in names] for names in plan.towers]
    modules = [logical.get_submodule(f"dmt_towers.{plan.groups[0].name}.tower{t}") for t in range(len(towers))]
    model = _TowerModel(setting, towers, modules, setting.width // ratio)
    state = {k: v for k, v in logical.state_dict().items() if k.startswith("dense.")}
    model.dense.load_state_dict({k.removeprefix("dense."): v for k, v in state.items()})
    sharder = EmbeddingTowerCollectionSharder(
        fused_params=fused_sgd(setting), qcomm_codecs_registry=codecs(precision)
    )
    path = "model.towers" if pipelined else "towers"
    with _ddp_of_the_cpu():
        sharded = DistributedModelParallel(
            Training(model) if pipelined else model,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=torch.device("cpu"),
            plan=ShardingPlan(plan={path: _plan(setting, towers, plan.tower_hosts)}),
            sharders=[sharder],
        )
    load_tables(sharded, flat.weights())
    return PipelinedTrainer(setting, sharded) if pipelined else TorchRecTrainer(setting, sharded, messages=True)


def _logical(setting: Setting, flat: nn.Module, ratio: int) -> Any:
    """This project's rewriting of the model, for its plan and its starting weights."""
    example = make_batch(setting, 0, 0)
    section = {
        "topology": {"hosts": setting.hosts, "ranks_per_host": setting.lanes},
        "towers": {"module": "dlrm", "c": 1, "p": 0, "dim": setting.width // ratio},
    }
    return dmt_plugin.transform(
        flat, (example.dense[:8], example.ids[:8]), {"dmt": section}, f"{setting.hosts}x{setting.lanes}"
    )


def _feature(name: str) -> int:
    return int(name.rpartition(".")[2])


def _plan(setting: Setting, towers: Sequence[Sequence[int]], hosts: Sequence[int]) -> Any:
    from torchrec.distributed.embedding_types import EmbeddingComputeKernel
    from torchrec.distributed.types import (
        EmbeddingModuleShardingPlan,
        EnumerableShardingSpec,
        ParameterSharding,
        ShardingType,
        ShardMetadata,
    )

    plan = EmbeddingModuleShardingPlan()
    for features, host in zip(towers, hosts, strict=True):
        for place, feature in enumerate(features):
            rank = host * setting.lanes + place % setting.lanes
            block = ShardMetadata(
                shard_offsets=[0, 0],
                shard_sizes=[setting.rows_of(feature), setting.width],
                placement=f"rank:{rank}/cpu",
            )
            plan[table_name(feature)] = ParameterSharding(
                sharding_type=ShardingType.TABLE_COLUMN_WISE.value,
                compute_kernel=EmbeddingComputeKernel.FUSED.value,
                ranks=[rank],
                sharding_spec=EnumerableShardingSpec([block]),
            )
    return plan


@contextlib.contextmanager
def _ddp_of_the_cpu() -> Iterator[None]:
    """Let TorchRec's towers be built for the CPU.

    It hands ``device_ids=[cpu]`` to DDP, which takes accelerators there and refuses; without the argument DDP does on
    the CPU what it is asked for. Nothing else of TorchRec is changed.
    """
    from torchrec.distributed import embedding_tower_sharding as towers

    stock = towers.DistributedDataParallel

    def without_devices(*args: Any, **options: Any) -> nn.Module:
        return stock(*args, **{**options, "device_ids": None})

    towers.DistributedDataParallel = without_devices
    try:
        yield
    finally:
        towers.DistributedDataParallel = stock
