"""DLRM as in its first public implementation: lists of bags, an interaction built with Python lists, and its
options: self-interaction, plain concatenation, mixed dimensions, quotient-remainder tables, weighted pooling.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import Parameter

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
    dense_and_ids,
    dense_of,
    numbered,
    rows_of,
)  # fmt: skip


class QRBag(nn.Module):
    """Two small tables instead of a large one: one by quotient, one by remainder."""

    def __init__(self, rows: int, width: int, collisions: int, operation: str) -> None:
        super().__init__()
        self.collisions = collisions
        self.operation = operation
        own = width // 2 if operation == "concat" else width
        self.weight_q = Parameter(torch.empty(math.ceil(rows / collisions), own).uniform_(-0.3, 0.3))
        self.weight_r = Parameter(torch.empty(collisions, own).uniform_(-0.3, 0.3))

    def forward(self, input: Tensor, offsets: Tensor, per_sample_weights: Tensor | None = None) -> Tensor:
        input_q = (input / self.collisions).long()
        input_r = torch.remainder(input, self.collisions).long()
        embed_q = F.embedding_bag(input_q, self.weight_q, offsets, mode="sum", per_sample_weights=per_sample_weights)
        embed_r = F.embedding_bag(input_r, self.weight_r, offsets, mode="sum", per_sample_weights=per_sample_weights)
        if self.operation == "concat":
            return torch.cat((embed_q, embed_r), dim=1)
        if self.operation == "add":
            return embed_q + embed_r
        return embed_q * embed_r


class ProjectedBag(nn.Module):
    """A table of its own width, projected to the common one."""

    def __init__(self, rows: int, width: int, base: int) -> None:
        super().__init__()
        self.embs = nn.EmbeddingBag(rows, width, mode="sum", sparse=True)
        self.proj = nn.Linear(width, base, bias=False) if width < base else nn.Identity()

    def forward(self, input: Tensor, offsets: Tensor, per_sample_weights: Tensor | None = None) -> Tensor:
        return self.proj(self.embs(input, offsets=offsets, per_sample_weights=per_sample_weights))


class DLRMNet(nn.Module):
    """``forward(dense_x, lS_o, lS_i)`` with one tensor of offsets and one of ids per table."""

    def create_mlp(self, ln: list[int], sigmoid_layer: int) -> nn.Sequential:
        layers = nn.ModuleList()
        for i in range(len(ln) - 1):
            layers.append(nn.Linear(int(ln[i]), int(ln[i + 1]), bias=True))
            layers.append(nn.Sigmoid() if i == sigmoid_layer else nn.ReLU())
        return nn.Sequential(*layers)

    def create_emb(self, widths: list[int], rows: list[int]) -> tuple[nn.ModuleList, list[Any]]:
        emb_l, weights = nn.ModuleList(), []
        for m, n in zip(widths, rows, strict=True):
            if self.qr_operation and n > 12:
                emb_l.append(QRBag(n, m, 4, self.qr_operation))
            elif self.mixed:
                emb_l.append(ProjectedBag(n, m, max(widths)))
            else:
                emb_l.append(nn.EmbeddingBag(n, m, mode="sum", sparse=True))
            weights.append(torch.linspace(0.5, 1.5, n) if self.weighted else None)
        return emb_l, weights

    def __init__(
        self,
        widths: list[int],
        ln_emb: list[int],
        ln_bot: list[int],
        ln_top: list[int],
        arch_interaction_op: str = "dot",
        arch_interaction_itself: bool = False,
        sigmoid_top: int = -1,
        qr_operation: str = "",
        mixed: bool = False,
        weighted_pooling: str | None = None,
        loss_threshold: float = 0.0,
    ) -> None:
        super().__init__()
        self.arch_interaction_op = arch_interaction_op
        self.arch_interaction_itself = arch_interaction_itself
        self.qr_operation = qr_operation
        self.mixed = mixed
        self.weighted = weighted_pooling
        self.loss_threshold = loss_threshold
        self.emb_l, w_list = self.create_emb(widths, ln_emb)
        if weighted_pooling == "learned":
            self.v_W_l = nn.ParameterList([Parameter(w) for w in w_list])
        else:
            self.v_W_l = w_list
        self.bot_l = self.create_mlp(ln_bot, -1)
        self.top_l = self.create_mlp(ln_top, sigmoid_top)

    def apply_mlp(self, x: Tensor, layers: nn.Sequential) -> Tensor:
        return layers(x)

    def apply_emb(self, lS_o: Any, lS_i: Any, emb_l: nn.ModuleList, v_W_l: Any) -> list[Tensor]:
        ly = []
        for k, sparse_index_group_batch in enumerate(lS_i):
            sparse_offset_group_batch = lS_o[k]
            if v_W_l[k] is not None:
                per_sample_weights = v_W_l[k].gather(0, sparse_index_group_batch)
            else:
                per_sample_weights = None
            E = emb_l[k]
            V = E(sparse_index_group_batch, sparse_offset_group_batch, per_sample_weights=per_sample_weights)
            ly.append(V)
        return ly

    def interact_features(self, x: Tensor, ly: list[Tensor]) -> Tensor:
        if self.arch_interaction_op == "dot":
            (batch_size, d) = x.shape
            T = torch.cat([x, *ly], dim=1).view((batch_size, -1, d))
            Z = torch.bmm(T, torch.transpose(T, 1, 2))
            _, ni, nj = Z.shape
            offset = 1 if self.arch_interaction_itself else 0
            li = torch.tensor([i for i in range(ni) for j in range(i + offset)])
            lj = torch.tensor([j for i in range(nj) for j in range(i + offset)])
            Zflat = Z[:, li, lj]
            return torch.cat([x, Zflat], dim=1)
        return torch.cat([x, *ly], dim=1)

    def forward(self, dense_x: Tensor, lS_o: Any, lS_i: Any) -> Tensor:
        x = self.apply_mlp(dense_x, self.bot_l)
        ly = self.apply_emb(lS_o, lS_i, self.emb_l, self.v_W_l)
        z = self.interact_features(x, ly)
        p = self.apply_mlp(z, self.top_l)
        if 0.0 < self.loss_threshold < 1.0:
            return torch.clamp(p, min=self.loss_threshold, max=(1.0 - self.loss_threshold))
        return p


def list_batch(features: int, stacked_offsets: bool = False) -> Batch:
    """Calls ``model(dense, offsets, ids)`` with lists (or the offsets as one tensor ``(F, B)``)."""

    def batch(n: int, seed: int = 0) -> tuple[Any, ...]:
        offsets, ids = bags_of(n, features, seed)
        return dense_of(n, seed), torch.stack(offsets) if stacked_offsets else offsets, ids

    return batch


def _build(features: int, width: int, stacked_offsets: bool, dense_width: int = 0, **options: Any) -> Built:
    widths = [width] * features
    if options.pop("narrow", False):
        widths = [max(2, width >> (f % 3)) for f in range(features)]
    n = features + 1
    dense_width = dense_width or width
    if options.get("arch_interaction_op") == "cat":
        joined = features * width + dense_width
    else:
        joined = width + (n * (n + 1) // 2 if options.get("arch_interaction_itself") else n * (n - 1) // 2)
    rows = [rows_of(f) for f in range(features)]
    model = DLRMNet(widths, rows, [DENSE, 12, dense_width], [joined, 16, 1], sigmoid_top=1, **options)
    return model, list_batch(features, stacked_offsets)


def _variant(name: str, stacked_offsets: bool = False, **options: Any) -> Variant:
    def build(features: int = FEATURES, width: int = WIDTH) -> Built:
        return _build(features, width, stacked_offsets, **options)

    plain = {k: v for k, v in options.items() if k not in ("narrow",)}
    if options.get("arch_interaction_op") == "cat":
        plain["dense_width"] = WIDTH  # beside streams of any width, the dense vector can stay what it was
    oracle = Oracle(
        lambda streams, dim, features: _build(streams, dim, stacked_offsets, **plain),
        numbered("emb_l"),
        skipped=("v_W_l",),
    )
    return Variant(name, "facebookresearch DLRM", build, oracle)


class MaskedPairsDLRM(nn.Module):
    """Pairs picked with a boolean mask, self-interaction included, single-hot tables in a ModuleDict."""

    def __init__(self, rows: list[int], width: int, dense: int) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({f"c{i}": nn.Embedding(r, width) for i, r in enumerate(rows)})
        self.bottom = nn.Sequential(nn.Linear(dense, 12), nn.ReLU(), nn.Linear(12, width), nn.ReLU())
        n = len(rows) + 1
        self.register_buffer("mask", torch.ones(n, n).tril().bool())
        self.top = nn.Sequential(nn.Linear(width + n * (n + 1) // 2, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        x = self.bottom(dense)
        columns = [e(ids[:, i]) for i, e in enumerate(self.embeddings.values())]
        t = torch.stack([x, *columns], dim=1)
        gram = torch.einsum("bid,bjd->bij", t, t)
        pairs = torch.masked_select(gram, self.mask).view(x.shape[0], -1)
        return self.top(torch.cat((x, pairs), dim=-1))


def masked_pairs(features: int = FEATURES, width: int = WIDTH) -> Built:
    return MaskedPairsDLRM([rows_of(f) for f in range(features)], width, DENSE), dense_and_ids(features)


VARIANTS = [
    _variant("dlrm_dot"),
    _variant("dlrm_dot_stacked_offsets", stacked_offsets=True, loss_threshold=0.01),
    _variant("dlrm_dot_self", arch_interaction_itself=True),
    _variant("dlrm_cat", arch_interaction_op="cat"),
    _variant("dlrm_mixed_dims", mixed=True, narrow=True),
    _variant("dlrm_qr_mult", qr_operation="mult"),
    _variant("dlrm_qr_add", qr_operation="add"),
    _variant("dlrm_qr_concat", qr_operation="concat"),
    _variant("dlrm_weighted_fixed", weighted_pooling="fixed"),
    _variant("dlrm_weighted_learned", weighted_pooling="learned"),
    Variant(
        "dlrm_masked_pairs",
        "DLRM, boolean mask",
        masked_pairs,
        # The rewritten model picks its pairs by index lists; which pairs, the outputs show.
        Oracle(by_size(masked_pairs), lambda streams: [f"embeddings.c{i}" for i in range(streams)], skipped=("mask",)),
    ),
]
