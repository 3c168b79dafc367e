"""Features in known blocks: embeddings that share a direction per block and sample, and noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dmt_plugin.config import PartitionConfig
from dmt_plugin.partitioner import Affinity, Partition, make_partition
from dmt_plugin.partitioner.cosine import CosineAccumulator
from dmt_plugin.plan import FeatureSpec, TableSpec


def names_of(features: int) -> list[str]:
    return [f"f{i:04d}" for i in range(features)]


def planted_rows(
    features: int, blocks: int, noise: float, seed: int, samples: int = 300, width: int = 16
) -> tuple[dict[str, Tensor], list[int]]:
    """Rows ``(B, N)`` of every feature, and its block."""
    generator = torch.Generator().manual_seed(seed)
    block = [i % blocks for i in range(features)]
    base = torch.randn(blocks, samples, width, generator=generator)
    rows = {
        name: base[b] + noise * torch.randn(samples, width, generator=generator)
        for name, b in zip(names_of(features), block, strict=True)
    }
    return rows, block


def planted(features: int, blocks: int, noise: float, seed: int, samples: int = 300) -> tuple[Affinity, list[int]]:
    rows, block = planted_rows(features, blocks, noise, seed, samples)
    found = CosineAccumulator(list(rows))
    found.update(rows)
    return found.result(), block


def specs(features: int, seed: int = 0) -> tuple[list[FeatureSpec], list[TableSpec]]:
    """Features with a table each, of very unequal sizes."""
    rng = np.random.default_rng(seed)
    names = names_of(features)
    tables = [TableSpec(f"t.{n}", int(1000 * (1 + rng.pareto(1.2))), 16) for n in names]
    return [FeatureSpec(n, (f"t.{n}",), 1) for n in names], tables


def made(affinity: Affinity | None, features: int, towers: int, **config: object) -> Partition:
    own, tables = specs(features)
    config = {"strategy": "learned", **config}
    return make_partition(own, tables, towers, PartitionConfig.model_validate(config), affinity=affinity)


def labels(partition: Partition, features: int) -> list[int]:
    tower = {name: t for t, names in enumerate(partition.towers) for name in names}
    return [tower[name] for name in names_of(features)]
