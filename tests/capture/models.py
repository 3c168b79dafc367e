"""Small models, each with one habit that capture must take or refuse. Module level, so that they pickle."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Buffers(nn.Module):
    """Reads saved and unsaved buffers, and a tensor that is only an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0]))
        self.register_buffer("pick", torch.tensor([[2, 0], [1, 1]]), persistent=False)
        self.shift = torch.tensor([0.5, 0.5])

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale)[:, self.pick[0]] + self.shift


class StoresAttribute(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.seen: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen = self.layer(x)
        self.other = self.seen * 2
        return self.seen + self.other


class FunctionalDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.25, self.training) + F.dropout(x, p=0.75, training=self.training)


class MakesModules(nn.Module):
    """A parameterless module made in forward, as DeepCTR does."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.Softmax(dim=1)(nn.Flatten()(x))


class MakesParameters(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.Linear(3, 2)(x)


class Factories(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros(x.size(0), 2)
        ones = torch.ones((x.shape[0], 1), dtype=x.dtype)
        row = torch.arange(x.size(1)).float()
        positions = torch.arange(x.size(0)).unsqueeze(1)
        return torch.cat([x * row, zeros, ones, positions.float()], dim=1)


class Constants(nn.Module):
    """Tensors made from nothing: torch, numpy, lists."""

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.tensor([1.0, 2.0, 3.0])
        offsets = np.array([0.5, 0.25, 0.125], dtype=np.float32)
        return torch.mul(x * weights, torch.as_tensor(offsets)) + torch.add(x, np.float32(2.0)) + x[:, torch.arange(3)]


class PythonOverInputs(nn.Module):
    """len, iteration, unpacking and nesting of lists, tuples and dicts."""

    def forward(self, columns: list[Tensor], named: dict[str, Any], pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        total = columns[0] * len(columns)
        for column in columns[1:]:
            total = total + column
        for key, value in named["inner"].items():
            total = total + value * (2 if key == "a" else 3)
        left, right = pair
        batch, width = left.shape
        assert len(left) == batch and width == 2
        return {"total": total, "pair": left.view(batch, -1) - right}


class UnpacksTensor(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        rows = list(x.t())
        first, *others = rows
        return torch.stack([first, *others], dim=1) * len(rows)


class LoopsOverBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[i] for i in range(x.size(0))])


class BakesBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(int(x.size(0)), -1)


class BakesBatchInConstant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.ones(len(x)).sum()


class BranchesOnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # the line
            return x
        return -x


class ReadsItem(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x.max().item()


class BranchesOnTraining(nn.Module):
    """The same operations in both modes, on other inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x), self.b(x)
        return torch.relu(left if self.training else right) + left + right


class InPlace(nn.Module):
    """Overwrites its own intermediate results, once with a reader before, once through a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        before = hidden.sum(1, keepdim=True)
        hidden.mul_(2.0)
        hidden.add_(1.0)
        out = self.relu(hidden)
        return before + out + hidden


class InPlaceThroughView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layer(x)
        hidden[:, 0].mul_(2.0)
        return hidden


class ChangesItsInput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x.clamp_(min=0)
        return x + 1


class CountsCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x


class AssignsItems(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.size(0), 2)
        out[:, 0][:] = x[:, 0]
        return out


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(x))


class Options(nn.Module):
    def forward(
        self, x: Tensor, scale: int = 2, mask: Tensor | None = None, *rest: Tensor, sign: float = 1.0
    ) -> Tensor:
        out = x * scale * sign
        for other in rest:
            out = out + other
        return out if mask is None else out * mask


@dataclasses.dataclass
class Batch:
    dense: Tensor
    ids: Tensor
    name: str = "batch"


class TakesDataclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 3)

    def forward(self, batch: Batch) -> Tensor:
        return self.table(batch.ids) + batch.dense
