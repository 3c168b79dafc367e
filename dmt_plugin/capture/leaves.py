"""Which modules stay one node in the graph, and what value such a node has.

A leaf keeps its ``call_module`` node, its parameters and its name. Leaves are torch's
own layers, user classes that only inherit the forward of an embedding layer, and
torchrec's embedding collections, which are recognised by their interface and not traced
into: their inputs are jagged and their code is not meant for tracing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

_INHERITED_FORWARDS = (nn.EmbeddingBag, nn.Embedding, nn.Linear)


def is_bag_collection(module: nn.Module) -> bool:
    """True for torchrec's ``EmbeddingBagCollection`` (or an object with its interface)."""
    return isinstance(getattr(module, "embedding_bags", None), nn.ModuleDict) and callable(
        getattr(module, "embedding_bag_configs", None)
    )


def is_leaf(module: nn.Module) -> bool:
    """True if a call of ``module`` becomes one ``call_module`` node."""
    if is_bag_collection(module):
        return True
    if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        return False
    if type(module).__module__.startswith("torch.nn"):
        return True
    return any(isinstance(module, base) and type(module).forward is base.forward for base in _INHERITED_FORWARDS)


def pooled_columns(module: nn.Module) -> list[tuple[str, str, str, int]]:
    """The output columns of a bag collection, in order.

    Returns:
        For each column block ``(key, feature, table, width)``: the key in the pooled
        output, the feature whose ids are looked up, the table's name, its width.
    """
    columns: list[tuple[str, str, str, int]] = []
    uses: dict[str, int] = {}
    configs = list(module.embedding_bag_configs())  # type: ignore[operator]
    for config in configs:
        for feature in config.feature_names:
            uses[feature] = uses.get(feature, 0) + 1
    for config in configs:
        for feature in config.feature_names:
            key = feature if uses[feature] == 1 else f"{feature}@{config.name}"
            columns.append((key, feature, config.name, config.embedding_dim))
    return columns


class PooledValues:
    """Stands for the pooled output of a bag collection: a wide tensor with named blocks.

    It offers what a torchrec ``KeyedTensor`` offers to a model. It is an example
    value: it exists while a graph is captured and is gone when the collection is dissolved
    into its lookups.

    Args:
        keys: name of each block.
        blocks: one tensor ``(B, width)`` per key.
    """

    def __init__(self, keys: Sequence[str], blocks: Sequence[Tensor]) -> None:
        self._blocks = dict(zip(keys, blocks, strict=True))

    def keys(self) -> list[str]:
        """The names of the blocks."""
        return list(self._blocks)

    def values(self) -> Tensor:
        """All blocks side by side, ``(B, sum of widths)``."""
        return torch.cat(list(self._blocks.values()), dim=1)

    def to_dict(self) -> dict[str, Tensor]:
        """Block by key."""
        return dict(self._blocks)

    def length_per_key(self) -> list[int]:
        """Width of each block."""
        return [block.shape[1] for block in self._blocks.values()]

    def __getitem__(self, key: str) -> Tensor:
        return self._blocks[key]


def leaf_value(module: nn.Module, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The example value of a leaf call, for leaves that must not be run on fake tensors.

    Returns:
        ``NotImplemented`` if the module can simply be called.
    """
    if is_bag_collection(module):
        (features,) = tuple(args) + tuple(kwargs.values())
        batch = int(features.stride())
        columns = pooled_columns(module)
        if missing := sorted({feature for _, feature, _, _ in columns}.difference(features.keys())):
            raise KeyError(
                f"the jagged tensor has no {missing}, which the collection looks up: {list(features.keys())}"
            )
        bags = module.embedding_bags
        blocks = [
            bags[table].weight.new_empty(batch, width)  # type: ignore[index, union-attr]
            for _, _, table, width in columns
        ]
        return PooledValues([key for key, _, _, _ in columns], blocks)
    return NotImplemented
