"""Pooled embeddings as torchrec's users split, merge and feed them, in the style of where each was met.

Two towers over a user's and an item's features, once for every way to get at the two halves: ``regroup``,
``KTRegroupAsDict``, the FBGEMM operations behind them, merged dicts. One layer over all of them, once for every way to
feed them: keyed jagged tensors made, split or joined in forward, and batches with more in them than the model reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.zoo.spec import (
    FEATURES,
    WIDTH,
    Batch,
    Built,
    Oracle,
    Variant,
    bags_of,
    by_size,
    dense_of,
    generator,
    ids_of,
    mlp,
    numbered,
    rows_of,
)

_DENSE = 3


def names_of(features: int) -> list[str]:
    return [f"cat_{f}" for f in range(features)]


def collection(features: Sequence[int], width: int, **options: Any) -> Any:
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=f"t{f}", embedding_dim=width, num_embeddings=rows_of(f), feature_names=[f"cat_{f}"])
            for f in features
        ],
        **options,
    )


def flat_ids(n: int, features: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """Values and lengths of a keyed jagged tensor; bags of zero to three ids."""
    offsets, ids = bags_of(n, max(features) + 1, seed)
    ends = [torch.cat([o, torch.tensor([len(i)])]) for o, i in zip(offsets, ids, strict=True)]
    return torch.cat([ids[f] for f in features]), torch.cat([torch.diff(ends[f]) for f in features])


def jagged(n: int, features: Sequence[int], seed: int, *, weighted: bool = False) -> Any:
    from torchrec import KeyedJaggedTensor

    values, lengths = flat_ids(n, features, seed)
    weights = torch.rand(len(values), generator=generator(seed, 5)) if weighted else None
    return KeyedJaggedTensor([f"cat_{f}" for f in features], values, lengths=lengths, weights=weights)


def keyed(n: int, seed: int) -> Any:
    from torchrec import KeyedTensor

    return KeyedTensor([f"d{i}" for i in range(_DENSE)], [1] * _DENSE, dense_of(n, seed, _DENSE))


def one_jagged(features: int) -> Batch:
    return lambda n, seed=0: (dense_of(n, seed, _DENSE), jagged(n, range(features), seed))


class TwoTowers(nn.Module):
    """A user's and an item's vectors through an MLP each, and their dot product; ``halves`` says how they are got."""

    def __init__(self, features: int, width: int, *, dense: int = 0, collections: int = 1) -> None:
        super().__init__()
        half = features // 2
        self.names = names_of(features)
        self.groups = [self.names[:half], self.names[half:]]
        parts = [range(features)] if collections == 1 else [range(half), range(half, features)]
        self.collections = nn.ModuleList(collection(list(part), width) for part in parts)
        self.user = mlp([half * width + dense, 12, 5])
        self.item = mlp([(features - half) * width, 12, 5])

    def halves(self, dense: Any, *sparse: Any) -> Sequence[Tensor]:
        raise NotImplementedError

    def forward(self, dense: Any, *sparse: Any) -> Tensor:
        user, item = self.halves(dense, *sparse)
        return (self.user(user) * self.item(item)).sum(1)


class Regroup(TwoTowers):
    def halves(self, dense: Any, *sparse: Any) -> Sequence[Tensor]:
        from torchrec import KeyedTensor

        return KeyedTensor.regroup([each(sparse[0]) for each in self.collections], self.groups)


class RegroupAsDict(TwoTowers):
    def halves(self, dense: Any, *sparse: Any) -> Sequence[Tensor]:
        from torchrec import KeyedTensor

        found = KeyedTensor.regroup_as_dict([self.collections[0](sparse[0])], self.groups, ["user", "item"])
        return found["user"], found["item"]


class RegroupModule(TwoTowers):
    """As TorchEasyRec: ``KTRegroupAsDict`` over the collection and a keyed tensor of dense features."""

    def __init__(self, features: int, width: int) -> None:
        from torchrec.modules.regroup import KTRegroupAsDict

        super().__init__(features, width, dense=_DENSE)
        groups = [self.groups[0] + [f"d{i}" for i in range(_DENSE)], self.groups[1]]
        self.split = KTRegroupAsDict(groups, ["user", "item"])

    def halves(self, dense: Any, *sparse: Any) -> Sequence[Tensor]:
        found = self.split([self.collections[0](sparse[0]), dense])
        return found["user"], found["item"]


class RegroupWithDense(TwoTowers):
    def halves(self, dense: Any, *sparse: Any) -> Sequence[Tensor]:
        from torchrec import KeyedTensor

        own = KeyedTensor(["dense"], [_DENSE], dense)
        return KeyedTensor.regroup([self.collections[0](sparse[0]), own], [self.groups[0] + ["dense"], self.groups[1]])


class SharedFeature(TwoTowers):
    """One feature is in both groups, which torchrec regroups by another path."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        self.item = mlp([(features - features // 2 + 1) * width, 12, 5])

    def halves(self, dense: Any, *sparse: Any) -> Sequence[Tensor]:
        from torchrec import KeyedTensor

        return KeyedTensor.regroup([self.collections[0](sparse[0])], [self.groups[0], ["cat_0", *self.groups[1]]])


class PermutePooled(TwoTowers):
    """FBGEMM's permutation of a wide tensor, features from behind, with its index tensors as buffers."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        offsets = torch.arange(features + 1) * width
        order = torch.arange(features).flip(0)
        for name, value in {"offsets": offsets, "order": order}.items():
            self.register_buffer(name, value, persistent=False)
        self.sizes = [(features - features // 2) * width, features // 2 * width]

    def halves(self, dense: Any, *sparse: Any) -> Sequence[Tensor]:
        pooled = self.collections[0](sparse[0]).values()
        turned = torch.ops.fbgemm.permute_pooled_embs_auto_grad(
            pooled, self.offsets, self.order, self.offsets, self.order
        )
        item, user = torch.split(turned, self.sizes, dim=1)
        return user, item


class PermuteMulti(TwoTowers):
    """FBGEMM's regrouping of several tensors, its index tensors computed in forward."""

    def halves(self, dense: Any, *sparse: Any) -> Sequence[Tensor]:
        pooled = [each(sparse[0]) for each in self.collections]
        values = [kt.values() for kt in pooled]
        keys, widths = [kt.keys() for kt in pooled], [kt.length_per_key() for kt in pooled]
        places = torch.ops.fbgemm.kt_regroup_arguments(values[0], keys, widths, self.groups)
        return torch.ops.fbgemm.permute_multi_embedding(values, *places)


class RegroupKts(TwoTowers):
    def halves(self, dense: Any, *sparse: Any) -> Sequence[Tensor]:
        from torchrec.sparse.jagged_tensor import regroup_kts

        return regroup_kts([each(sparse[0]) for each in self.collections], self.groups)


class Sliced(TwoTowers):
    """All of them side by side, the halves by their columns."""

    def halves(self, dense: Any, *sparse: Any) -> Sequence[Tensor]:
        pooled = torch.cat([dense, self.collections[0](sparse[0]).values()], dim=1)
        border = self.user[0].in_features
        return pooled[:, :border], pooled[:, border:]


class MergedDicts(TwoTowers):
    """A jagged tensor for each collection; their vectors merged into one dict."""

    def halves(self, dense: Any, *sparse: Any) -> Sequence[Tensor]:
        user, item = (each(own) for each, own in zip(self.collections, sparse, strict=True))
        vectors = user.to_dict() | item.to_dict()
        return [torch.cat([vectors[name] for name in group], dim=1) for group in self.groups]


class Wide(nn.Module):
    """One collection and one MLP over all its vectors and the dense features; ``features`` says how it is fed."""

    def __init__(self, features: int, width: int, **options: Any) -> None:
        super().__init__()
        self.names = names_of(features)
        self.bags = collection(range(features), width, **options)
        self.top = mlp([features * width + _DENSE, 16, 1])

    def features(self, *sparse: Any) -> Any:
        return sparse[0]

    def forward(self, dense: Tensor, *sparse: Any) -> Tensor:
        return self.top(torch.cat([dense, self.bags(self.features(*sparse)).values()], dim=1)).squeeze(1)


class MadeInForward(Wide):
    def features(self, *sparse: Any) -> Any:
        from torchrec import KeyedJaggedTensor

        values, lengths = sparse
        return KeyedJaggedTensor(keys=self.names, values=values, lengths=lengths)


class MadeSynchronised(Wide):
    def features(self, *sparse: Any) -> Any:
        from torchrec import KeyedJaggedTensor

        values, lengths = sparse
        return KeyedJaggedTensor.from_lengths_sync(keys=self.names, values=values, lengths=lengths)


class MadeOfMatrix(Wide):
    """One id per feature, as ``(B, F)``."""

    def features(self, *sparse: Any) -> Any:
        from torchrec import KeyedJaggedTensor

        (ids,) = sparse
        lengths = torch.ones(ids.numel(), dtype=torch.int32, device=ids.device)
        return KeyedJaggedTensor(keys=self.names, values=ids.t().reshape(-1), lengths=lengths)


class Joined(Wide):
    def features(self, *sparse: Any) -> Any:
        from torchrec import KeyedJaggedTensor

        return KeyedJaggedTensor.concat(list(sparse))


class Split(nn.Module):
    """One jagged tensor, split between two collections."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.sizes = [features // 2, features - features // 2]
        self.first = collection(range(self.sizes[0]), width)
        self.second = collection(range(self.sizes[0], features), width)
        self.top = mlp([features * width + _DENSE, 16, 1])

    def forward(self, dense: Tensor, sparse: Any) -> Tensor:
        first, second = sparse.split(self.sizes)
        return self.top(torch.cat([dense, self.first(first).values(), self.second(second).values()], dim=1)).squeeze(1)


class KeyedInput(nn.Module):
    """Dense features as a keyed tensor, which are asked for by name."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.bags = collection(range(features), width)
        self.bottom = nn.Linear(2, 4)
        self.top = mlp([features * width + 4 + _DENSE, 16, 1])

    def forward(self, dense: Any, sparse: Any) -> Tensor:
        few = self.bottom(torch.cat([dense["d2"], dense["d0"]], dim=1))
        return self.top(torch.cat([few, dense.values(), self.bags(sparse).values()], dim=1)).squeeze(1)


@dataclasses.dataclass
class Fields:
    """A batch of a data pipeline, with more than a model needs."""

    dense: Any
    sparse: dict[str, Any]
    labels: Tensor
    requests: Any
    names: list[str]
    step: int


class OfFields(Wide):
    def forward(self, batch: Fields) -> Tensor:  # type: ignore[override]
        return super().forward(batch.dense, batch.sparse["base"])


class OfDict(Wide):
    def forward(self, batch: dict[str, Any], step: int) -> Tensor:  # type: ignore[override]
        return super().forward(batch["dense"], batch["sparse"])


def of_fields(features: int) -> Batch:
    def batch(n: int, seed: int = 0) -> tuple[Any, ...]:
        sparse = {"base": jagged(n, range(features), seed)}
        names = [f"session {i}" for i in range(n)]
        return (Fields(dense_of(n, seed, _DENSE), sparse, torch.ones(n), np.arange(n), names, seed),)

    return batch


def of_dict(features: int) -> Batch:
    def batch(n: int, seed: int = 0) -> tuple[Any, ...]:
        more = {"request": np.arange(n), "name": f"of {n}", "label": torch.ones(n)}
        return ({"dense": dense_of(n, seed, _DENSE), "sparse": jagged(n, range(features), seed), **more}, seed)

    return batch


class OffsetsAndWeights(nn.Module):
    """As DLRM with weighted pooling: lists of ids and offsets, and weights that may be left out."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(rows_of(f), width, mode="sum") for f in range(features))
        self.bottom = mlp([_DENSE, 6], last=True)
        self.top = mlp([features * width + 6, 16, 1])

    def forward(
        self, dense: Tensor, ids: list[Tensor], offsets: list[Tensor], weights: list[Tensor] | None = None
    ) -> Tensor:
        own = [None] * len(ids) if weights is None else weights
        pooled = [bag(i, o, per_sample_weights=w) for bag, i, o, w in zip(self.bags, ids, offsets, own, strict=True)]
        return self.top(torch.cat([self.bottom(dense), *pooled], dim=1)).squeeze(1)


class LastOffset(nn.Module):
    """Nothing but flat ids and offsets with the end of the last bag."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.bags = nn.ModuleList(
            nn.EmbeddingBag(rows_of(f), width, mode="mean", include_last_offset=True) for f in range(features)
        )
        self.top = mlp([features * width, 16, 1])

    def forward(self, ids: list[Tensor], offsets: list[Tensor]) -> Tensor:
        pooled = [bag(i, o) for bag, i, o in zip(self.bags, ids, offsets, strict=True)]
        return self.top(torch.cat(pooled, dim=1)).squeeze(1)


def weighted_bags(features: int) -> Batch:
    def batch(n: int, seed: int = 0) -> tuple[Any, ...]:
        offsets, ids = bags_of(n, features, seed)
        weights = [torch.rand(len(own), generator=generator(seed, 31)) for own in ids]
        return dense_of(n, seed, _DENSE), ids, offsets, weights

    return batch


def bags_with_ends(features: int) -> Batch:
    def batch(n: int, seed: int = 0) -> tuple[Any, ...]:
        offsets, ids = bags_of(n, features, seed)
        return ids, [torch.cat([o, torch.tensor([len(i)])]) for o, i in zip(offsets, ids, strict=True)]

    return batch


def _two(kind: type[TwoTowers], batch: Callable[[int], Batch] = one_jagged, **options: Any) -> Callable[..., Built]:
    return lambda features=FEATURES, width=WIDTH: (kind(features, width, **options), batch(features))


def _one(kind: type[nn.Module], batch: Callable[[int], Batch], **options: Any) -> Callable[..., Built]:
    return lambda features=FEATURES, width=WIDTH: (kind(features, width, **options), batch(features))


def _keyed_and_jagged(features: int) -> Batch:
    return lambda n, seed=0: (keyed(n, seed), jagged(n, range(features), seed))


def _jagged_each(features: int) -> Batch:
    half = features // 2
    return lambda n, seed=0: (
        dense_of(n, seed, _DENSE), jagged(n, range(half), seed), jagged(n, range(half, features), seed)
    )  # fmt: skip


def _values_and_lengths(features: int) -> Batch:
    return lambda n, seed=0: (dense_of(n, seed, _DENSE), *flat_ids(n, range(features), seed))


def _matrix(features: int) -> Batch:
    return lambda n, seed=0: (dense_of(n, seed, _DENSE), ids_of(n, features, seed))


def _weighted_jagged(features: int) -> Batch:
    return lambda n, seed=0: (dense_of(n, seed, _DENSE), jagged(n, range(features), seed, weighted=True))


def _oracle(build: Callable[..., Built], bags: str = "bags.embedding_bags") -> Oracle:
    return Oracle(by_size(build), lambda streams: [f"{bags}.t{i}" for i in range(streams)])


_TWO: dict[str, tuple[str, Callable[..., Built]]] = {
    "tr_regroup": ("torchrec regroup", _two(Regroup)),
    "tr_regroup_two_collections": ("torchrec regroup", _two(Regroup, collections=2)),
    "tr_regroup_as_dict": ("torchrec regroup", _two(RegroupAsDict)),
    "tr_regroup_module": ("TorchEasyRec", _two(RegroupModule, _keyed_and_jagged)),
    "tr_regroup_dense": ("TorchEasyRec", _two(RegroupWithDense, dense=_DENSE)),
    "tr_regroup_shared": ("torchrec regroup", _two(SharedFeature)),
    "tr_permute_pooled": ("FBGEMM", _two(PermutePooled)),
    "tr_permute_multi": ("FBGEMM", _two(PermuteMulti, collections=2)),
    "tr_regroup_kts": ("FBGEMM", _two(RegroupKts, collections=2)),
    "tr_sliced": ("torchrec", _two(Sliced, dense=_DENSE)),
    "tr_merged_dicts": ("torchrec", _two(MergedDicts, _jagged_each, collections=2)),
}

_ONE: dict[str, tuple[str, Callable[..., Built]]] = {
    "tr_made_in_forward": ("torchrec", _one(MadeInForward, _values_and_lengths)),
    "tr_made_synchronised": ("torchrec", _one(MadeSynchronised, _values_and_lengths)),
    "tr_made_of_matrix": ("torchrec", _one(MadeOfMatrix, _matrix)),
    "tr_joined": ("torchrec", _one(Joined, _jagged_each)),
    "tr_keyed_input": ("TorchEasyRec", _one(KeyedInput, _keyed_and_jagged)),
    "tr_of_fields": ("TorchEasyRec", _one(OfFields, of_fields)),
    "tr_of_dict": ("torchrec", _one(OfDict, of_dict)),
    "tr_weighted": ("torchrec", _one(Wide, _weighted_jagged, is_weighted=True)),
}

VARIANTS = [
    *(
        Variant(name, family, build, None, "two groups of towers; the oracle knows one")
        for name, (family, build) in _TWO.items()
    ),
    *(Variant(name, family, build, _oracle(build)) for name, (family, build) in _ONE.items()),
    Variant(
        "tr_split_jagged", "torchrec", _one(Split, one_jagged), None, "its tables are in two collections, by halves"
    ),
    Variant(
        "dlrm_offsets_weights", "facebookresearch DLRM", _one(OffsetsAndWeights, weighted_bags),
        Oracle(by_size(_one(OffsetsAndWeights, weighted_bags)), numbered("bags")),
    ),
    Variant(
        "dlrm_last_offset", "facebookresearch DLRM", _one(LastOffset, bags_with_ends),
        Oracle(by_size(_one(LastOffset, bags_with_ends)), numbered("bags")),
    ),
]  # fmt: skip
