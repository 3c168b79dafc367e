"""Cuts along a dimension that changed: right between its parts, refused inside them; parameters read turned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import TransformError
from tests.passes.heads import DENSE, Head, Recommender, Streams, batch
from tests.passes.test_repair_oracle import SIZES, assert_is_the_oracle, repaired


class CutBeside(Head):
    """The dense vector and the streams taken apart again, by sizes; the dense vector cut itself."""

    def build(self, n: int, d: int) -> None:
        self.sizes = [2, 4, n * d]
        self.side = nn.Linear(DENSE, 6)
        self.top, self.other = nn.Linear(n * d, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        first, second, rest = torch.cat([self.side(x), *streams], dim=1).split(self.sizes, dim=1)
        return self.top(rest) + self.other(second) + first.sum(1, keepdim=True)


class CutAt(Head):
    """The same by place, of stacked vectors."""

    def build(self, n: int, d: int) -> None:
        self.top, self.other = nn.Linear(n * d, 1), nn.Linear(d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        dense, rest = torch.stack([self.bottom(x), *streams], dim=1).tensor_split([1], dim=1)
        return self.top(rest.flatten(1)) + self.other(dense.flatten(1))


class Halves(Head):
    """A gate and a value from one layer, as large as the streams."""

    def build(self, n: int, d: int) -> None:
        self.make = nn.Linear(DENSE, 2 * n * d)
        self.top = nn.Linear(n * d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        gate, value = self.make(x).chunk(2, dim=1)
        return self.top(torch.cat(streams, dim=1) * gate.sigmoid() + value)


class HalvesBySize(Halves):
    """The same by the size of a piece."""

    def build(self, n: int, d: int) -> None:
        super().build(n, d)
        self.size = n * d

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        gate, value = torch.split(self.make(x), self.size, dim=-1)
        return self.top(torch.cat(streams, dim=1) * gate.sigmoid() + value)


class Turned(Head):
    """Parameters read as their transposes."""

    def build(self, n: int, d: int) -> None:
        self.matrix, self.fields = nn.Parameter(torch.randn(3, n * d)), nn.Parameter(torch.randn(2, n))
        self.top = nn.Linear(2 * d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        fields = torch.stack(streams, dim=1).transpose(1, 2) @ self.fields.mT
        return self.top(fields.flatten(1)) + (torch.cat(streams, dim=1) @ self.matrix.T).sum(1, keepdim=True)


class Angles(Head):
    def build(self, n: int, d: int) -> None:
        self.shift = nn.Parameter(torch.randn(n, d))
        self.top = nn.Linear(n * d, 1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        return self.top(torch.atan2(torch.stack(streams, dim=1), self.shift).flatten(1))


@pytest.mark.parametrize("size", ["more", "F*N equal F'*D, narrower"])
@pytest.mark.parametrize("head", [CutBeside, CutAt, Halves, HalvesBySize, Turned, Angles])
def test_repair_builds_what_the_constructor_builds(head: type[Head], size: str) -> None:
    model, oracle, streams, dim = repaired(head, size)
    assert_is_the_oracle(model, oracle, streams, dim, SIZES[size][0])


class Cut(Head):
    """Cut inside the streams, or where streams and another vector do not stand where they stood."""

    sizes: tuple[int, ...] = (12, 36, 6)

    def build(self, n: int, d: int) -> None:
        self.side = nn.Linear(DENSE, 6)

    def joined(self, x: Tensor, streams: Streams) -> Tensor:
        return torch.cat([*streams, self.side(x)], dim=1)

    def forward(self, x: Tensor, streams: Streams) -> Tensor:
        pieces = self.joined(x, streams).split(self.sizes, dim=1)
        return pieces[0].sum(1) + pieces[-1].sum(1)


class CutBetween(Cut):
    sizes = (48, 6)

    def joined(self, x: Tensor, streams: Streams) -> Tensor:
        return torch.cat([*streams[:2], self.side(x), *streams[2:]], dim=1)


@pytest.mark.parametrize("head", [Cut, CutBetween])
@pytest.mark.parametrize("letters", [{"c": 1, "p": 0, "dim": 4}, {"c": 1, "p": 0, "dim": 8}])
def test_other_cuts_are_refused(head: type[Head], letters: dict[str, int]) -> None:
    flat = Recommender(head(6, 8), 6, 8)
    with pytest.raises(TransformError, match="cuts a dimension whose features changed"):
        transform(flat, batch(6, 5), {"dmt": {"towers": {"module": "dlrm", **letters}}}, "2x1")
