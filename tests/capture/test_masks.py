"""A selection by a constant mask is captured by row; by any other mask it is refused."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin import ExampleBatch
from dmt_plugin.capture import capture
from dmt_plugin.core.errors import CaptureError
from tests.capture.test_capture import captured

SIDE = 4


class Picks(nn.Module):
    """Picks entries of ``(B, 4, 4)`` matrices."""

    def __init__(self, pick: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.pick = pick
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.trained = nn.Parameter(torch.ones(SIDE, SIDE).tril())
        self.register_buffer("mask", torch.ones(SIDE, SIDE).tril(-1).bool())
        self.register_buffer("whole", torch.ones(1, SIDE, SIDE).triu().bool(), persistent=False)
        self.register_buffer("numbers", torch.ones(SIDE, SIDE).triu(1))
        self.register_buffer("column", torch.tensor([[True], [False], [True], [True]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.pick(self, x * self.scale)


BY_ROW: dict[str, Any] = {
    "select and view": lambda m, x: torch.masked_select(x, m.mask).view(x.size(0), -1),
    "select and literal": lambda m, x: torch.masked_select(x, m.mask).view(-1, 6),
    "method and reshape": lambda m, x: x.masked_select(m.mask).reshape(x.shape[0], -1),
    "one more dimension": lambda m, x: torch.masked_select(x, m.whole).view(-1, 10),
    "expanded": lambda m, x: torch.masked_select(x, m.mask.expand(x.size(0), -1, -1)).view(x.size(0), -1),
    "expanded index": lambda m, x: x[m.mask.unsqueeze(0).expand_as(x)].view(-1, 6),
    "computed": lambda m, x: torch.masked_select(x, m.numbers > 0).view(-1, 6),
    "made in forward": lambda m, x: x.masked_select(torch.ones(SIDE, SIDE).bool().tril()).view(-1, 10),
    "index": lambda m, x: x[:, m.mask],
    "index computed": lambda m, x: x[:, ~m.mask],
}
FLAT: dict[str, Any] = {
    "left flat": lambda m, x: torch.masked_select(x, m.mask) * 2,
    "read both ways": lambda m, x: (y := x.masked_select(m.mask)).view(-1, 6) * y.sum(),
    "changed in place": lambda m, x: (y := x.masked_select(m.mask)).view(-1, 6) * y.mul_(2).sum(),
}


def cubes(n: int) -> Tensor:
    return torch.randn(n, SIDE, SIDE, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize("name", [*BY_ROW, *FLAT])
def test_a_constant_mask_is_followed(name: str) -> None:
    model = Picks((BY_ROW | FLAT)[name])
    if name == "changed in place":
        with pytest.raises(CaptureError, match="DMT103"):
            capture(model, ExampleBatch((cubes(5),)))
        return
    graph = captured(model, cubes(5))
    assert graph.state_dict().keys() <= model.state_dict().keys()
    for n in (1, 6, 7, 11):
        gradients = []
        for one in (model, graph):
            one.zero_grad()
            out = one(cubes(n))
            out.square().sum().backward()
            gradients.append((out, one.get_parameter("scale").grad.clone()))
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    targets = [n.target for n in graph.graph.nodes]
    assert not {"masked_select", torch.masked_select, "expand", "expand_as"} & set(targets)
    if name in BY_ROW:
        (picked,) = [n for n in graph.graph.nodes if n.target is operator.getitem and isinstance(n.args[1], tuple)]
        assert picked.args[1][0] == slice(None) and picked.meta["val"].dim() == 2
        assert not {"view", "reshape"} & set(targets)


def test_a_mask_that_is_no_mask_per_sample_stays_as_it_is() -> None:
    model = Picks(lambda m, x: torch.masked_select(x, x > 0))
    with pytest.raises(CaptureError) as caught:
        capture(model, ExampleBatch((cubes(5),)))
    (found,) = [f for f in caught.value.findings if f.severity == "error"]
    assert found.code == "DMT101" and "torch.masked_select(x, x > 0)" in found.reason and "a size" in found.reason


@pytest.mark.parametrize(
    "pick",
    [
        lambda m, x: x[x > 0],
        lambda m, x: torch.masked_select(x, m.column).sum(),
        lambda m, x: torch.nonzero(x).sum() + x,
        lambda m, x: torch.unique(x).sum() + x,
        lambda m, x: x[:, (m.scale > 0).expand(SIDE, SIDE)],
        lambda m, x: x[:, m.trained > 0],
        lambda m, x: torch.masked_select(x, m.trained > 0).view(x.size(0), -1),
    ],
)
def test_other_sizes_that_depend_on_data_are_refused(pick: Any) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(Picks(pick), ExampleBatch((cubes(5),)))
    assert caught.value.findings[0].code == "DMT101"
