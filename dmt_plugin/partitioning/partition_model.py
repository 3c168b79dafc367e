"""Affinities and partitions of a model: what ``dmt partition`` does, as functions.

1. ``measure_affinity`` streams batches through the lookups of the captured model and sums up affinities.
2. ``choose_by_training`` decides between partitions: with each, the model gets tower modules and a short training, and
   the least mean loss on held-out batches wins.
3. ``plan_data`` is a partition as a file: towers alone, which fit any topology.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from tqdm import tqdm

from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.core.errors import PlanError
from dmt_plugin.model.logical import TowerModel
from dmt_plugin.partitioner import Affinity, Partition
from dmt_plugin.partitioner.affinity import Kind
from dmt_plugin.partitioner.cosine import CosineAccumulator
from dmt_plugin.partitioner.information import ValueSample, mutual_information
from dmt_plugin.partitioning.feature_rows import FeatureRows
from dmt_plugin.partitioning.short_training import Loss, mean_loss, warm_up
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.topology.shape import Topology


def measure_affinity(
    rows: FeatureRows,
    batches: Iterable[Any],
    kind: Kind = "cosine",
    *,
    samples: int = 50_000,
    missing: str = "error",
    progress: bool = False,
) -> Affinity:
    """Affinity of a model's features on batches of data.

    Args:
        rows: the model.
        batches: calls of the model, as a data loader gives them.
        kind: ``"cosine"`` of embeddings, for a trained model; or ``"mutual_information"`` of values, for which any
            weights serve that tell ids apart.
        samples: how many samples to look at; the rest of ``batches`` is not read.
        missing: what to do about features that never occur: ``"error"`` or ``"zero"``.
        progress: show progress bars.

    Raises:
        PlanError: no batches, embeddings that are not finite, or features that never occur; names the features.
    """
    names = [f.name for f in rows.features]
    found = CosineAccumulator(names) if kind == "cosine" else ValueSample(names, samples)
    with tqdm(total=samples, desc=f"affinity ({kind.replace('_', ' ')})", unit="sample", disable=not progress) as bar:
        for batch in batches:
            seen = found.samples
            found.update({name: part[: samples - seen] for name, part in rows(batch).items()})
            bar.update(found.samples - seen)
            if found.samples >= samples:
                break
    if isinstance(found, CosineAccumulator):
        return found.result(rows.fingerprint, missing=missing)
    return mutual_information(found.values(), rows.fingerprint, missing=missing, progress=progress)


def choose_by_training(
    model: nn.Module,
    candidates: Mapping[str, Partition],
    example: Any,
    config: DMTConfig,
    training: Iterable[Any],
    held_out: Iterable[Any],
    loss: Loss,
    steps: int,
    *,
    learning_rate: float = 0.02,
    progress: bool = False,
) -> tuple[str, dict[str, float]]:
    """Which partition trains best with tower modules.

    Every candidate starts from a copy of ``model`` and sees the same batches in the same order.

    Args:
        model: the flat model; not changed.
        candidates: partitions by name.
        example: one call of the model.
        config: the ``"dmt"`` section; its tower modules are what is tried.
        training: batches to train on.
        held_out: batches to judge by; not among ``training``.
        loss: see :data:`Loss`.
        steps: updates per candidate.
        learning_rate: of Adagrad.
        progress: show progress bars.

    Returns:
        The name with the least held-out loss, and the loss of each.

    Raises:
        PlanError: a loss that is not a number.
    """
    train, judge = list(itertools.islice(training, steps)), list(held_out)
    losses: dict[str, float] = {}
    for name, partition in candidates.items():
        towers = with_partition(copy.deepcopy(model), example, config, partition)
        warm_up(towers, train, loss, steps, called_like=model, learning_rate=learning_rate, progress=progress)
        losses[name] = mean_loss(towers, judge, loss, called_like=model)
    undefined = sorted(name for name, value in losses.items() if not math.isfinite(value))
    if undefined:
        raise PlanError(
            f"the held-out loss of {undefined} is not a number, so nothing tells which partition is best. Look for NaN "
            "in the data, or lower the learning rate (dmt partition --lr)."
        )
    return min(losses, key=lambda name: losses[name]), losses


def with_partition(
    model: nn.Module,
    example: Any,
    config: DMTConfig,
    partition: Partition,
    topology: Topology | None = None,
    row_shares: RowShares | None = None,
) -> TowerModel:
    """Transforms a model with a partition that was made before.

    Args:
        model: the flat model.
        example: one call of it.
        config: the ``"dmt"`` section; its ``partition`` does not count, its number of towers follows.
        partition: the towers.
        topology: hosts and lanes that the plan is for; by default as in ``transform``.
        row_shares: distinct rows that were counted.
    """
    towers = config.towers.model_copy(update={"count": len(partition.towers)})
    settings = config.model_copy(update={"towers": towers})
    return transform(model, example, settings, topology, partition=partition, row_shares=row_shares)


def plan_data(partition: Partition, model: str, row_shares: RowShares | None = None) -> dict[str, Any]:
    """A partition as a file for ``dmt.partition.file``.

    Args:
        partition: the towers.
        model: fingerprint of the model they are for, ``""`` for any.
        row_shares: distinct rows that were counted.
    """
    counted = {} if row_shares is None else {"row_shares": row_shares.to_dict()}
    return {
        "towers": [list(names) for names in partition.towers],
        "model": model,
        "provenance": dict(partition.provenance),
        **counted,
    }
