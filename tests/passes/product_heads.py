"""Heads of product networks, attention and the like: how they multiply, pair, mask and repeat their vectors.

Built and called as those of ``tests.passes.heads``.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.passes.heads import DENSE, Head, Streams


def pair_lists(n: int) -> tuple[list[int], list[int]]:
    rows, columns = zip(*itertools.combinations(range(n), 2), strict=True)
    return list(rows), list(columns)


class Compressed(Head):
    """xDeepFM: all pairs of rows by einsum, literal sizes in the view, half of each layer kept."""

    def build(self, n: int, d: int) -> None:
        self.n, self.d = n, d
        self.first, self.second = nn.Conv1d(n * n, 6, 1), nn.Conv1d(n * 3, 4, 1)
        self.top = nn.Linear(3 + 4, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        h = self.first(torch.einsum("bhd,bmd->bhmd", t, t).reshape(-1, self.n * self.n, self.d)).relu()
        following, direct = torch.split(h, [3, 3], 1)
        h = self.second(torch.einsum("bhd, bmd -> bhmd", t, following).view(x.shape[0], -1, self.d))
        return self.top(torch.cat([direct, h], dim=1).sum(-1))


class CompressedByBroadcast(Head):
    """The same by unsqueezed factors, pieces by ``chunk`` and ``unbind``."""

    def build(self, n: int, d: int) -> None:
        self.layer = nn.Conv1d(n * n, 4, 1, bias=False)
        self.top = nn.Linear(5, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        products = (t.unsqueeze(2) * t.unsqueeze(1)).flatten(1, 2)
        a, b = self.layer(products).chunk(2, dim=1)
        first, second = b.unbind(1)
        pieces = torch.stack(a.split(1, dim=1), dim=0).squeeze(2).movedim(0, 1)
        return self.top(torch.cat([pieces, first.unsqueeze(1), second.unsqueeze(1), t.sum(1, True)], 1).mean(dim=-1))


class PairProducts(Head):
    """PNN: both halves of the pairs as lists written in forward."""

    def build(self, n: int, d: int) -> None:
        self.top = nn.Linear(n * d + n * (n - 1) // 2, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        rows, columns = pair_lists(t.shape[1])
        return self.top(torch.cat([t.flatten(1), (t[:, rows] * t[:, columns]).sum(2)], dim=1))


class PairBuffers(Head):
    """Lists as buffers, columns first, the width sliced too."""

    def build(self, n: int, d: int) -> None:
        rows, columns = torch.tril_indices(n, n, -1)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.top = nn.Linear(n * (n - 1) // 2, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        return self.top((t[:, self.columns, :] - t[:, self.rows, :]).norm(dim=-1))


class PairSelections(Head):
    """FuxiCTR: ``index_select`` by integer parameters that are not trained."""

    def build(self, n: int, d: int) -> None:
        rows, columns = pair_lists(n)
        self.p = nn.Parameter(torch.tensor(rows), requires_grad=False)
        self.q = nn.Parameter(torch.tensor(columns), requires_grad=False)
        self.top = nn.Linear(n * (n - 1) // 2 * d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        return self.top((torch.index_select(t, 1, self.p) * t.index_select(1, self.q)).flatten(1))


class PairTable(Head):
    """All pairs in one index, by distance, as a numpy array ``(pairs, 2)``."""

    def build(self, n: int, d: int) -> None:
        self.pairs = np.array([(i, i + k) for k in range(1, n) for i in range(n - k)])
        self.top = nn.Linear(n * (n - 1) // 2, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        return self.top(t[:, torch.as_tensor(self.pairs)].prod(dim=2).sum(dim=-1))


class PairsInForward(Head):
    """Triangles computed in forward from the number of vectors: of single vectors, and of all products."""

    def build(self, n: int, d: int) -> None:
        self.top = nn.Linear(n * (n - 1) // 2 + n * (n + 1) // 2, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        rows, columns = torch.triu_indices(t.shape[1], t.size(1), offset=1, device=t.device)
        z = t @ t.mT
        lower = torch.tril_indices(z.shape[1], z.shape[2])
        return self.top(torch.cat([(t[:, rows] * t[:, columns]).sum(2), z[:, lower[0], lower[1]]], dim=1))


class PairKernels(Head):
    """PNN, outer: a matrix per pair, in one parameter."""

    def build(self, n: int, d: int) -> None:
        pairs = n * (n - 1) // 2
        self.kernel = nn.Parameter(torch.randn(d, pairs, d) * 0.2)
        self.top = nn.Linear(pairs, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        rows, columns = pair_lists(t.shape[1])
        p, q = t[:, rows], t[:, columns]
        kp = torch.sum(p.unsqueeze(1) * self.kernel, dim=-1).permute(0, 2, 1)
        return self.top(torch.sum(kp * q, -1))


class AllPairs(Head):
    """Every ordered pair of different vectors, out of the matrix of their products."""

    def build(self, n: int, d: int) -> None:
        pairs = torch.tensor([(i, j) for i in range(n) for j in range(n) if i != j]).t()
        self.register_buffer("pairs", pairs, persistent=False)
        self.register_buffer("diagonal", torch.eye(n).bool(), persistent=False)
        self.top = nn.Linear(n * (n - 1) + n, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        z = torch.einsum("...id,...jd->...ij", t, t)
        return self.top(torch.cat([z[:, self.pairs[0], self.pairs[1]], z[:, self.diagonal]], 1))


class CrossTensordot(Head):
    """DCN v1 with the weights of all layers in one parameter."""

    def build(self, n: int, d: int) -> None:
        flat = n * d + DENSE
        self.kernels, self.bias = nn.Parameter(torch.randn(2, flat, 1) * 0.1), nn.Parameter(torch.zeros(2, flat, 1))
        self.top = nn.Linear(flat, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        x0 = xl = torch.cat([x, *streams], dim=1).unsqueeze(2)
        for i in range(2):
            xl = torch.matmul(x0, torch.tensordot(xl, self.kernels[i], dims=([1], [0]))) + self.bias[i] + xl
        return self.top(xl.squeeze(2))


class CrossFused(Head):
    """Cross layers by fused operations: ``addcmul``, ``addmm``, ``baddbmm``, ``lerp``."""

    def build(self, n: int, d: int) -> None:
        flat = n * d + DENSE
        self.down, self.up = nn.Linear(flat, 3, bias=False), nn.Linear(3, flat)
        self.matrix, self.shift = nn.Parameter(torch.randn(flat, flat) * 0.1), nn.Parameter(torch.zeros(flat))
        self.gate = nn.Parameter(torch.rand(flat))
        self.top = nn.Linear(flat, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        x0 = torch.cat([x, *streams], dim=1)
        xl = torch.addcmul(x0, x0, self.up(self.down(x0)))
        xl = x0 * torch.addmm(self.shift, xl, self.matrix) + xl
        xl = torch.baddbmm(xl.unsqueeze(1), x0.unsqueeze(1), self.matrix.expand(x.shape[0], -1, -1)).squeeze(1)
        return self.top(torch.lerp(x0, xl, self.gate))


class TensordotAttention(Head):
    """AutoInt by tensordot and a stack of heads; the attention has a width of its own."""

    def build(self, n: int, d: int) -> None:
        self.query, self.key, self.value, self.rest = (nn.Parameter(torch.randn(d, 6) * 0.3) for _ in range(4))
        self.top = nn.Linear(n * 6, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        q, k, v = (
            torch.stack(torch.split(torch.tensordot(t, w, dims=([-1], [0])), 3, dim=2))
            for w in (self.query, self.key, self.value)
        )
        scores = F.softmax(torch.einsum("bnik,bnjk->bnij", q, k), dim=-1)
        mixed = torch.squeeze(torch.cat(torch.split(torch.matmul(scores, v), 1), dim=-1), dim=0)
        return self.top((mixed + torch.tensordot(t, self.rest, dims=1)).relu().flatten(1))


class FusedAttention(Head):
    """Query, key and value of one layer, attention as one function, over the streams and a dense vector."""

    def build(self, n: int, d: int) -> None:
        self.qkv = nn.Linear(d, 3 * 4)
        self.top = nn.Linear((n + 1) * 4, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        q, k, v = self.qkv(torch.stack([self.bottom(x), *streams], dim=1)).chunk(3, dim=-1)
        return self.top(F.scaled_dot_product_attention(q, k, v).flatten(1))


class MaskedScores(Head):
    """No attention to oneself; then only to those before, by a product with a triangle of ones."""

    def build(self, n: int, d: int) -> None:
        self.register_buffer("self_mask", torch.eye(n).bool(), persistent=False)
        self.register_buffer("before", torch.ones(1, n, n).tril(-1), persistent=False)
        self.top = nn.Linear(2 * d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        scores = t @ t.transpose(1, 2)
        others = scores.masked_fill(self.self_mask, -1e9).softmax(-1) @ t
        earlier = torch.where(~self.self_mask, scores, torch.zeros_like(scores)) * self.before @ t
        return self.top(torch.cat([others.sum(1), earlier.mean(1)], dim=1))


class Repeated(Head):
    """The dense vector repeated beside each stream: by a literal, by a size read off, by ``expand_as``."""

    def build(self, n: int, d: int) -> None:
        self.n = n
        self.top = nn.Linear(n * d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        x = self.bottom(x).unsqueeze(1)
        t = t * x.expand(-1, self.n, -1) + x.repeat(1, self.n, 1) + x.expand(-1, t.shape[1], -1)
        return self.top((t * x.expand(t.shape) + x.expand_as(t)).flatten(1))


class Filled(Head):
    """A column of zeros beside the streams, a mask made in forward, a frame of ones as long as the streams."""

    def build(self, n: int, d: int) -> None:
        self.n = n
        self.top = nn.Linear((n + 1) * d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        mask = torch.ones(t.shape[1], t.shape[1], device=t.device).triu(1)
        t = (t @ t.mT).masked_fill(mask.bool(), -1e9).softmax(-1) @ t
        t = t * torch.full((x.shape[0], self.n, 1), 0.5) + t.new_ones(x.shape[0], t.shape[1], 1)
        zeros = torch.zeros(x.shape[0], 1, t.shape[2], dtype=t.dtype).to(t.device)
        t = t.to(x.device)
        return self.top(torch.cat([t, zeros], dim=1).flatten(1))


class Normed(Head):
    """Norms as functions and layers, slopes per feature, similarity to the dense vector."""

    def build(self, n: int, d: int) -> None:
        self.weight, self.bias = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(d))
        self.rms, self.slopes, self.slope = nn.RMSNorm(d), nn.PReLU(n), nn.PReLU()
        self.width = d
        self.top = nn.Linear(n * d + n, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        x = F.normalize(self.bottom(x), dim=-1)
        t = F.layer_norm(t, (self.width,), self.weight, self.bias)
        t = self.slope(self.slopes(self.rms(F.layer_norm(t, t.shape[-1:]))))
        return self.top(torch.cat([t.flatten(1), F.cosine_similarity(t, x.unsqueeze(1), dim=2)], dim=1))


class Extremes(Head):
    """Largest entries over the features, as names, by position, and of two tensors."""

    def build(self, n: int, d: int) -> None:
        self.top = nn.Linear(4 * d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        low, _ = torch.min(t, dim=1)
        both = torch.max(t.amax(1), low) / torch.linalg.vector_norm(t, 2, 1) * (t > 0).any(dim=1)
        return self.top(torch.cat([t.max(dim=1).values, t.max(1, keepdim=True)[0].squeeze(1), low, both], dim=1))


class Bilinear(Head):
    """A matrix between the streams, and one more tensor product with the dense vector; sides swapped."""

    def build(self, n: int, d: int) -> None:
        self.matrix = nn.Parameter(torch.randn(d, d) * 0.2)
        self.register_buffer("upper", torch.ones(n, n).triu(1).bool(), persistent=False)
        self.top = nn.Linear(n * (n - 1) // 2 + n, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        t = torch.stack(streams, dim=1)
        pairs = torch.einsum("bif,fg,bjg->bij", t, self.matrix, t).swapaxes(1, 2).swapaxes(-1, -2)
        sides = torch.einsum("bid,bd->bi", t, self.bottom(x))
        return self.top(torch.cat([torch.masked_select(pairs, self.upper).view(x.shape[0], -1), sides], dim=1))


HEADS = (
    Compressed, CompressedByBroadcast, PairProducts, PairBuffers, PairSelections, PairTable, PairsInForward,
    PairKernels, AllPairs, CrossTensordot, CrossFused, TensordotAttention, FusedAttention, MaskedScores, Repeated,
    Filled, Normed, Extremes, Bilinear,
)  # fmt: skip
