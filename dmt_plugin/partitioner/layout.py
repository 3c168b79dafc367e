"""Features as points in the plane, so that distances between points follow the distances asked for.

Metric multidimensional scaling as in section 4 of the paper, made repeatable:

1. Affinities ``I`` become distances: ``1 - I`` brings like features together, ``I`` unlike ones.
2. Minimise the stress ``sum_{i>j} (||x_i - x_j|| - D_ij)^2`` with Adam; all restarts are moved in one batch.
3. The first restart begins at the classical solution (the leading eigenvectors of the doubly centred squared
   distances), the others at random points drawn from the seed.
4. The learning rate falls to zero along half a cosine, so that a run ends at rest and not in mid-swing.
5. The restart with the least stress is the layout. Its stress is reported as the paper's sum and as Kruskal's
   stress-1, ``sqrt(sum (d - D)^2 / sum D^2)``, which compares layouts of different matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_TINY = 1e-12


@dataclass(frozen=True)
class FeatureLayout:
    """Where the features lie.

    Attributes:
        points: ``(F, n)`` float64, centred.
        stress: the paper's sum over pairs.
        stress_1: Kruskal's stress-1; 0 is a perfect layout.
        restarts: stress of every restart, in order.
    """

    points: NDArray[np.float64]
    stress: float
    stress_1: float
    restarts: tuple[float, ...]


def distances(values: NDArray[np.float64], objective: str, *, stretched: bool) -> NDArray[np.float64]:
    """Distances ``D = f(I)`` to lay out: ``1 - I`` for "coherent" (like features near), ``I`` for "diverse".

    Args:
        values: ``(F, F)`` affinities.
        objective: ``"coherent"`` or ``"diverse"``.
        stretched: move and scale the distances of all pairs to fill ``[0, 1]``. The affinities of real models lie
            close together; a plane of nearly equal distances shows, and separates, nothing.

    Returns:
        ``(F, F)`` distances with a zero diagonal.
    """
    found = np.array(values if objective == "diverse" else 1.0 - values, dtype=np.float64)
    pairs = ~np.eye(len(found), dtype=bool)
    if stretched and pairs.any():
        least, most = found[pairs].min(), found[pairs].max()
        if most > least:
            found = (found - least) / (most - least)
    np.fill_diagonal(found, 0.0)
    return found


def lay_out(
    distances: NDArray[np.float64],
    *,
    dimensions: int = 2,
    restarts: int = 8,
    steps: int = 400,
    learning_rate: float = 0.05,
    seed: int = 0,
) -> FeatureLayout:
    """Finds points whose distances follow ``distances``.

    Args:
        distances: ``(F, F)`` symmetric, not negative; the diagonal is not read.
        dimensions: ``n`` of the space.
        restarts: how many starting points to try, the classical solution included.
        steps: Adam steps.
        learning_rate: of Adam at the start, as a share of the mean distance.
        seed: of the random starts.
    """
    wanted = torch.from_numpy(np.array(distances, dtype=np.float64))
    count = len(wanted)
    wanted.fill_diagonal_(0.0)
    scale = float(wanted.sum()) / max(1, count * (count - 1)) or 1.0
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randn(restarts, count, dimensions, generator=generator, dtype=torch.float64) * scale
    starts[0] = _classical(wanted, dimensions)
    points = starts.requires_grad_()
    optimizer = torch.optim.Adam([points], lr=learning_rate * scale)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * scale * 0.5 * (1 + math.cos(math.pi * step / steps))
        points.grad = _gradient(points.detach(), wanted)
        optimizer.step()
    found = points.detach()
    stress = _stress(found, wanted)
    best = int(stress.argmin())
    chosen = found[best] - found[best].mean(0)
    size = float(wanted.square().sum()) / 2
    return FeatureLayout(
        chosen.numpy(),
        float(stress[best]),
        math.sqrt(float(stress[best]) / size) if size else 0.0,
        tuple(float(s) for s in stress),
    )


def _distances(points: Tensor) -> Tensor:
    """``(R, F, F)`` distances between the points ``(R, F, n)``; from differences, which keeps near points exact."""
    squared = torch.zeros(len(points), points.shape[1], points.shape[1], dtype=points.dtype)
    for axis in points.unbind(-1):
        squared += (axis[:, :, None] - axis[:, None, :]).square()
    return squared.sqrt_()


def _stress(points: Tensor, wanted: Tensor) -> Tensor:
    return (_distances(points) - wanted).square().sum((1, 2)) / 2


def _gradient(points: Tensor, wanted: Tensor) -> Tensor:
    """Of the stress: ``2 * sum_j (1 - D_ij / d_ij) (x_i - x_j)``. Written out: autograd keeps four times the memory."""
    weights = 1 - wanted / _distances(points).clamp_(min=_TINY)
    weights.diagonal(dim1=1, dim2=2).zero_()
    # Points on top of each other have no direction to part in; their pair is left out until another pulls them apart.
    weights.clamp_(min=-1 / math.sqrt(_TINY))
    # Axis by axis: a batched matrix product this thin costs more in waking threads than in work.
    pulled = torch.stack([(weights * axis[:, None, :]).sum(2) for axis in points.unbind(-1)], dim=-1)
    return 2 * (weights.sum(2, keepdim=True) * points - pulled)


def _classical(wanted: Tensor, dimensions: int) -> Tensor:
    """Classical scaling; the sign of each axis is fixed by its largest entry, for repeatable results."""
    squared = wanted.square()
    centred = -0.5 * (squared - squared.mean(0) - squared.mean(1, keepdim=True) + squared.mean())
    values, vectors = torch.linalg.eigh(centred)
    take = min(dimensions, len(wanted))
    points = torch.zeros(len(wanted), dimensions, dtype=torch.float64)
    axes = vectors[:, -take:].flip(1) * values[-take:].flip(0).clamp(min=0).sqrt()
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    points[:, :take] = axes * torch.where(signs == 0, torch.ones_like(signs), signs)
    return points


def as_dict(layout: FeatureLayout) -> dict[str, Any]:
    """What a plan keeps of a layout."""
    return {
        "dimensions": layout.points.shape[1],
        "stress": layout.stress,
        "stress_1": layout.stress_1,
        "restarts": len(layout.restarts),
    }
