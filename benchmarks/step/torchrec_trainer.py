"""Training with a model of TorchRec's: what its sharded variants have in common.

1. Tables are FBGEMM's with the optimizer fused into the backward pass; the dense part is under DDP. So are tables that
   TorchRec's planner replicates (data-parallel ones): their gradients are averaged over the ranks and the optimizer
   steps on them, plain SGD with the tables' rate, as the fused one is.
2. Weights are copied in after sharding: TorchRec makes new tables.
3. The all-to-all goes as this project's does (:mod:`benchmarks.step.messages`), unless set otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.step.messages import messages_everywhere
from benchmarks.step.model import Batch, loss_of
from benchmarks.step.parts import Part
from benchmarks.step.setting import Setting


def feature_name(feature: int) -> str:
    """Name of a feature among TorchRec's keys."""
    return f"f{feature}"


def table_name(feature: int) -> str:
    """Name of a feature's table."""
    return f"t{feature}"


def collection(setting: Setting, features: Sequence[int]) -> nn.Module:
    """TorchRec's collection of the tables of some features.

    On the meta device, as TorchRec's users have it: no rank needs a copy of all tables.
    """
    from torchrec.modules.embedding_configs import EmbeddingBagConfig
    from torchrec.modules.embedding_modules import EmbeddingBagCollection

    tables = [
        EmbeddingBagConfig(
            name=table_name(feature),
            embedding_dim=setting.width,
            num_embeddings=setting.rows_of(feature),
            feature_names=[feature_name(feature)],
        )
        for feature in features
    ]
    return EmbeddingBagCollection(tables=tables, device=torch.device("meta"))


def fused_sgd(setting: Setting) -> dict[str, Any]:
    """The tables' optimizer, as TorchRec takes it."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType

    return {"optimizer": EmbOptimType.EXACT_SGD, "learning_rate": setting.table_lr}


def parts_of(sharded: nn.Module, replicas: bool = False) -> dict[int, list[Part]]:
    """What this rank holds of the tables, by feature: views.

    Args:
        sharded: the model.
        replicas: whether a replicated table is told of by every rank; else by rank 0 alone, so that the ranks together
            tell of every entry once.
    """
    found: dict[int, list[Part]] = {}
    for name, value in sharded.state_dict().items():
        if ".embedding_bags." not in name:
            continue
        feature = int(name.rpartition(".weight")[0].rpartition(f".{table_name(0)[:-1]}")[2])
        if isinstance(value, Tensor) and not hasattr(value, "local_shards"):
            if replicas or dist.get_rank() == 0:
                found.setdefault(feature, []).append(Part(value))
            continue
        for shard in value.local_shards():
            row, column = shard.metadata.shard_offsets
            if shard.tensor.numel():
                found.setdefault(feature, []).append(Part(shard.tensor, row, column))
    return found


def load_tables(sharded: nn.Module, tables: Sequence[Tensor]) -> None:
    """Weights into what this rank holds.

    Raises:
        RuntimeError: the ranks together do not hold every entry once, replicas aside.
    """
    with torch.no_grad():
        for feature, parts in parts_of(sharded, replicas=True).items():
            for part in parts:
                part.values.copy_(part.block_of(tables[feature]))
    loaded = sum(part.values.numel() for parts in parts_of(sharded).values() for part in parts)
    total = torch.tensor(loaded)
    dist.all_reduce(total)
    if total != (expected := sum(table.numel() for table in tables)):
        raise RuntimeError(
            f"{int(total)} entries of the tables were loaded instead of {expected}: TorchRec's names of them have "
            "changed"
        )


def dense_parameters(sharded: nn.Module) -> list[nn.Parameter]:
    """All but the tables."""
    return [p for name, p in sharded.named_parameters() if ".embedding_bags." not in f".{name}"]


def replicated_tables(sharded: nn.Module) -> list[nn.Parameter]:
    """Data-parallel tables: those without an optimizer in the backward pass."""
    from torchrec.optim.optimizers import in_backward_optimizer_filter

    return [p for name, p in in_backward_optimizer_filter(sharded.named_parameters()) if ".embedding_bags." in name]


def plain_sgd(setting: Setting, sharded: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all that has none in the backward pass."""
    groups = [{"params": dense_parameters(sharded)}]
    if replicas := replicated_tables(sharded):
        groups.append({"params": replicas, "lr": setting.table_lr})
    return torch.optim.SGD(groups, lr=setting.lr)


def keyed(setting: Setting, ids: Tensor) -> Any:
    """Ids ``(B, F * K)`` as TorchRec takes them: feature by feature, each with the number of ids of every sample."""
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    return KeyedJaggedTensor.from_lengths_sync(
        keys=[feature_name(feature) for feature in range(setting.features)],
        values=torch.cat([bags.reshape(-1) for bags in ids.split(setting.bag, dim=1)]),
        lengths=torch.full((len(ids) * setting.features,), setting.bag, dtype=torch.int64),
    )


def distinct_keyed(setting: Setting, ids: Tensor) -> Any:
    """Ids ``(B, F * K)`` with every distinct bag of a feature once, and where each sample finds it.

    TorchRec's variable batch per feature: a batch of its own size for each feature, expanded behind the exchange.
    """
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    keys = [feature_name(feature) for feature in range(setting.features)]
    found = [torch.unique(bags, dim=0, return_inverse=True) for bags in ids.split(setting.bag, dim=1)]
    values = torch.cat([distinct.reshape(-1) for distinct, _ in found])
    return KeyedJaggedTensor(
        keys=keys,
        values=values,
        lengths=torch.full((sum(len(distinct) for distinct, _ in found),), setting.bag, dtype=torch.int64),
        stride_per_key_per_rank=[[len(distinct)] for distinct, _ in found],
        inverse_indices=(keys, torch.stack([inverse for _, inverse in found])),
    )


class TorchRecTrainer:
    """A sharded model of TorchRec's and its optimizer.

    Args:
        setting: what is measured.
        model: sharded; takes dense features and a ``KeyedJaggedTensor``.
        messages: whether its all-to-all goes as single messages, as this project's does.
        distinct: whether it is given every distinct id of a feature once.
    """

    def __init__(self, setting: Setting, model: nn.Module, messages: bool, distinct: bool = False) -> None:
        self._setting, self._model, self._messages = setting, model, messages
        self._keyed = distinct_keyed if distinct else keyed
        self._optimizer = plain_sgd(setting, model)

    def prepare(self, batch: Batch) -> Any:
        """Ids as TorchRec takes them."""
        return batch.dense, self._keyed(self._setting, batch.ids), batch.labels

    def step(self, prepared: Any) -> Tensor:
        """One optimizer step; the rank's loss before it."""
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

    def tables(self) -> dict[int, list[Part]]:
        """What this rank holds of the tables, by feature."""
        return parts_of(self._model)

    def formula_bytes(self) -> int:
        """Not told."""
        return 0
