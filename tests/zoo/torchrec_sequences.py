"""Sequences of varying length, row by row: torchrec's ``EmbeddingCollection``, and ``nn.Embedding`` on lists of ids.

A target attends to a history (DIN), a block of an HSTU works on rows as they lie, histories are averaged by a mask or
added up by sample; and one id per sample as ``EmbeddingCollection`` gives it, ids in matrices of any shape, and two
batch sizes in one batch. Beside them bags, which may go through towers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.spec import DENSE, FEATURES, WIDTH, Batch, Built, Variant, dense_of, generator, ids_of, mlp, rows_of
from tests.zoo.torchrec_pooled import collection, flat_ids

LENGTH = 4
"""Ids that a history is padded to; some are longer."""
_ROWS = 23
_EACH = 3


def histories(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ids and lengths of histories of none to five ids."""
    g = generator(seed, 61)
    lengths = torch.randint(0, LENGTH + 2, (n,), generator=g)
    return torch.randint(0, _ROWS, (int(lengths.sum()),), generator=g), lengths


def rows_for(features: dict[str, list[str]], width: int, rows: int = _ROWS) -> Any:
    """An ``EmbeddingCollection`` of tables by name, each with its features."""
    from torchrec import EmbeddingCollection, EmbeddingConfig

    return EmbeddingCollection(
        tables=[
            EmbeddingConfig(name=name, embedding_dim=width, num_embeddings=rows, feature_names=own)
            for name, own in features.items()
        ]
    )


def with_history(features: int) -> Batch:
    """Calls ``model(dense, keyed jagged tensor)``: bags, a history and an item."""

    def batch(n: int, seed: int = 0) -> tuple[Any, ...]:
        from torchrec import KeyedJaggedTensor

        values, lengths = flat_ids(n, range(features), seed)
        history, own = histories(n, seed)
        item = torch.randint(0, _ROWS, (n,), generator=generator(seed, 62))
        keys = [*(f"cat_{f}" for f in range(features)), "history", "item"]
        return dense_of(n, seed), KeyedJaggedTensor(
            keys, torch.cat([values, history, item]), lengths=torch.cat([lengths, own, torch.ones_like(own)])
        )

    return batch


class Sequential(nn.Module):
    """Bags and what :meth:`seen` makes of a history."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.bags = collection(range(features), width)
        self.rows = rows_for({"item_table": ["history", "item"]}, width)
        self.deep = mlp([DENSE + features * width + 2 * width, 16, 1])

    def seen(self, history: Any, item: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, dense: Tensor, features: Any) -> Tensor:
        rows = self.rows(features)
        item = rows["item"].values()
        parts = [dense, self.bags(features).values(), item, self.seen(rows["history"], item)]
        return self.deep(torch.cat(parts, 1)).squeeze(1)


class Attends(Sequential):
    """The item attends to the history, padded to a constant length and masked by its lengths."""

    def seen(self, history: Any, item: Tensor) -> Tensor:
        rows = history.to_padded_dense(LENGTH)
        there = torch.arange(LENGTH) < history.lengths().unsqueeze(1)
        scores = (rows * item.unsqueeze(1)).sum(-1).masked_fill(~there, -1e9)
        return (torch.softmax(scores, 1).unsqueeze(-1) * rows).sum(1)


class Averages(Sequential):
    """The mean of the history, by a mask."""

    def seen(self, history: Any, item: Tensor) -> Tensor:
        rows = torch.ops.fbgemm.jagged_to_padded_dense(history.values(), [history.offsets()], [LENGTH], 0.0)
        return rows.sum(1) / history.lengths().clamp(1, LENGTH).unsqueeze(1)


class Transduces(Sequential):
    """A block of an HSTU: rows as they lie, positions added, gated attention without softmax over padded rows."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features, width)
        self.parts = nn.Linear(width, 4 * width)
        self.out = nn.Linear(width, width)
        self.position = nn.Parameter(torch.randn(LENGTH, width) * 0.1)

    def seen(self, history: Any, item: Tensor) -> Tensor:
        fbgemm, offsets = torch.ops.fbgemm, history.offsets()
        samples = history.lengths().size(0)
        placed = self.position.unsqueeze(0).expand(samples, -1, -1)
        rows = fbgemm.jagged_dense_elementwise_add_jagged_output(history.values(), [offsets], placed)[0]
        gate, *three = F.silu(self.parts(rows)).chunk(4, 1)
        query, key, value = (fbgemm.jagged_to_padded_dense(part, [offsets], [LENGTH], 0.0) for part in three)
        scores = F.silu(query @ key.transpose(1, 2)) / LENGTH
        padded = scores.tril() @ value
        attended = fbgemm.dense_to_jagged(padded, [offsets], rows.size(0))[0]
        rows = rows + self.out(attended * gate)
        return fbgemm.jagged_to_padded_dense(rows, [offsets], [LENGTH], 0.0).sum(1)


class OneRow(nn.Module):
    """One id per sample, as rows of a matrix; some of the tables are read as bags too."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.rows = rows_for({f"t{f}": [f"cat_{f}"] for f in range(features)}, width, rows_of(features))
        self.deep = mlp([DENSE + features * width, 16, 1])
        self.keys = [f"cat_{f}" for f in range(features)]

    def forward(self, dense: Tensor, features: Any) -> Tensor:
        rows = self.rows(features)
        return self.deep(torch.cat([dense, *(rows[key].values() for key in self.keys)], 1)).squeeze(1)


def one_id_each(features: int) -> Batch:
    def batch(n: int, seed: int = 0) -> tuple[Any, ...]:
        from torchrec import KeyedJaggedTensor

        ids = ids_of(n, features, seed).t().reshape(-1)
        return dense_of(n, seed), KeyedJaggedTensor(
            [f"cat_{f}" for f in range(features)], ids, lengths=torch.ones(n * features, dtype=torch.int32)
        )

    return batch


class PlainList(nn.Module):
    """A list of ids with lengths, and one table for it and for the item; fields beside them."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.items = nn.Embedding(_ROWS, width)
        self.tables = nn.ModuleList(nn.Embedding(rows_of(f), width) for f in range(features))
        self.deep = mlp([DENSE + (features + 2) * width, 16, 1])

    def pooled(self, rows: Tensor, lengths: Tensor) -> Tensor:
        offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
        return torch.ops.fbgemm.jagged_to_padded_dense(rows, [offsets], [LENGTH], 0.0).amax(1)

    def forward(self, dense: Tensor, ids: Tensor, item: Tensor, history: Tensor, lengths: Tensor) -> Tensor:
        parts = [table(ids[:, f]) for f, table in enumerate(self.tables)]
        seen = self.pooled(self.items(history), lengths)
        return self.deep(torch.cat([dense, *parts, self.items(item), seen], 1)).squeeze(1)


class AddedBySample(PlainList):
    """The same without FBGEMM: rows are added up at the number of their sample."""

    def pooled(self, rows: Tensor, lengths: Tensor) -> Tensor:
        number = torch.arange(lengths.size(0), device=lengths.device)
        number = torch.repeat_interleave(number, lengths, output_size=rows.size(0))
        return rows.new_zeros(lengths.size(0), rows.size(1)).index_add(0, number, torch.tanh(rows))


def with_list(features: int) -> Batch:
    def batch(n: int, seed: int = 0) -> tuple[Any, ...]:
        item = torch.randint(0, _ROWS, (n,), generator=generator(seed, 62))
        return dense_of(n, seed), ids_of(n, features, seed), item, *histories(n, seed)

    return batch


class Candidates(nn.Module):
    """Candidates of a sample with some ids each, ``(B, N, K)``, scored by the user's fields."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.items = nn.Embedding(_ROWS, width)
        self.tables = nn.ModuleList(nn.Embedding(rows_of(f), width) for f in range(features))
        self.user = mlp([features * width, width], last=True)

    def forward(self, ids: Tensor, candidates: Tensor) -> Tensor:
        user = self.user(torch.cat([table(ids[:, f]) for f, table in enumerate(self.tables)], 1))
        return (self.items(candidates).sum(2) * user.unsqueeze(1)).sum(2)


def with_candidates(features: int) -> Batch:
    return lambda n, seed=0: (
        ids_of(n, features, seed), torch.randint(0, _ROWS, (n, _EACH, 2), generator=generator(seed, 63))
    )  # fmt: skip


class TwoBatchSizes(nn.Module):
    """Users in one keyed jagged tensor, and three items for each of them in another."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.bags = collection(range(features), width)
        self.rows = rows_for({"item_table": ["item"]}, width)
        self.user = mlp([features * width, width], last=True)

    def forward(self, users: Any, items: Any) -> Tensor:
        user = self.user(self.bags(users).values())
        rows = self.rows(items)["item"].values()
        return (rows * user.repeat_interleave(_EACH, 0)).sum(1).view(-1, _EACH)


def users_and_items(features: int) -> Batch:
    def batch(n: int, seed: int = 0) -> tuple[Any, ...]:
        from torchrec import KeyedJaggedTensor

        values, lengths = flat_ids(n, range(features), seed)
        items = torch.randint(0, _ROWS, (_EACH * n,), generator=generator(seed, 64))
        users = KeyedJaggedTensor([f"cat_{f}" for f in range(features)], values, lengths=lengths)
        return users, KeyedJaggedTensor(["item"], items, lengths=torch.ones(_EACH * n, dtype=torch.int32))

    return batch


class ByPosition(nn.Module):
    """A history whose ids weigh what is learned of their place (``PositionWeightedModule``), among bags."""

    def __init__(self, features: int, width: int) -> None:
        from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        from torchrec.modules.feature_processor_ import PositionWeightedModule
        from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

        super().__init__()
        table = EmbeddingBagConfig(name="seen", embedding_dim=width, num_embeddings=_ROWS, feature_names=["history"])
        self.bags = collection(range(features), width)
        self.seen = FeatureProcessedEmbeddingBagCollection(
            EmbeddingBagCollection(tables=[table], is_weighted=True), {"history": PositionWeightedModule(LENGTH + 1)}
        )
        self.deep = mlp([DENSE + (features + 1) * width, 16, 1])

    def forward(self, dense: Tensor, features: Any) -> Tensor:
        parts = [dense, self.bags(features).values(), self.seen(features).values()]
        return self.deep(torch.cat(parts, 1)).squeeze(1)


class WeighedFields(nn.Module):
    """Bags of three ids each; those of the first field are weighed by a layer over the dense features."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(rows_of(f), width, mode="sum") for f in range(features))
        self.gate = nn.Linear(DENSE, _EACH)
        self.deep = mlp([features * width, 16, 1])

    def forward(self, dense: Tensor, ids: list[Tensor]) -> Tensor:
        weights = torch.sigmoid(self.gate(dense))
        first = self.bags[0](ids[0], per_sample_weights=weights)
        rest = [bag(own) for bag, own in zip(list(self.bags)[1:], ids[1:], strict=True)]
        return self.deep(torch.cat([first, *rest], 1)).squeeze(1)


def of_three(features: int) -> Batch:
    return lambda n, seed=0: (
        dense_of(n, seed),
        [torch.randint(0, rows_of(f), (n, _EACH), generator=generator(seed, f, 65)) for f in range(features)],
    )


def _of(kind: type[nn.Module], batch: Callable[[int], Batch]) -> Callable[..., Built]:
    return lambda features=FEATURES, width=WIDTH: (kind(features, width), batch(features))


_MODELS: dict[str, tuple[str, Callable[..., Built]]] = {
    "seq_din": ("DIN", _of(Attends, with_history)),
    "seq_mean": ("YouTube DNN", _of(Averages, with_history)),
    "seq_hstu": ("HSTU", _of(Transduces, with_history)),
    "seq_one_row": ("torchrec EmbeddingCollection", _of(OneRow, one_id_each)),
    "seq_list": ("FBGEMM", _of(PlainList, with_list)),
    "seq_added_by_sample": ("plain PyTorch", _of(AddedBySample, with_list)),
    "seq_candidates": ("plain PyTorch", _of(Candidates, with_candidates)),
    "seq_two_batch_sizes": ("torchrec", _of(TwoBatchSizes, users_and_items)),
    "seq_by_position": ("torchrec feature processors", _of(ByPosition, with_history)),
    "seq_weighed_fields": ("plain PyTorch", _of(WeighedFields, of_three)),
}

VARIANTS = [
    Variant(name, family, build, None, "what it does to sequences is not a stream of a tower")
    for name, (family, build) in _MODELS.items()
]
