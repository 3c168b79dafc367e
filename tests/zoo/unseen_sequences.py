"""Models that read a history: target attention, recurrent and transformer encoders, pooling by lengths.

Written as a user would write them, without a look at what the compiler knows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.zoo.spec import FEATURES, WIDTH, Batch, Built, Variant, ids_of, mlp, rows_of, sequence_of

LENGTH = 5
ITEMS = 40


def fields_and_history(features: int) -> Batch:
    """Calls ``model(ids, target, history)``."""

    def batch(n: int, seed: int = 0) -> tuple[Tensor, ...]:
        history = sequence_of(n, LENGTH, ITEMS, seed)
        return ids_of(n, features, seed), sequence_of(n, 1, ITEMS, seed + 50)[:, 0], history

    return batch


def lengths_too(features: int) -> Batch:
    """Calls ``model(ids, history, lengths)``."""

    def batch(n: int, seed: int = 0) -> tuple[Tensor, ...]:
        history = sequence_of(n, LENGTH, ITEMS, seed)
        return ids_of(n, features, seed), history, (history > 0).sum(1)

    return batch


class Dice(nn.Module):
    """The activation of DIN."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=1e-8)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.norm(x))
        return self.alpha * (1 - p) * x + p * x


class LocalActivation(nn.Module):
    """Attention of the target over the history through a small network."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4 * width, 16), nn.Sigmoid(), nn.Linear(16, 1))

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
        q = query.unsqueeze(1).expand(-1, keys.size(1), -1)
        scores = self.net(torch.cat([q, keys, q - keys, q * keys], dim=-1)).squeeze(-1)
        scores = scores.masked_fill(~mask, -1e9)
        weights = torch.softmax(scores, dim=-1)
        return torch.bmm(weights.unsqueeze(1), keys).squeeze(1)


class DIN(nn.Module):
    """Interest in the target from the history, beside the other fields."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.fields = nn.ModuleList(nn.Embedding(rows_of(i), width) for i in range(features))
        self.items = nn.Embedding(ITEMS, width, padding_idx=0)
        self.attention = LocalActivation(width)
        self.head = nn.Sequential(nn.Linear((features + 2) * width, 20), Dice(20), nn.Linear(20, 1))

    def forward(self, ids: Tensor, target: Tensor, history: Tensor) -> Tensor:
        q = self.items(target)
        interest = self.attention(q, self.items(history), history != 0)
        parts = [table(ids[:, i]) for i, table in enumerate(self.fields)]
        return self.head(torch.cat([*parts, q, interest], dim=1)).squeeze(1)


class DIENLike(nn.Module):
    """A GRU over the history, attention over its states, packed by lengths or not."""

    def __init__(self, features: int, width: int, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        self.fields = nn.ModuleList(nn.Embedding(rows_of(i), width) for i in range(features))
        self.items = nn.Embedding(ITEMS, width, padding_idx=0)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.query = nn.Linear(width, width, bias=False)
        self.head = mlp([(features + 1) * width, 16, 1])

    def forward(self, ids: Tensor, history: Tensor, lengths: Tensor) -> Tensor:
        x = self.items(history)
        if self.packed:
            sequence = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
            states, last = self.gru(sequence)
            out, _ = pad_packed_sequence(states, batch_first=True, total_length=history.size(1))
        else:
            out, last = self.gru(x)
        scores = torch.einsum("bld,bd->bl", self.query(out), last[-1])
        weights = torch.softmax(scores.masked_fill(history == 0, float("-inf")), dim=1)
        interest = (weights.unsqueeze(-1) * out).sum(1)
        fields = torch.cat([self.fields[i](ids[:, i]) for i in range(len(self.fields))], dim=-1)
        return torch.sigmoid(self.head(torch.cat([fields, interest], dim=-1)))


class BST(nn.Module):
    """A transformer layer over history and target, the fields joined behind it."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.fields = nn.ModuleDict({f"c{i}": nn.Embedding(rows_of(i), width) for i in range(features)})
        self.items = nn.Embedding(ITEMS, width, padding_idx=0)
        self.position = nn.Embedding(LENGTH + 1, width)
        self.encoder = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.1, batch_first=True)
        self.head = mlp([features * width + (LENGTH + 1) * width, 16, 1])

    def forward(self, ids: Tensor, target: Tensor, history: Tensor) -> Tensor:
        sequence = torch.cat([history, target.unsqueeze(1)], dim=1)
        x = self.items(sequence) + self.position(torch.arange(sequence.size(1), device=ids.device))
        x = self.encoder(x, src_key_padding_mask=sequence == 0)
        fields = torch.cat([self.fields[f"c{i}"](ids[:, i]) for i in range(ids.size(1))], dim=1)
        return self.head(torch.cat([fields, x.flatten(1)], dim=1))


class FieldTransformer(nn.Module):
    """A transformer encoder over the fields, a token of the class before them."""

    def __init__(self, features: int, width: int, flat: bool) -> None:
        super().__init__()
        self.flat = flat
        self.fields = nn.ModuleList(nn.Embedding(rows_of(i), width) for i in range(features))
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear((features + 1) * width if flat else width, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x = torch.stack([t(ids[:, i]) for i, t in enumerate(self.fields)], dim=1)
        x = self.encoder(torch.cat([self.token.expand(x.size(0), -1, -1), x], dim=1))
        return self.head(x.flatten(1) if self.flat else x[:, 0]).squeeze(-1)


class MeanPooled(nn.Module):
    """Histories averaged over their lengths by hand, next to one id per field."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows_of(i), width) for i in range(features))
        self.history = nn.Embedding(ITEMS, width, padding_idx=0)
        self.head = mlp([(features + 1) * width, 16, 1])

    def forward(self, ids: Tensor, history: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(history.size(1), device=ids.device)[None, :] < lengths[:, None]
        pooled = (self.history(history) * mask.unsqueeze(-1)).sum(1) / lengths.clamp(min=1).unsqueeze(1)
        return self.head(torch.cat([t(c) for t, c in zip(self.tables, ids.unbind(1), strict=True)] + [pooled], 1))


class Cosine(nn.Module):
    """Two towers of the user's own; the score is the cosine over a temperature."""

    def __init__(self, features: int, width: int, dot: bool) -> None:
        super().__init__()
        self.dot, self.half = dot, features // 2
        self.user = nn.ModuleList(nn.Embedding(rows_of(i), width) for i in range(self.half))
        self.item = nn.ModuleList(nn.Embedding(rows_of(i), width) for i in range(self.half, features))
        self.user_net = mlp([self.half * width, 16, width])
        self.item_net = mlp([(features - self.half) * width, 16, width])

    def forward(self, ids: Tensor) -> Tensor:
        u = self.user_net(torch.cat([t(ids[:, i]) for i, t in enumerate(self.user)], dim=1))
        v = self.item_net(torch.cat([t(ids[:, self.half + i]) for i, t in enumerate(self.item)], dim=1))
        if self.dot:
            return F.normalize(u, dim=-1) @ F.normalize(v, dim=-1).t() / 0.05
        return F.cosine_similarity(u, v, dim=1) / 0.1


def _history(kind: type[nn.Module], *args: Any) -> Any:
    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return kind(features, width, *args), fields_and_history(features)

    return build


def _lengths(kind: type[nn.Module], *args: Any) -> Any:
    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return kind(features, width, *args), lengths_too(features)

    return build


def _ids(kind: type[nn.Module], *args: Any) -> Any:
    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return kind(features, width, *args), lambda n, seed=0: (ids_of(n, features, seed),)

    return build


VARIANTS = [
    Variant("u_din", "DIN", _history(DIN)),
    Variant("u_dien_gru", "DIEN", _lengths(DIENLike, False)),
    Variant("u_dien_packed", "DIEN", _lengths(DIENLike, True)),
    Variant("u_bst", "BST", _history(BST)),
    Variant("u_fieldtf_flat", "transformer over fields", _ids(FieldTransformer, True)),
    Variant("u_fieldtf_token", "transformer over fields", _ids(FieldTransformer, False)),
    Variant("u_mean_lengths", "YouTube DNN", _lengths(MeanPooled)),
    Variant("u_two_tower_cos", "two towers", _ids(Cosine, False)),
    Variant("u_two_tower_dot", "two towers, in-batch logits", _ids(Cosine, True)),
]
