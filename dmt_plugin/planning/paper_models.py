"""The paper's models, built with this package's tower modules, and their FLOPs.

The paper's "MFlops/sample" are forward and backward, two per multiply-add, without the gradient of the first layer's
input: what :class:`torch.utils.flop_counter.FlopCounterMode` counts. Architectures were found from these numbers:

* DLRM: 13-512-256-128, dot products of 27 vectors, 1024-1024-512-256-1;
* DMT-DLRM: towers make 26 vectors of width D (16 towers: one of 128 each, of two features or passed through), and the
  layers behind the dot products lack one of 1024 x 1024;
* DCN: three cross layers of rank 512 on 27 x 128 entries, then DLRM's layers;
* DMT-DCN: each tower one cross layer of rank 512 and a linear layer to 128 entries, which a tower of one feature does
  without; three cross layers on what all towers send.

Parts are counted by running parts, on the meta device: the counter's own division by module is wrong in the backward
pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dmt_plugin.nn.towers import DCNTower, DLRMTower, PassThroughTower
from dmt_plugin.planner.paper.settings import FEATURES, WIDTH, ModelSize, tower_features

RANK = 512
_DENSE_INPUTS = 13
_SAMPLES = 2
_BEHIND = (1024, 1024, 512, 256, 1)
_BEHIND_TOWERS = _BEHIND[1:]


@cache
def paper_sizes() -> dict[str, ModelSize]:
    """What every model of the paper's tables computes and sends, by its name there."""
    with torch.device("meta"):
        found = [
            _size("DLRM", DotProducts(FEATURES, WIDTH, _BEHIND)),
            *(_dlrm(f"DMT {count}T-DLRM", count, 64) for count in (2, 4, 8, 26)),
            _dlrm_of_16(),
            *(_dlrm(f"DMT 8T-DLRM, CR {WIDTH // dim}", 8, dim) for dim in (32, 16, 8)),
            _size("DCN", CrossLayers(FEATURES)),
            *(_dcn(count) for count in (2, 4, 8, 16)),
            _size("DMT 26T-DCN", CrossLayers(FEATURES)),
        ]
    return {size.name: size for size in found}


class DotProducts(nn.Module):
    """DLRM's dense part.

    Args:
        vectors: from the towers, or tables.
        width: of each.
        behind: widths of the layers behind the dot products.
    """

    def __init__(self, vectors: int, width: int, behind: Sequence[int]) -> None:
        super().__init__()
        self.vectors, self.width = vectors, width
        self.bottom = _layers(_DENSE_INPUTS, 512, 256, width)
        self.pairs = (vectors + 1) * vectors // 2
        self.top = _layers(self.pairs + width, *behind)

    def forward(self, dense: Tensor, sent: Tensor) -> Tensor:
        """``(B, 13)`` and ``(B, vectors * width) -> (B, 1)``."""
        own = self.bottom(dense)
        stacked = torch.cat([own.unsqueeze(1), sent.unflatten(1, (self.vectors, self.width))], dim=1)
        products = torch.bmm(stacked, stacked.transpose(1, 2)).flatten(1)
        return self.top(torch.cat([own, products[:, : self.pairs]], dim=1))


class CrossLayers(nn.Module):
    """DCN's dense part.

    Args:
        vectors: of width 128, from the towers, or tables.
    """

    def __init__(self, vectors: int) -> None:
        super().__init__()
        flat = (vectors + 1) * WIDTH
        self.bottom = _layers(_DENSE_INPUTS, 512, 256, WIDTH)
        self.reduce = nn.ModuleList(nn.Linear(flat, RANK, bias=False) for _ in range(3))
        self.cross = nn.ModuleList(nn.Linear(RANK, flat) for _ in range(3))
        self.top = _layers(flat, *_BEHIND)

    def forward(self, dense: Tensor, sent: Tensor) -> Tensor:
        """``(B, 13)`` and ``(B, vectors * 128) -> (B, 1)``."""
        first = x = torch.cat([self.bottom(dense), sent], dim=1)
        for reduce, cross in zip(self.reduce, self.cross, strict=True):
            x = first * cross(reduce(x)) + x
        return self.top(x)


def _dlrm(name: str, count: int, dim: int) -> ModelSize:
    towers = [DLRMTower(features, WIDTH, dim, init="torch") for features in tower_features(count)]
    return _size(name, DotProducts(FEATURES, dim, _BEHIND_TOWERS), towers)


def _dlrm_of_16() -> ModelSize:
    towers = [
        PassThroughTower(1, WIDTH) if features == 1 else DLRMTower(features, WIDTH, WIDTH, 0, 1, "torch")
        for features in tower_features(16)
    ]
    return _size("DMT 16T-DLRM", DotProducts(16, WIDTH, _BEHIND_TOWERS), towers)


def _dcn(count: int) -> ModelSize:
    towers = [DCNTower(features, WIDTH, WIDTH, "torch", RANK, outputs=1) for features in tower_features(count)]
    for tower in towers:
        if tower.project.in_features == WIDTH:
            tower.project = nn.Identity()  # type: ignore[assignment]
    return _size(f"DMT {count}T-DCN", CrossLayers(count), towers)


def _layers(*sizes: int) -> nn.Sequential:
    return nn.Sequential(*(layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())))


def _size(name: str, dense: DotProducts | CrossLayers, towers: Sequence[nn.Module] = ()) -> ModelSize:
    outputs = tuple(int(tower.out_features) for tower in towers)  # type: ignore[arg-type]
    sent = sum(outputs) or FEATURES * WIDTH
    by_features: dict[int, tuple[float, float]] = {}
    for tower, features in zip(towers, tower_features(max(1, len(towers))), strict=False):
        if features not in by_features:
            by_features[features] = _flops(tower, torch.empty(_SAMPLES, features, WIDTH))
    return ModelSize(
        name,
        _flops(lambda x: dense(torch.empty(_SAMPLES, _DENSE_INPUTS), x), torch.empty(_SAMPLES, sent)),
        sum(p.numel() for p in dense.parameters()),
        tuple(by_features[features] for features in tower_features(len(towers))) if towers else (),
        outputs,
    )


def _flops(run: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, float]:
    """FLOPs a sample, forward and backward; a gradient goes back to ``x``."""
    x.requires_grad_()
    with FlopCounterMode(display=False) as forward:
        result = run(x)
    with FlopCounterMode(display=False) as backward:
        result.sum().backward()
    return forward.get_total_flops() / _SAMPLES, backward.get_total_flops() / _SAMPLES
