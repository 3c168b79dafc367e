"""Models in the style of DeepCTR: one matrix ``X`` holds ids and numbers as columns, tables live in a dict,
every feature is a ``(B, 1, N)`` slice, and lists of them are joined wherever they are needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.spec import (
    DENSE,
    FEATURES,
    WIDTH,
    Batch,
    Built,
    Oracle,
    Variant,
    dense_of,
    ids_of,
    mlp,
    rows_of,
    sequence_of,
)  # fmt: skip

LENGTH = 4


class Columns(nn.Module):
    """Reads the columns of ``X``: ids first, then numbers, then an optional padded sequence."""

    def __init__(self, features: int, width: int, first_order: int, sequence: bool = False) -> None:
        super().__init__()
        self.columns = {f"C{i}": (i, i + 1) for i in range(max(features, first_order))}
        start = len(self.columns)
        self.dense_columns = (start, start + DENSE)
        self.sequence = (start + DENSE, start + DENSE + LENGTH) if sequence else None
        self.names = [f"C{i}" for i in range(features)]
        self.first_names = [f"C{i}" for i in range(first_order)]
        self.embedding_dict = nn.ModuleDict({f"C{i}": nn.Embedding(rows_of(i), width) for i in range(features)})
        self.linear_dict = nn.ModuleDict({f"C{i}": nn.Embedding(rows_of(i), 1) for i in range(first_order)})
        if sequence:
            self.embedding_dict["history"] = nn.Embedding(23, width, padding_idx=0)
        self.linear_weight = nn.Parameter(torch.randn(DENSE, 1) * 0.1)

    def vectors(self, X: Tensor) -> list[Tensor]:
        found = [
            self.embedding_dict[name](X[:, self.columns[name][0] : self.columns[name][1]].long()) for name in self.names
        ]
        if self.sequence is not None:
            ids = X[:, self.sequence[0] : self.sequence[1]].long()
            mask = (ids != 0).float().unsqueeze(-1)
            summed = (self.embedding_dict["history"](ids) * mask).sum(dim=1, keepdim=True)
            found.append(summed / (mask.sum(dim=1, keepdim=True) + 1e-8))
        return found

    def numbers(self, X: Tensor) -> Tensor:
        return X[:, self.dense_columns[0] : self.dense_columns[1]]

    def linear(self, X: Tensor) -> Tensor:
        first = [
            self.linear_dict[name](X[:, self.columns[name][0] : self.columns[name][1]].long())
            for name in self.first_names
        ]
        logit = torch.zeros([X.shape[0], 1]).to(X.device)
        logit = logit + torch.sum(torch.cat(first, dim=-1), dim=-1, keepdim=False)
        return logit + self.numbers(X).matmul(self.linear_weight)


def combined(vectors: list[Tensor], numbers: Tensor) -> Tensor:
    return torch.cat([torch.flatten(torch.cat(vectors, dim=-1), start_dim=1), numbers], dim=-1)


class Net(nn.Module):
    """Linear logit, an interaction over the list of vectors, and a DNN over everything flat."""

    def __init__(
        self, features: int, width: int, first: int, interaction: nn.Module | None, extra: int, sequence: bool
    ) -> None:
        super().__init__()
        self.inputs = Columns(features, width, first, sequence)
        self.interaction = interaction
        self.dnn = mlp([(features + sequence) * width + DENSE, 16, 8], last=True, dropout=0.1)
        self.dnn_linear = nn.Linear(8 + extra, 1, bias=False)
        self.extra = extra
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, X: Tensor) -> Tensor:
        logit = self.inputs.linear(X)
        vectors = self.inputs.vectors(X)
        dnn_output = self.dnn(combined(vectors, self.inputs.numbers(X)))
        if self.interaction is not None and self.extra:
            dnn_output = torch.cat((self.interaction(vectors), dnn_output), dim=-1)
        elif self.interaction is not None:
            logit = logit + self.interaction(vectors)
        return torch.sigmoid(logit + self.dnn_linear(dnn_output) + self.bias)


class FMPart(nn.Module):
    def forward(self, vectors: list[Tensor]) -> Tensor:
        fm_input = torch.cat(vectors, dim=1)
        square_of_sum = torch.pow(torch.sum(fm_input, dim=1, keepdim=True), 2)
        sum_of_square = torch.sum(fm_input * fm_input, dim=1, keepdim=True)
        return 0.5 * torch.sum(square_of_sum - sum_of_square, dim=2, keepdim=False)


class CINPart(nn.Module):
    """Outer products by einsum, compressed by 1x1 convolutions, half of each layer kept."""

    def __init__(self, fields: int, width: int) -> None:
        super().__init__()
        self.field_nums = [fields]
        self.sizes = (8, 6)
        self.conv1ds = nn.ModuleList()
        for i, size in enumerate(self.sizes):
            self.conv1ds.append(nn.Conv1d(self.field_nums[-1] * self.field_nums[0], size, 1))
            self.field_nums.append(size // 2 if i != len(self.sizes) - 1 else size)
        self.linear = nn.Linear(8 // 2 + 6, 1, bias=False)

    def forward(self, vectors: list[Tensor]) -> Tensor:
        inputs = torch.cat(vectors, dim=1)
        if len(inputs.shape) != 3:
            raise ValueError(f"Unexpected inputs dimensions {len(inputs.shape)}, expect to be 3 dimensions")
        batch_size, dim = inputs.shape[0], inputs.shape[-1]
        hidden, final = [inputs], []
        for i, size in enumerate(self.sizes):
            x = torch.einsum("bhd,bmd->bhmd", hidden[-1], hidden[0])
            x = x.reshape(batch_size, hidden[-1].shape[1] * hidden[0].shape[1], dim)
            current = torch.relu(self.conv1ds[i](x))
            if i != len(self.sizes) - 1:
                following, direct = torch.split(current, 2 * [size // 2], 1)
            else:
                following, direct = 0, current
            final.append(direct)
            hidden.append(following)
        return self.linear(torch.sum(torch.cat(final, dim=1), -1))


class AttentionPart(nn.Module):
    """Multi-head self-attention written out with tensordot and a stack of heads.

    It is as wide as the vectors of the flat model. Behind towers of another width it can stay what it was, which the
    oracle allows for.
    """

    def __init__(self, fields: int, width: int, own: int = WIDTH, heads: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.heads, self.size, self.layers = heads, own // heads, layers
        names = ("W_Query", "W_key", "W_Value", "W_Res")
        self.weights = nn.ModuleList(
            nn.ParameterDict({n: nn.Parameter(torch.randn(before, own) * 0.2) for n in names})
            for before in (width, *[own] * (layers - 1))
        )

    def forward(self, vectors: list[Tensor]) -> Tensor:
        inputs = torch.cat(vectors, dim=1)
        for weights in self.weights:
            querys = torch.tensordot(inputs, weights["W_Query"], dims=([-1], [0]))
            keys = torch.tensordot(inputs, weights["W_key"], dims=([-1], [0]))
            values = torch.tensordot(inputs, weights["W_Value"], dims=([-1], [0]))
            querys = torch.stack(torch.split(querys, self.size, dim=2))
            keys = torch.stack(torch.split(keys, self.size, dim=2))
            values = torch.stack(torch.split(values, self.size, dim=2))
            product = torch.einsum("bnik,bnjk->bnij", querys, keys) / self.size**0.5
            result = torch.matmul(F.softmax(product, dim=-1), values)
            result = torch.squeeze(torch.cat(torch.split(result, 1), dim=-1), dim=0)
            inputs = F.relu(result + torch.tensordot(inputs, weights["W_Res"], dims=([-1], [0])))
        return torch.flatten(inputs, start_dim=1)


class PairsPart(nn.Module):
    """PNN: the list of pairs is built of the vectors themselves, so each enters several times."""

    def __init__(self, fields: int, width: int, outer: bool) -> None:
        super().__init__()
        pairs = fields * (fields - 1) // 2
        self.kernel = nn.Parameter(torch.randn(width, pairs, width) * 0.2) if outer else None

    def forward(self, vectors: list[Tensor]) -> Tensor:
        row, col = [], []
        for i in range(len(vectors) - 1):
            for j in range(i + 1, len(vectors)):
                row.append(i)
                col.append(j)
        p = torch.cat([vectors[i] for i in row], dim=1)
        q = torch.cat([vectors[j] for j in col], dim=1)
        if self.kernel is None:
            return torch.sum(p * q, dim=2)
        kp = torch.sum(torch.mul(p.unsqueeze(1), self.kernel), dim=-1).transpose(1, 2)
        return torch.sum(kp * q, dim=-1)


class BilinearPart(nn.Module):
    """FiBiNET: squeeze-excitation weights per field, and bilinear pairs of both lists."""

    def __init__(self, fields: int, width: int) -> None:
        super().__init__()
        reduced = max(1, fields // 3)
        self.excitation = nn.Sequential(
            nn.Linear(fields, reduced, bias=False), nn.ReLU(), nn.Linear(reduced, fields, bias=False), nn.ReLU()
        )
        self.bilinear = nn.ModuleList(
            nn.Linear(width, width, bias=False) for _ in itertools.combinations(range(fields), 2)
        )

    def _pairs(self, inputs: Tensor) -> Tensor:
        parts = torch.split(inputs, 1, dim=1)
        p = [
            torch.mul(layer(v_i), v_j)
            for (v_i, v_j), layer in zip(itertools.combinations(parts, 2), self.bilinear, strict=True)
        ]
        return torch.cat(p, dim=1)

    def forward(self, vectors: list[Tensor]) -> Tensor:
        inputs = torch.cat(vectors, dim=1)
        weights = self.excitation(torch.mean(inputs, dim=-1))
        weighted = torch.mul(inputs, torch.unsqueeze(weights, dim=2))
        return torch.flatten(torch.cat((self._pairs(weighted), self._pairs(inputs)), dim=1), start_dim=1)


class AttentionalPairs(nn.Module):
    """AFM over a list: products of pairs, attention scores by raw parameters."""

    def __init__(self, fields: int, width: int, factor: int = 4) -> None:
        super().__init__()
        self.attention_W = nn.Parameter(torch.randn(width, factor) * 0.2)
        self.attention_b = nn.Parameter(torch.zeros(factor))
        self.projection_h = nn.Parameter(torch.randn(factor, 1) * 0.2)
        self.projection_p = nn.Parameter(torch.randn(width, 1) * 0.2)
        self.dropout = nn.Dropout(0.1)

    def forward(self, vectors: list[Tensor]) -> Tensor:
        row, col = [], []
        for r, c in itertools.combinations(vectors, 2):
            row.append(r)
            col.append(c)
        inner_product = torch.cat(row, dim=1) * torch.cat(col, dim=1)
        hidden = F.relu(torch.tensordot(inner_product, self.attention_W, dims=([-1], [0])) + self.attention_b)
        score = F.softmax(torch.tensordot(hidden, self.projection_h, dims=([-1], [0])), dim=1)
        output = self.dropout(torch.sum(score * inner_product, dim=1))
        return torch.tensordot(output, self.projection_p, dims=([-1], [0]))


def matrix_of(columns: int, sequence: bool) -> Batch:
    """Calls ``model(X)``."""

    def batch(n: int, seed: int = 0) -> tuple[Tensor]:
        parts = [ids_of(n, columns, seed).float(), dense_of(n, seed)]
        if sequence:
            parts.append(sequence_of(n, LENGTH, 23, seed).float())
        return (torch.cat(parts, dim=1),)

    return batch


Part = Callable[[int, int], nn.Module]
Extra = Callable[[int, int], int]


def _variant(
    name: str, family: str, part: Part | None, extra: Extra = lambda f, n: 0, *, sequence: bool = False, why: str = ""
) -> Variant:
    def made(features: int, width: int, first: int, sequence: bool) -> Built:
        fields = features + sequence
        interaction = part(fields, width) if part else None
        model = Net(features, width, first, interaction, extra(fields, width), sequence)
        return model, matrix_of(max(features, first), sequence)

    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return made(features, width, features, sequence)

    def oracle(streams: int, dim: int, features: int) -> Built:
        return made(streams, dim, features, False)  # what a sequence became is a stream as any other

    def tables(streams: int) -> list[str]:
        return [f"inputs.embedding_dict.C{i}" for i in range(streams)]

    return Variant(name, family, build, None if why else Oracle(oracle, tables), why)


def _pairs(fields: int, width: int) -> int:
    return fields * (fields - 1) // 2


VARIANTS = [
    _variant("deepctr_deepfm", "DeepCTR DeepFM", lambda f, n: FMPart()),
    _variant("deepctr_deepfm_sequence", "DeepCTR DeepFM, VarLenSparseFeat", lambda f, n: FMPart(), sequence=True),
    _variant("deepctr_wide_deep", "DeepCTR WDL", None),
    _variant("deepctr_xdeepfm", "DeepCTR xDeepFM", CINPart),
    _variant("deepctr_autoint", "DeepCTR AutoInt", AttentionPart, lambda f, n: f * WIDTH),
    _variant("deepctr_pnn_inner", "DeepCTR PNN", lambda f, n: PairsPart(f, n, False), _pairs),
    _variant("deepctr_pnn_outer", "DeepCTR PNN", lambda f, n: PairsPart(f, n, True), _pairs),
    _variant("deepctr_fibinet", "DeepCTR FiBiNET", BilinearPart, lambda f, n: 2 * n * _pairs(f, n)),
    _variant("deepctr_afm", "DeepCTR AFM", AttentionalPairs),
]
