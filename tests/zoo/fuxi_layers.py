"""Interactions in the style of FuxiCTR: each takes the stacked vectors ``(B, fields, N)`` or the flat ones."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from tests.zoo.spec import mlp


class HadamardCIN(nn.Module):
    """xDeepFM: einsum of all pairs of rows, ``view`` with sizes of the constructor, 1x1 convolutions."""

    def __init__(self, fields: int, units: tuple[int, ...]) -> None:
        super().__init__()
        self.cin_layer = nn.ModuleDict()
        previous = fields
        for i, unit in enumerate(units):
            self.cin_layer[f"layer_{i + 1}"] = nn.Conv1d(fields * previous, unit, kernel_size=1)
            previous = unit
        self.fc = nn.Linear(sum(units), 1)

    def forward(self, feature_emb: Tensor) -> Tensor:
        pooling_outputs = []
        x_0 = feature_emb
        batch_size, dim = x_0.shape[0], x_0.shape[-1]
        x_i = x_0
        for i in range(len(self.cin_layer)):
            hadamard = torch.einsum("bhd,bmd->bhmd", x_0, x_i).view(batch_size, -1, dim)
            x_i = self.cin_layer[f"layer_{i + 1}"](hadamard).view(batch_size, -1, dim)
            pooling_outputs.append(x_i.sum(dim=-1))
        return self.fc(torch.cat(pooling_outputs, dim=-1))


class HeadsOverFields(nn.Module):
    """AutoInt: query, key, value by Linear, heads by ``view`` over the batch."""

    def __init__(self, width: int, attention_dim: int, heads: int) -> None:
        super().__init__()
        self.head_dim, self.heads = attention_dim // heads, heads
        self.W_q = nn.Linear(width, attention_dim, bias=False)
        self.W_k = nn.Linear(width, attention_dim, bias=False)
        self.W_v = nn.Linear(width, attention_dim, bias=False)
        self.W_res = nn.Linear(width, attention_dim, bias=False)
        self.norm = nn.LayerNorm(attention_dim)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        batch_size = x.size(0)
        query = self.W_q(x).view(batch_size, -1, self.heads, self.head_dim).transpose(1, 2)
        key = self.W_k(x).view(batch_size, -1, self.heads, self.head_dim).transpose(1, 2)
        value = self.W_v(x).view(batch_size, -1, self.heads, self.head_dim).transpose(1, 2)
        scores = torch.matmul(query, key.transpose(-1, -2)) / self.head_dim**0.5
        attended = torch.matmul(self.dropout(scores.softmax(dim=-1)), value)
        attended = attended.transpose(1, 2).contiguous().view(batch_size, -1, self.heads * self.head_dim)
        return self.norm(attended + self.W_res(x)).relu()


class FeatureGates(nn.Module):
    """FinalMLP: two gates over the flat vectors; a gate is as wide as what it gates."""

    def __init__(self, flat: int, gate_in: tuple[int, int]) -> None:
        super().__init__()
        self.gate1 = nn.Sequential(nn.Linear(gate_in[0], 10), nn.ReLU(), nn.Linear(10, flat), nn.Sigmoid())
        self.gate2 = nn.Sequential(nn.Linear(gate_in[1], 10), nn.ReLU(), nn.Linear(10, flat), nn.Sigmoid())

    def forward(self, flat: Tensor, context1: Tensor, context2: Tensor) -> tuple[Tensor, Tensor]:
        return flat * (self.gate1(context1) * 2), flat * (self.gate2(context2) * 2)


class Aggregation(nn.Module):
    """FinalMLP: bilinear fusion of two streams, head by head."""

    def __init__(self, x_dim: int, y_dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.x_head, self.y_head = heads, x_dim // heads, y_dim // heads
        self.w_x, self.w_y = nn.Linear(x_dim, 1), nn.Linear(y_dim, 1)
        self.w_xy = nn.Parameter(torch.randn(heads * self.x_head * self.y_head, 1) * 0.1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        output = self.w_x(x) + self.w_y(y)
        head_x = x.view(-1, self.heads, self.x_head)
        head_y = y.view(-1, self.heads, self.y_head)
        xy = torch.matmul(
            torch.matmul(head_x.unsqueeze(2), self.w_xy.view(self.heads, self.x_head, -1)).view(
                -1, self.heads, 1, self.y_head
            ),
            head_y.unsqueeze(-1),
        ).squeeze(-1)
        return output + xy.sum(dim=1)


class MaskBlock(nn.Module):
    """MaskNet: a mask computed from all vectors, times a hidden layer."""

    def __init__(self, flat: int, hidden: int, output: int) -> None:
        super().__init__()
        self.mask_layer = nn.Sequential(nn.Linear(flat, 14), nn.ReLU(), nn.Linear(14, hidden))
        self.hidden_layer = nn.Sequential(
            nn.Linear(hidden, output, bias=False), nn.LayerNorm(output), nn.ReLU(), nn.Dropout(0.1)
        )

    def forward(self, v_emb: Tensor, v_hidden: Tensor) -> Tensor:
        return self.hidden_layer(self.mask_layer(v_emb) * v_hidden)


class MaskNetPart(nn.Module):
    """One LayerNorm per field (fields separated by chunks), then blocks in series or in parallel."""

    def __init__(self, fields: int, width: int, parallel: bool) -> None:
        super().__init__()
        flat = fields * width
        self.emb_norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(fields))
        self.parallel = parallel
        if parallel:
            self.blocks = nn.ModuleList(MaskBlock(flat, flat, 6) for _ in range(2))
            self.head = mlp([12, 8, 1])
        else:
            sizes = [flat, 12, 8]
            self.blocks = nn.ModuleList(MaskBlock(flat, a, b) for a, b in itertools.pairwise(sizes))
            self.head = mlp([8, 1])

    def forward(self, feature_emb: Tensor) -> Tensor:
        flat = feature_emb.flatten(start_dim=1)
        chunks = feature_emb.chunk(len(self.emb_norm), dim=1)
        normed = torch.cat([norm(x) for norm, x in zip(self.emb_norm, chunks, strict=True)], dim=1).flatten(start_dim=1)
        if self.parallel:
            return self.head(torch.cat([block(flat, normed) for block in self.blocks], dim=-1))
        hidden = normed
        for block in self.blocks:
            hidden = block(flat, hidden)
        return self.head(hidden)


class WuKongLayer(nn.Module):
    """A factorization machine block beside a linear compression, residual and normalised."""

    def __init__(self, fields: int, width: int, fmb: int, lcb: int, rank: int) -> None:
        super().__init__()
        self.fields, self.width, self.fmb = fields, width, fmb
        self.rank_weight = nn.Parameter(torch.randn(fields, rank) * 0.2)
        self.norm_fm = nn.LayerNorm(fields * rank)
        self.mlp = nn.Sequential(nn.Linear(fields * rank, 12), nn.ReLU(), nn.Linear(12, fmb * width), nn.ReLU())
        self.compress = nn.Parameter(torch.randn(lcb, fields) * 0.2)
        self.residual = nn.Linear(fields, fmb + lcb, bias=False) if fields != fmb + lcb else nn.Identity()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        projected = torch.matmul(x.permute(0, 2, 1), self.rank_weight)
        fm = torch.bmm(x, projected).flatten(1)
        fmb = self.mlp(self.norm_fm(fm)).view(-1, self.fmb, self.width)
        lcb = torch.matmul(self.compress, x)
        residual = self.residual(x.permute(0, 2, 1)).permute(0, 2, 1)
        return self.norm(torch.cat([fmb, lcb], dim=1) + residual)


class WuKongPart(nn.Module):
    def __init__(self, fields: int, width: int) -> None:
        super().__init__()
        # Nine vectors: a number that no setting of the oracle meets, where the residual would be an identity.
        self.layers = nn.Sequential(WuKongLayer(fields, width, 4, 5, 3), WuKongLayer(9, width, 4, 5, 3))
        self.head = mlp([9 * width, 12, 1])

    def forward(self, feature_emb: Tensor) -> Tensor:
        return self.head(self.layers(feature_emb).flatten(start_dim=1))


class DotWithDense(nn.Module):
    """DLRM over the stack: all pairs, upper triangle by mask, flat."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        self.register_buffer("triu_mask", torch.triu(torch.ones(fields, fields), 1).bool(), persistent=False)
        self.units = fields * (fields - 1) // 2

    def forward(self, feature_emb: Tensor) -> Tensor:
        inner = torch.bmm(feature_emb, feature_emb.transpose(1, 2))
        return torch.masked_select(inner, self.triu_mask).view(-1, self.units)


class InnerProductSum(nn.Module):
    """Second-order term by the square of the sum."""

    def forward(self, feature_emb: Tensor) -> Tensor:
        sum_of_square = torch.sum(feature_emb, dim=1) ** 2
        square_of_sum = torch.sum(feature_emb**2, dim=1)
        return ((sum_of_square - square_of_sum) * 0.5).sum(dim=-1, keepdim=True)
