"""Operations by what becomes of them when a batch is cut: stated by hand, and checked by running them.

``TAKEN`` are known to treat every sample by itself. ``UNSAFE`` do not: run on a part of the batch they give another
result, or none. ``UNKNOWN`` do, or do for the most part, and are not taken.

A case is a function of the model (its ``layer``) and its inputs, with the shapes of the inputs behind the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 6


@dataclass(frozen=True)
class Case:
    """One use of one operation.

    Attributes:
        run: ``run(model, *inputs)``; ``model.layer`` and ``model.constant`` are at hand.
        shapes: of the inputs, without the batch in front.
        layer: makes the layer, if one is used.
        constant: a tensor of the model that is not trained.
    """

    run: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...] = ((4,),)
    layer: Callable[[], nn.Module] = nn.Identity
    constant: tuple[int, ...] = (4,)


V, M, S = ((4,),), ((3, 4),), ((),)
"""One vector, one matrix, one number per sample."""
VV, MM = V + V, M + M
SQUARE = ((6,),)
"""As many entries per sample as there are samples."""


def _layer(make: Callable[[], nn.Module], shapes: tuple[tuple[int, ...], ...] = V) -> Case:
    return Case(lambda m, *x: m.layer(*x), shapes, make)


TAKEN = {
    # one entry at a time
    "relu": Case(lambda m, x: torch.relu(x)),
    "method": Case(lambda m, x: x.sigmoid()),
    "one number per sample": Case(lambda m, x: x.exp(), S),
    "two vectors": Case(lambda m, x, y: x + y, VV),
    "three vectors": Case(lambda m, x, y, z: torch.addcmul(x, y, z), VV + V),
    "broadcast in a sample": Case(lambda m, x, y: x * y, (*V, (1,))),
    "a number": Case(lambda m, x: 2 * x - 1),
    "a constant vector": Case(lambda m, x: x * m.constant),
    "a constant with one in front": Case(lambda m, x: x * m.constant, V, constant=(1, 4)),
    "where": Case(lambda m, x, y: torch.where(x > 0, x, y), VV),
    "where, constant choice": Case(lambda m, x: torch.where(x > 0, x, m.constant)),
    "masked_fill": Case(lambda m, x, y: x.masked_fill(y > 0, -1.0), VV),
    "width of the vectors": Case(lambda m, x: x / x.size(1)),
    "rank of the tensor": Case(lambda m, x: x * x.dim()),
    "product of sizes": Case(lambda m, x: x / (x.size(1) * x.size(2)), M),
    "dtype": Case(lambda m, x: x.to(torch.float64)),
    "expand_as": Case(lambda m, x, y: x.expand_as(y), ((1,), *V)),
    "conversion": Case(lambda m, x: x.double().float()),
    # along other dimensions than the batch
    "softmax": Case(lambda m, x: torch.softmax(x, -1)),
    "softmax by keyword": Case(lambda m, x: F.softmax(x, dim=1)),
    "log_softmax": Case(lambda m, x: x.log_softmax(-1)),
    "softmin": Case(lambda m, x: F.softmin(x, dim=1)),
    "normalize": Case(lambda m, x: F.normalize(x)),
    "sum": Case(lambda m, x: x.sum(1)),
    "sum by keyword": Case(lambda m, x: torch.sum(x, dim=-1, keepdim=True)),
    "mean of two dimensions": Case(lambda m, x: x.mean((1, 2)), M),
    "norm": Case(lambda m, x: x.norm(2, -1)),
    "linalg.norm": Case(lambda m, x: torch.linalg.norm(x, dim=1)),
    "logsumexp": Case(lambda m, x: torch.logsumexp(x, 1)),
    "var": Case(lambda m, x: x.var(dim=-1)),
    "prod": Case(lambda m, x: x.prod(1)),
    "amax": Case(lambda m, x: x.amax(-1)),
    "layer_norm": Case(lambda m, x: F.layer_norm(x, (4,))),
    "layer_norm of its own shape": Case(lambda m, x: F.layer_norm(x, x.shape[1:]), M),
    "layer_norm with weights": Case(lambda m, x: F.layer_norm(x, [4], m.constant)),
    # places
    "view": Case(lambda m, x: x.view(-1, 12), M),
    "view of the batch's size": Case(lambda m, x: x.view(x.size(0), -1), M),
    "reshape to a shape": Case(lambda m, x: x.reshape(x.shape), M),
    "reshape by a list": Case(lambda m, x: x.reshape([x.shape[0], 2, x.size(1) // 2]), V),
    "reshape of sizes": Case(lambda m, x: x.reshape(-1, x.size(1) * x.size(2)), M),
    "expand": Case(lambda m, x: x.unsqueeze(1).expand(-1, 3, -1)),
    "expand to the batch's size": Case(lambda m, x: x.unsqueeze(1).expand(x.size(0), 3, 4)),
    "expand, all -1": Case(lambda m, x: x.expand(-1, -1)),
    "repeat": Case(lambda m, x: x.repeat(1, 2)),
    "flatten": Case(lambda m, x: torch.flatten(x, 1), M),
    "flatten by keyword": Case(lambda m, x: x.flatten(start_dim=-2), ((2, 3, 4),)),
    "unflatten": Case(lambda m, x: x.unflatten(-1, (2, 2))),
    "squeeze": Case(lambda m, x: x.squeeze(1), ((1, 4),)),
    "unsqueeze last": Case(lambda m, x: x.unsqueeze(-1)),
    "unsqueeze, one number": Case(lambda m, x: x.unsqueeze(1), S),
    "transpose": Case(lambda m, x: x.transpose(1, 2), M),
    "transpose from the end": Case(lambda m, x: x.transpose(-1, -2), M),
    "permute": Case(lambda m, x: x.permute(0, 2, 1), M),
    "permute by a tuple": Case(lambda m, x: torch.permute(x, (0, -1, 1)), M),
    "mT": Case(lambda m, x: x.mT, M),
    "getitem": Case(lambda m, x: x[:, 1:3]),
    "getitem, one": Case(lambda m, x: x[:, -1]),
    "getitem, new dimension": Case(lambda m, x: x[:, None, :]),
    "getitem, constant indices": Case(lambda m, x: x[:, [0, 2], [1, 1]], M),
    "getitem, up to a width": Case(lambda m, x, y: x[:, : y.size(1)], (*V, (2,))),
    "select": Case(lambda m, x: x.select(1, 0), M),
    "narrow": Case(lambda m, x: x.narrow(1, 1, 2)),
    "triu of matrices": Case(lambda m, x: x.triu(), M),
    # several inputs side by side
    "cat": Case(lambda m, x, y: torch.cat([x, y], 1), VV),
    "cat by keyword": Case(lambda m, x, y: torch.cat(tensors=(x, y), dim=-1), VV),
    "concat": Case(lambda m, x, y: torch.concat([x, y], axis=1), VV),
    "stack": Case(lambda m, x, y: torch.stack([x, y], 1), VV),
    "stack last": Case(lambda m, x, y: torch.stack([x, y], -1), VV),
    # products
    "bmm": Case(lambda m, x, y: torch.bmm(x, y.transpose(1, 2)), MM),
    "matmul": Case(lambda m, x, y: x @ y.mT, MM),
    "matmul, one matrix for all": Case(lambda m, x: x @ m.constant, V, constant=(4, 2)),
    "matmul, one vector for all": Case(lambda m, x: x @ m.constant, M),
    "baddbmm": Case(lambda m, x, y, z: torch.baddbmm(x, y, z.mT), ((3, 3), *MM)),
    "addmm": Case(lambda m, x, y: torch.addmm(x, y, m.constant), ((2,), *V), constant=(4, 2)),
    "linear": Case(lambda m, x: F.linear(x, m.constant), V, constant=(2, 4)),
    "einsum": Case(lambda m, x, y: torch.einsum("bfd,bgd->bfg", x, y), MM),
    "einsum, other letters": Case(lambda m, x, y: torch.einsum("zi,zj->zij", x, y), VV),
    "einsum with a constant": Case(lambda m, x: torch.einsum("bi,io->bo", x, m.constant), V, constant=(4, 2)),
    "einsum, dots": Case(lambda m, x, y: torch.einsum("...i,...i->...", x, y), VV),
    "attention": Case(lambda m, x, y: F.scaled_dot_product_attention(x, y, y, is_causal=True), MM),
    "cosine_similarity": Case(lambda m, x, y: F.cosine_similarity(x, y), VV),
    "pairwise_distance": Case(lambda m, x, y: F.pairwise_distance(x, y), VV),
    # layers
    "Linear": _layer(lambda: nn.Linear(4, 2)),
    "Linear on matrices": _layer(lambda: nn.Linear(4, 2), M),
    "ReLU": _layer(nn.ReLU),
    "in-place layer behind a linear one": Case(
        lambda m, x: m.layer[1](m.layer[0](x)), V, lambda: nn.Sequential(nn.Linear(4, 2), nn.ReLU(inplace=True))
    ),
    "written in place behind a product": Case(lambda m, x, y: (x @ y.mT).relu_(), MM),
    "Identity": _layer(nn.Identity),
    "Dropout of nothing": _layer(lambda: nn.Dropout(0.0)),
    "LayerNorm": _layer(lambda: nn.LayerNorm(4)),
    "LayerNorm of matrices": _layer(lambda: nn.LayerNorm((3, 4)), M),
    "RMSNorm": _layer(lambda: nn.RMSNorm(4)),
    "GroupNorm": _layer(lambda: nn.GroupNorm(2, 4)),
    "Softmax": _layer(lambda: nn.Softmax(-1)),
    "LogSoftmax": _layer(lambda: nn.LogSoftmax(1)),
    "Softmin": _layer(lambda: nn.Softmin(dim=1)),
    "PReLU": _layer(lambda: nn.PReLU(4)),
    "Bilinear": _layer(lambda: nn.Bilinear(4, 4, 2), VV),
    "Conv1d": _layer(lambda: nn.Conv1d(3, 2, 2), M),
    "Conv2d": _layer(lambda: nn.Conv2d(1, 2, 2), ((1, 3, 4),)),
    "Flatten": _layer(nn.Flatten, M),
}

UNSAFE = {
    "softmax": Case(lambda m, x: torch.softmax(x, 0)),
    "softmax from the end": Case(lambda m, x: torch.softmax(x, -2)),
    "softmax by keyword": Case(lambda m, x: F.softmax(x, dim=0)),
    "softmax of no dimension": Case(lambda m, x: F.softmax(x), S),
    "softmax of no dimension, matrices": Case(lambda m, x: F.softmax(x), M),
    "log_softmax": Case(lambda m, x: F.log_softmax(x, 0)),
    "softmin": Case(lambda m, x: F.softmin(x, dim=0)),
    "softmin, place": Case(lambda m, x: F.softmin(x, -2)),
    "softmin of no dimension": Case(lambda m, x: F.softmin(x), M),
    "gumbel_softmax": Case(lambda m, x: F.gumbel_softmax(x, dim=0)),
    "normalize": Case(lambda m, x: F.normalize(x, dim=0)),
    "normalize, place": Case(lambda m, x: F.normalize(x, 1, 0), M),
    "rand_like": Case(lambda m, x: torch.rand_like(x)),
    "randn_like": Case(lambda m, x: torch.randn_like(x)),
    "bernoulli": Case(lambda m, x: torch.bernoulli(x.sigmoid())),
    "cumsum": Case(lambda m, x: x.cumsum(0)),
    "cumprod": Case(lambda m, x: x.cumprod(dim=-2)),
    "flip": Case(lambda m, x: x.flip(0)),
    "roll": Case(lambda m, x: x.roll(1)),
    "sort": Case(lambda m, x: x.sort(0)[0]),
    "topk": Case(lambda m, x: x.topk(x.size(0), dim=0)[0]),
    "glu": Case(lambda m, x: F.glu(torch.cat([x, x.flip(0)]), 0)),
    "layer_norm": Case(lambda m, x: F.layer_norm(x, x.shape)),
    "layer_norm over a number": Case(lambda m, x: F.layer_norm(x, (6, 4))),
    "instance_norm": Case(lambda m, x: F.instance_norm(x.transpose(0, 1).unsqueeze(0)).squeeze(0).transpose(0, 1)),
    "batch_norm": Case(lambda m, x: F.batch_norm(x, None, None, training=True)),
    "sum": Case(lambda m, x: x - x.sum(0, keepdim=True)),
    "mean from the end": Case(lambda m, x: x - x.mean(-2, keepdim=True)),
    "sum of all": Case(lambda m, x: x - x.sum()),
    "sum of both dimensions": Case(lambda m, x: x - x.sum((1, 0), keepdim=True)),
    "norm": Case(lambda m, x: x / x.norm(2, 0, True)),
    "norm of all": Case(lambda m, x: x / x.norm()),
    "var": Case(lambda m, x: x.var(0, keepdim=True) + x),
    "var by no dimension": Case(lambda m, x: x + x.var(True)),
    "tril": Case(lambda m, x: x.tril()),
    "triu": Case(lambda m, x: torch.triu(x, 1)),
    "the batch's size as a factor": Case(lambda m, x: x / x.size(0)),
    "the batch's size from the shape": Case(lambda m, x: x * x.shape[0]),
    "the batch's size from the end": Case(lambda m, x: x * x.shape[-2]),
    "the batch's size in a sum": Case(lambda m, x: x / (x.shape[0] + x.shape[1])),
    "entries of the batch": Case(lambda m, x: x / x.numel()),
    "the batch's size as an option": Case(lambda m, x, y: torch.add(x, y, alpha=x.size(0)), VV),
    "clamped by the batch's size": Case(lambda m, x: (x * 9).clamp(max=x.size(0))),
    "full_like": Case(lambda m, x: torch.full_like(x, x.size(0))),
    "a constant per sample": Case(lambda m, x: x * m.constant, constant=(6, 4)),
    "a constant per sample, one each": Case(lambda m, x: x * m.constant, constant=(6, 1)),
    "constant choice per sample": Case(lambda m, x: torch.where(x > 0, x, m.constant), constant=(6, 1)),
    "one number per sample along the width": Case(lambda m, x, y: x * y, SQUARE + S),
    "condition along the width": Case(lambda m, x, y: torch.where(y > 0, x, -x), SQUARE + S),
    "flattened batch": Case(lambda m, x: x.view(-1)),
    "view of a number": Case(lambda m, x: x.view(6, 4)),
    "view of a number, rest open": Case(lambda m, x: x.view(6, -1), M),
    "view of another size": Case(lambda m, x: x.view(x.size(1), -1), SQUARE),
    "batch taken into the width": Case(lambda m, x: x.view(-1, x.size(0)), SQUARE),
    "turned, then viewed": Case(lambda m, x: x.t().reshape(x.size(0), -1)),
    "expand in front": Case(lambda m, x: x.expand(x.size(0), -1), S),
    "expand in front of matrices": Case(lambda m, x: x.expand(x.size(0), -1, -1)),
    "expand to a number": Case(lambda m, x: x.unsqueeze(1).expand(6, 3, 4)),
    "expand_as in front": Case(lambda m, x, y: x.expand_as(y), (*SQUARE, (6, 6))),
    "repeat of the batch": Case(lambda m, x: x.repeat(2, 1)[:6]),
    "repeat by the batch's size": Case(lambda m, x: x.repeat(1, x.size(0))),
    "unflatten to the batch's size": Case(lambda m, x, y: x.unflatten(1, y.shape[:2]), ((18,), (3,))),
    "unsqueeze in front": Case(lambda m, x: x.unsqueeze(0)),
    "unsqueeze from the end": Case(lambda m, x: x.unsqueeze(-3)),
    "flatten all": Case(lambda m, x: x.flatten()),
    "transpose": Case(lambda m, x: x.transpose(0, 1), SQUARE),
    "t": Case(lambda m, x: x.t(), SQUARE),
    "T": Case(lambda m, x: x.T, SQUARE),
    "T of matrices": Case(lambda m, x: x.T, ((4, 6),)),
    "mT of vectors": Case(lambda m, x: x.mT, SQUARE),
    "permute": Case(lambda m, x: x.permute(1, 0), SQUARE),
    "permute from the end": Case(lambda m, x: x.permute(-1, -2), SQUARE),
    "permute by keyword": Case(lambda m, x: x.permute(dims=(1, 0)), SQUARE),
    "samples of an index": Case(lambda m, x: x[[1, 0, 3, 2, 5, 4]]),
    "samples of a slice": Case(lambda m, x: x[::2].repeat(2, 1)),
    "index of the batch's size": Case(lambda m, x: x[:, : x.size(0)], SQUARE),
    "lists apart come first": Case(lambda m, x: x[:, [0] * 6, :, [0] * 6], ((3, 2, 4),)),
    "lists with a new dimension between": Case(lambda m, x: x[:, [0] * 6, None, [1] * 6], M),
    "samples by samples": Case(lambda m, x, y: x[:, y.long().clamp(0, 3)], V + S),
    "index_select": Case(lambda m, x: x.index_select(0, torch.tensor([1, 0, 3, 2, 5, 4]))),
    "select": Case(lambda m, x: x.select(0, 1), SQUARE),
    "cat": Case(lambda m, x, y: torch.cat([x, y]), VV),
    "cat of a constant": Case(lambda m, x: torch.cat([x, m.constant], 1), constant=(6, 4)),
    "stack": Case(lambda m, x, y: torch.stack([x, y])[0] + torch.stack([x, y]).sum(1)[:1], VV),
    "stack of six": Case(lambda m, x: torch.stack([x] * 6)[:, 0]),
    "matmul, all with all": Case(lambda m, x, y: x @ y.t(), VV),
    "matmul over samples": Case(lambda m, x, y: x @ y, SQUARE + V),
    "matmul, constant in front": Case(lambda m, x: m.constant @ x, constant=(6, 6)),
    "bmm of constants per sample": Case(lambda m, x: torch.bmm(m.constant, x), M, constant=(6, 2, 3)),
    "addmm, bias along the width": Case(lambda m, x, y: torch.addmm(x, y, m.constant), S + V, constant=(4, 6)),
    "linear by samples": Case(lambda m, x, y: F.linear(x, y), VV),
    "linear over the batch": Case(lambda m, x: F.linear(x, m.constant), S, constant=(6, 6)),
    "einsum, all with all": Case(lambda m, x, y: torch.einsum("bi,ci->bc", x, y), VV),
    "einsum of itself": Case(lambda m, x: torch.einsum("bi,ci->bc", x, x)),
    "einsum over samples": Case(lambda m, x, y: torch.einsum("bi,bj->ij", x, y), SQUARE + SQUARE),
    "einsum, implicit": Case(lambda m, x, y: torch.einsum("zi,zj", x, y), SQUARE + SQUARE),
    "einsum, samples behind": Case(lambda m, x, y: torch.einsum("bi,bi->ib", x, y), SQUARE + SQUARE),
    "einsum, dots behind": Case(lambda m, x, y: torch.einsum("i...,j...->i...", x, y), VV),
    "attention between samples": Case(lambda m, x: F.scaled_dot_product_attention(x, x, x)),
    "attention, samples in a row": Case(
        lambda m, x: F.scaled_dot_product_attention(x, m.constant, m.constant, is_causal=True), constant=(6, 4)
    ),
    "cosine_similarity": Case(lambda m, x, y: F.cosine_similarity(x, y, dim=0), SQUARE + SQUARE),
    "cdist": Case(lambda m, x, y: torch.cdist(x, y), VV),
    "diag": Case(lambda m, x: torch.diag(x) * 1, SQUARE),
    "diagonal": Case(lambda m, x: torch.diagonal(x), SQUARE),
    "outer": Case(lambda m, x, y: torch.outer(x, y), S + S),
    "BatchNorm1d": _layer(lambda: nn.BatchNorm1d(4)),
    "Softmax of no dimension": _layer(nn.Softmax, M),
    "Softmax": _layer(lambda: nn.Softmax(0)),
    "Softmax from the end": _layer(lambda: nn.Softmax(-2)),
    "LogSoftmax": _layer(lambda: nn.LogSoftmax(0)),
    "LogSoftmax of no dimension": _layer(nn.LogSoftmax, M),
    "Softmin": _layer(lambda: nn.Softmin(-2)),
    "Softmin of no dimension": _layer(nn.Softmin, M),
    "LayerNorm over the batch": _layer(lambda: nn.LayerNorm((6, 4))),
    "Linear over the batch": _layer(lambda: nn.Linear(6, 6), S),
    "GroupNorm over the batch": Case(lambda m, x: m.layer(x.unsqueeze(0)), V, lambda: nn.GroupNorm(1, 6)),
    "MultiheadAttention": Case(lambda m, x: m.layer(x, x, x)[0], M, lambda: nn.MultiheadAttention(4, 2)),
    "GRU": Case(lambda m, x: m.layer(x)[0], M, lambda: nn.GRU(4, 4)),
    "GRU of vectors": Case(lambda m, x: m.layer(x)[0], V, lambda: nn.GRU(4, 4)),
    "Conv1d along the batch": _layer(lambda: nn.Conv1d(6, 6, 3, padding=1)),
    "Flatten all": _layer(lambda: nn.Flatten(0)),
}

UNKNOWN = {
    "BatchNorm1d": _layer(lambda: nn.BatchNorm1d(4).eval()),
    "MultiheadAttention": Case(
        lambda m, x: m.layer(x, x, x)[0], M, lambda: nn.MultiheadAttention(4, 2, batch_first=True)
    ),
    "GRU": Case(lambda m, x: m.layer(x)[0], M, lambda: nn.GRU(4, 4, batch_first=True)),
    "Embedding": Case(lambda m, x: m.layer(x.long().clamp(0, 3)), S, lambda: nn.Embedding(4, 4)),
    "cumsum in a sample": Case(lambda m, x: x.cumsum(1)),
    "split": Case(lambda m, x: x.split(2, 1)[0]),
    "maximum and its place": Case(lambda m, x: x.max(1)[0]),
    "a slice of the batch": Case(lambda m, x: x[:6, 1:]),
    "written in place": Case(lambda m, x: (x * 1).relu_()),
    "written in place by keyword": Case(lambda m, x: F.relu(x * 1, inplace=True)),
    "written in place by position": Case(lambda m, x: F.leaky_relu(x * 1, 0.1, True)),
    "in-place layer behind one that was read": Case(
        lambda m, x: (y := m.layer[0](x)).sum(1, True) + m.layer[1](y),
        V,
        lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)),
    ),
    "written in place behind a view": Case(lambda m, x: torch.einsum("bij->bji", x * 1).relu_(), M),
    "written into a product": Case(lambda m, x, y: torch.exp(y := x @ x.mT, out=y), MM),
    "in-place layer": Case(lambda m, x: m.layer(x * 1), V, lambda: nn.ReLU(inplace=True)),
    "written into another": Case(lambda m, x: torch.exp(x, out=torch.relu(x))),
    "own class of a layer": _layer(lambda: LikeSoftmax()),
    "a class derived from Linear": _layer(
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    ),
    "a layer with a hook": _layer(lambda: hooked()),
}


class LikeSoftmax(nn.Softmax):
    """Has the settings of a softmax and computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return input - input.mean(0)


def hooked() -> nn.Module:
    """A layer whose hook sees the batch."""
    layer = nn.Linear(4, 2)
    layer.register_forward_hook(lambda module, args, result: result * 2)
    return layer
