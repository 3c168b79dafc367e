"""TorchRec's ``DistributedModelParallel``, table-wise, dense part under DDP: the baseline of every ratio.

Tables are dealt to the ranks in turn. (Of TorchRec's shardings that run on gloo this is the fastest for this model;
its planner picks the same.)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.step.messages import messages_everywhere
from benchmarks.step.model import Batch, Dense, FlatModel, loss_of, make_model
from benchmarks.step.setting import Setting


class _Collection(nn.Module):
    """The flat model over an ``EmbeddingBagCollection``."""

    def __init__(self, setting: Setting) -> None:
        from torchrec.modules.embedding_configs import EmbeddingBagConfig
        from torchrec.modules.embedding_modules import EmbeddingBagCollection

        super().__init__()
        self.names = [f"f{i}" for i in range(setting.features)]
        self.tables = EmbeddingBagCollection(
            tables=[
                EmbeddingBagConfig(
                    name=f"t{i}", embedding_dim=setting.width, num_embeddings=setting.rows, feature_names=[name]
                )
                for i, name in enumerate(self.names)
            ]
        )
        self.dense = Dense(setting)

    def forward(self, dense: Tensor, features: Any) -> Tensor:
        pooled = self.tables(features)
        return self.dense(dense, [pooled[name] for name in self.names])


def _local_tables(sharded: nn.Module) -> dict[int, Tensor]:
    """Tables that this rank owns, by feature: views."""
    found = {}
    for name, value in sharded.state_dict().items():
        if ".embedding_bags." in name:
            for shard in value.local_shards():  # table-wise: whole tables
                found[int(name.rpartition(".weight")[0].rpartition(".t")[2])] = shard.tensor
    return found


def _load_tables(sharded: nn.Module, flat: FlatModel) -> None:
    """Weights into the shards: TorchRec makes fused tables anew and does not take over the module's own."""
    loaded = 0
    for feature, shard in _local_tables(sharded).items():
        shard.copy_(flat.tables[feature].weight.detach())
        loaded += shard.numel()
    total = torch.tensor(loaded)
    dist.all_reduce(total)
    if total != sum(table.weight.numel() for table in flat.tables):
        raise RuntimeError(f"{int(total)} entries of the tables were loaded; TorchRec's names of them have changed")


class TorchRecVariant:
    """One sharding of the flat model.

    Args:
        setting: what is measured.
        messages: whether its all-to-all goes as single messages, as this project's does.
    """

    def __init__(self, setting: Setting, messages: bool = True) -> None:
        from fbgemm_gpu.split_embedding_configs import EmbOptimType
        from torchrec.distributed.embedding_types import EmbeddingComputeKernel
        from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
        from torchrec.distributed.model_parallel import DistributedModelParallel
        from torchrec.distributed.sharding_plan import construct_module_sharding_plan, table_wise
        from torchrec.distributed.types import ShardingEnv, ShardingPlan

        self._setting, self._messages = setting, messages
        model, flat = _Collection(setting), make_model(setting)
        model.dense.load_state_dict(flat.dense.state_dict())
        sharder = EmbeddingBagCollectionSharder(
            fused_params={"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": setting.table_lr}
        )
        # Without a device: with one, every table would silently land on rank 0. Fused: the default would leave the
        # tables to a dense optimizer.
        plan = construct_module_sharding_plan(
            model.tables,
            {
                f"t{i}": table_wise(rank=i % setting.world_size, compute_kernel=EmbeddingComputeKernel.FUSED.value)
                for i in range(setting.features)
            },
            sharder=sharder,
            local_size=setting.lanes,
            world_size=setting.world_size,
            device_type="cpu",
        )
        self._model = DistributedModelParallel(
            model,
            env=ShardingEnv.from_process_group(dist.group.WORLD),
            device=torch.device("cpu"),
            plan=ShardingPlan(plan={"tables": plan}),
            sharders=[sharder],
        )
        _load_tables(self._model, flat)
        dense = [p for name, p in self._model.named_parameters() if ".dense." in f".{name}"]
        self._optimizer = torch.optim.SGD(dense, lr=setting.lr)

    def prepare(self, batch: Batch) -> Any:
        """Ids as TorchRec takes them: feature by feature, each with the number of ids of every sample."""
        from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

        features = KeyedJaggedTensor.from_lengths_sync(
            keys=[f"f{i}" for i in range(self._setting.features)],
            values=batch.ids.t().reshape(-1),
            lengths=torch.ones(batch.ids.numel(), dtype=torch.int64),
        )
        return batch.dense, features, batch.labels

    def step(self, prepared: Any) -> Tensor:
        """One optimiser step; the rank's loss before it."""
        if not self._messages:
            return self._step(*prepared)
        with messages_everywhere(self._setting.lanes):
            return self._step(*prepared)

    def _step(self, dense: Tensor, features: Any, labels: Tensor) -> Tensor:
        self._optimizer.zero_grad()
        loss = loss_of(self._model(dense, features), labels)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def tables(self) -> dict[int, Tensor]:
        """Tables that this rank owns, by feature."""
        return _local_tables(self._model)

    def formula_bytes(self) -> int:
        """Not told."""
        return 0
