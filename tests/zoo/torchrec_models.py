"""The models that torchrec ships, over an ``EmbeddingBagCollection`` and keyed jagged inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.spec import (
    DENSE,
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
    rows_of,
)

_BAGS = "sparse_arch.embedding_bag_collection.embedding_bags"


def _collection(features: int, width: int) -> Any:
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=f"t{f}", embedding_dim=width, num_embeddings=rows_of(f), feature_names=[f"cat_{f}"])
            for f in range(features)
        ]
    )


def _jagged(n: int, features: int, seed: int) -> Any:
    from torchrec import KeyedJaggedTensor

    offsets, ids = bags_of(n, features, seed)
    ends = [torch.cat([o, torch.tensor([len(i)])]) for o, i in zip(offsets, ids, strict=True)]
    lengths = torch.cat([torch.diff(e) for e in ends])
    return KeyedJaggedTensor(keys=[f"cat_{f}" for f in range(features)], values=torch.cat(ids), lengths=lengths)


def jagged_batch(features: int) -> Batch:
    """Calls ``model(dense, jagged)``."""
    return lambda n, seed=0: (dense_of(n, seed), _jagged(n, features, seed))


def labelled_batch(features: int) -> Batch:
    """Calls ``model(Batch(dense_features, sparse_features, labels))``."""

    def batch(n: int, seed: int = 0) -> tuple[Any, ...]:
        from torchrec.datasets.utils import Batch as RecBatch

        labels: Tensor = torch.randint(0, 2, (n,), generator=generator(seed, 41)).float()
        return (RecBatch(dense_of(n, seed), _jagged(n, features, seed), labels),)

    return batch


def dlrm(features: int = FEATURES, width: int = WIDTH) -> Built:
    from torchrec.models.dlrm import DLRM

    return DLRM(_collection(features, width), DENSE, [12, width], [16, 1]), jagged_batch(features)


def dlrm_dcn(features: int = FEATURES, width: int = WIDTH) -> Built:
    from torchrec.models.dlrm import DLRM_DCN

    collection = _collection(features, width)
    model = DLRM_DCN(collection, DENSE, [12, width], [16, 1], dcn_num_layers=2, dcn_low_rank_dim=4)
    return model, jagged_batch(features)


def dlrm_projection(features: int = FEATURES, width: int = WIDTH) -> Built:
    from torchrec.models.dlrm import DLRM_Projection

    model = DLRM_Projection(_collection(features, width), DENSE, [12, width], [16, 1], [20, 48], [20, 32])
    return model, jagged_batch(features)


def dlrm_train(features: int = FEATURES, width: int = WIDTH) -> Built:
    from torchrec.models.dlrm import DLRM, DLRMTrain

    return DLRMTrain(DLRM(_collection(features, width), DENSE, [12, width], [16, 1])), labelled_batch(features)


def simple_deepfm(features: int = FEATURES, width: int = WIDTH) -> Built:
    from torchrec.models.deepfm import SimpleDeepFMNN

    model = SimpleDeepFMNN(DENSE, _collection(features, width), hidden_layer_size=12, deep_fm_dimension=7)
    return model, jagged_batch(features)


def simple_deepfm_beside(streams: int, dim: int, features: int) -> Built:
    """The same of torchrec's own parts, with a dense vector of the flat model's width beside streams of any width."""
    from torchrec.models.deepfm import DenseArch, FMInteractionArch, OverArch

    model, batch = simple_deepfm(streams, dim)
    names = [f"cat_{f}" for f in range(streams)]
    model.dense_arch = DenseArch(DENSE, 12, WIDTH)
    model.inter_arch = FMInteractionArch(WIDTH + streams * dim, names, 7)
    model.over_arch = OverArch(WIDTH + 7 + 1)
    return model, batch


class PooledStack(nn.Module):
    """A model of one's own over a collection: all columns at once, viewed per feature."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.ebc = _collection(features, width)
        self.features, self.width = features, width
        self.bottom = nn.Sequential(nn.Linear(DENSE, width), nn.ReLU())
        flat = (features + 1) * width
        self.deep = nn.Sequential(nn.Linear(flat, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1))
        self.head = nn.Linear(16 + width, 1)

    def forward(self, dense: Tensor, sparse: Any) -> Tensor:
        pooled = self.ebc(sparse)
        x = self.bottom(dense)
        vectors = pooled.values().reshape(-1, self.features, self.width)
        stacked = torch.cat([x.unsqueeze(1), vectors], dim=1)
        fm = 0.5 * (stacked.sum(1).square() - stacked.square().sum(1))
        return self.head(torch.cat([self.deep(stacked.flatten(1)), fm], dim=1))


def pooled_stack(features: int = FEATURES, width: int = WIDTH) -> Built:
    return PooledStack(features, width), jagged_batch(features)


def _oracle(build: Any, bags: str = _BAGS) -> Oracle:
    return Oracle(by_size(build), lambda streams: [f"{bags}.t{i}" for i in range(streams)])


VARIANTS = [
    Variant("torchrec_dlrm", "torchrec", dlrm, _oracle(dlrm)),
    Variant("torchrec_dlrm_dcn", "torchrec", dlrm_dcn, _oracle(dlrm_dcn)),
    Variant("torchrec_dlrm_projection", "torchrec", dlrm_projection, _oracle(dlrm_projection)),
    Variant("torchrec_dlrm_train", "torchrec", dlrm_train, _oracle(dlrm_train, f"model.{_BAGS}")),
    Variant(
        "torchrec_simple_deepfm",
        "torchrec",
        simple_deepfm,
        Oracle(simple_deepfm_beside, lambda streams: [f"{_BAGS}.t{i}" for i in range(streams)]),
    ),
    Variant("torchrec_pooled_stack", "torchrec", pooled_stack, _oracle(pooled_stack, "ebc.embedding_bags")),
]
