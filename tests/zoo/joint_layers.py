"""Layers of the factorization machine family over joint tables with field offsets (a numpy array)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeaturesLinear(nn.Module):
    def __init__(self, field_dims: list[int]) -> None:
        super().__init__()
        self.fc = nn.Embedding(sum(field_dims), 1)
        self.bias = nn.Parameter(torch.zeros((1,)))
        self.offsets = np.array((0, *np.cumsum(field_dims)[:-1]), dtype=np.int64)

    def forward(self, x: Tensor) -> Tensor:
        x = x + x.new_tensor(self.offsets).unsqueeze(0)
        return torch.sum(self.fc(x), dim=1) + self.bias


class FeaturesEmbedding(nn.Module):
    def __init__(self, field_dims: list[int], embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sum(field_dims), embed_dim)
        self.offsets = np.array((0, *np.cumsum(field_dims)[:-1]), dtype=np.int64)

    def forward(self, x: Tensor) -> Tensor:
        x = x + x.new_tensor(self.offsets).unsqueeze(0)
        return self.embedding(x)


class FieldAwareEmbedding(nn.Module):
    """One joint table per field; field i meets field j as table j's row of i times table i's row of j."""

    def __init__(self, field_dims: list[int], embed_dim: int) -> None:
        super().__init__()
        self.num_fields = len(field_dims)
        self.embeddings = nn.ModuleList(nn.Embedding(sum(field_dims), embed_dim) for _ in field_dims)
        self.offsets = np.array((0, *np.cumsum(field_dims)[:-1]), dtype=np.int64)

    def forward(self, x: Tensor) -> Tensor:
        x = x + x.new_tensor(self.offsets).unsqueeze(0)
        xs = [self.embeddings[i](x) for i in range(self.num_fields)]
        ix = []
        for i in range(self.num_fields - 1):
            for j in range(i + 1, self.num_fields):
                ix.append(xs[j][:, i] * xs[i][:, j])
        return torch.stack(ix, dim=1)


class FM(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        square_of_sum = torch.sum(x, dim=1) ** 2
        sum_of_square = torch.sum(x**2, dim=1)
        return 0.5 * torch.sum(square_of_sum - sum_of_square, dim=1, keepdim=True)


class MLP(nn.Module):
    def __init__(self, input_dim: int, embed_dims: tuple[int, ...], dropout: float, output_layer: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for embed_dim in embed_dims:
            layers += [nn.Linear(input_dim, embed_dim), nn.BatchNorm1d(embed_dim), nn.ReLU(), nn.Dropout(p=dropout)]
            input_dim = embed_dim
        if output_layer:
            layers.append(nn.Linear(input_dim, 1))
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class Cross(nn.Module):
    """DCN v1: rank-one cross layers."""

    def __init__(self, input_dim: int, num_layers: int) -> None:
        super().__init__()
        self.num_layers = num_layers
        self.w = nn.ModuleList(nn.Linear(input_dim, 1, bias=False) for _ in range(num_layers))
        self.b = nn.ParameterList(nn.Parameter(torch.zeros((input_dim,))) for _ in range(num_layers))

    def forward(self, x: Tensor) -> Tensor:
        x0 = x
        for i in range(self.num_layers):
            xw = self.w[i](x)
            x = x0 * xw + self.b[i] + x
        return x


class CIN(nn.Module):
    """xDeepFM: compressed interactions by 1x1 convolutions, half of each layer kept."""

    def __init__(self, input_dim: int, cross_layer_sizes: tuple[int, ...], split_half: bool = True) -> None:
        super().__init__()
        self.num_layers, self.split_half = len(cross_layer_sizes), split_half
        self.conv_layers = nn.ModuleList()
        prev_dim, fc_input_dim = input_dim, 0
        for i, size in enumerate(cross_layer_sizes):
            self.conv_layers.append(nn.Conv1d(input_dim * prev_dim, size, 1, stride=1, dilation=1, bias=True))
            if split_half and i != self.num_layers - 1:
                size //= 2
            prev_dim = size
            fc_input_dim += prev_dim
        self.fc = nn.Linear(fc_input_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        xs = []
        x0, h = x.unsqueeze(2), x
        for i in range(self.num_layers):
            x = x0 * h.unsqueeze(1)
            batch_size, f0_dim, fin_dim, embed_dim = x.shape
            x = x.view(batch_size, f0_dim * fin_dim, embed_dim)
            x = F.relu(self.conv_layers[i](x))
            if self.split_half and i != self.num_layers - 1:
                x, h = torch.split(x, x.shape[1] // 2, dim=1)
            else:
                h = x
            xs.append(x)
        return self.fc(torch.sum(torch.cat(xs, dim=1), 2))


class SelfAttention(nn.Module):
    """AutoInt with torch's own attention layers and functional dropout."""

    def __init__(self, num_fields: int, embed_dim: int, heads: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.atten_embed_dim = 8
        self.atten_embedding = nn.Linear(embed_dim, self.atten_embed_dim)
        self.atten_output_dim = num_fields * self.atten_embed_dim
        self.self_attns = nn.ModuleList(
            nn.MultiheadAttention(self.atten_embed_dim, heads, dropout=0.1) for _ in range(layers)
        )
        self.attn_fc = nn.Linear(self.atten_output_dim, 1)
        self.V_res_embedding = nn.Linear(embed_dim, self.atten_embed_dim)

    def forward(self, embed_x: Tensor) -> Tensor:
        atten_x = self.atten_embedding(embed_x)
        cross_term = atten_x.transpose(0, 1)
        for self_attn in self.self_attns:
            cross_term, _ = self_attn(cross_term, cross_term, cross_term)
        cross_term = cross_term.transpose(0, 1)
        cross_term = cross_term + self.V_res_embedding(embed_x)
        cross_term = F.relu(cross_term).contiguous().view(-1, self.atten_output_dim)
        return self.attn_fc(cross_term)


class InnerProduct(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        num_fields = x.shape[1]
        row, col = [], []
        for i in range(num_fields - 1):
            for j in range(i + 1, num_fields):
                row.append(i)
                col.append(j)
        return torch.sum(x[:, row] * x[:, col], dim=2)


class OuterProduct(nn.Module):
    def __init__(self, num_fields: int, embed_dim: int) -> None:
        super().__init__()
        num_ix = num_fields * (num_fields - 1) // 2
        self.kernel = nn.Parameter(torch.empty(embed_dim, num_ix, embed_dim))
        nn.init.xavier_uniform_(self.kernel.data)

    def forward(self, x: Tensor) -> Tensor:
        num_fields = x.shape[1]
        row, col = [], []
        for i in range(num_fields - 1):
            for j in range(i + 1, num_fields):
                row.append(i)
                col.append(j)
        p, q = x[:, row], x[:, col]
        kp = torch.sum(p.unsqueeze(1) * self.kernel, dim=-1).permute(0, 2, 1)
        return torch.sum(kp * q, -1)


class PairAttention(nn.Module):
    """AFM: attention over all pairs, dropout as functions."""

    def __init__(self, embed_dim: int, attn_size: int, dropouts: tuple[float, float]) -> None:
        super().__init__()
        self.attention = nn.Linear(embed_dim, attn_size)
        self.projection = nn.Linear(attn_size, 1)
        self.fc = nn.Linear(embed_dim, 1)
        self.dropouts = dropouts

    def forward(self, x: Tensor) -> Tensor:
        num_fields = x.shape[1]
        row, col = [], []
        for i in range(num_fields - 1):
            for j in range(i + 1, num_fields):
                row.append(i)
                col.append(j)
        inner_product = x[:, row] * x[:, col]
        attn_scores = F.relu(self.attention(inner_product))
        attn_scores = F.softmax(self.projection(attn_scores), dim=1)
        attn_scores = F.dropout(attn_scores, p=self.dropouts[0], training=self.training)
        attn_output = torch.sum(attn_scores * inner_product, dim=1)
        attn_output = F.dropout(attn_output, p=self.dropouts[1], training=self.training)
        return self.fc(attn_output)
