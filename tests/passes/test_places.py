"""What is picked by its place out of a join whose features changed: what stands beside them, never what changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.compiler import transform
from dmt_plugin.core.errors import CaptureError, TransformError

Body = Callable[[Any, Tensor], Tensor]
FIELDS, WIDTH = 4, 6


class Stacked(nn.Module):
    """Numbers, then the vectors of all fields."""

    def __init__(self, body: Body, **parts: Any) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(9, WIDTH) for _ in range(FIELDS))
        self.bottom, self.out = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 1)
        for name, value in parts.items():
            setattr(self, name, value)
        self.body = body

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        rows = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        return self.out(self.body(self, torch.stack([self.bottom(dense), *rows], dim=1)))


def transformed(model: nn.Module) -> Any:
    g = torch.Generator().manual_seed(0)
    batch = (torch.randn(5, 3, generator=g), torch.randint(0, 9, (5, FIELDS), generator=g))
    config = {"dmt": {"towers": {"module": "dlrm", "c": 1, "p": 1, "dim": 3}}}
    return transform(model, batch, config, "2x1"), batch


@pytest.mark.parametrize("body", [
    lambda m, x: x[:, 0], lambda m, x: x[:, 1:].sum(1) + x[:, 0],
    lambda m, x: x[:, :1].squeeze(1), lambda m, x: x.select(1, 0), lambda m, x: x.narrow(1, 1, x.size(1) - 1).sum(1),
    lambda m, x: x[:, 1 : x.size(1)].mean(1) * x[:, 0], lambda m, x: x[..., 0, :],
])  # fmt: skip
def test_what_stands_beside_is_read_back(body: Body) -> None:
    model, batch = transformed(Stacked(body))
    kept: list[Tensor] = []
    model.get_submodule("bottom").register_forward_hook(lambda module, args, result: kept.append(result))
    out = model(*batch)
    width = model.get_submodule("bottom").out_features
    x = torch.cat([kept[0].unsqueeze(1), _streams(model, batch)], dim=1)
    assert width == 3 and torch.allclose(out, model.get_submodule("out")(body(model, x)), atol=1e-6)


def _streams(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    found: dict[str, Tensor] = {}
    for tower in ("dmt_towers.group0.tower0", "dmt_towers.group0.tower1"):
        module = model.get_submodule(tower)
        module.register_forward_hook(lambda module, args, result, tower=tower: found.update({tower: result}))
    model(*batch)
    return torch.cat(list(found.values()), dim=1).unflatten(1, (-1, 3))


@pytest.mark.parametrize(("body", "said"), [
    (lambda m, x: x[:, 1], "takes entry 1"), (lambda m, x: x[:, -1], "takes entry -1"),
    (lambda m, x: x[:, 2:].sum(1), "takes the slice"), (lambda m, x: x[:, ::2].sum(1), "takes the slice"),
    (lambda m, x: x[:, : x.size(1) - 2].sum(1), "takes the slice"), (lambda m, x: x.select(1, 2), "takes entry 2"),
    (lambda m, x: x.narrow(1, 0, 3).sum(1), "takes the slice"),
    (lambda m, x: x[:, (0, 1)].sum(1), "index list"), (lambda m, x: x[:, m.every].sum(1), "index list"),
])  # fmt: skip
def test_what_changed_is_not(body: Body, said: str) -> None:
    with pytest.raises(TransformError) as caught:
        transformed(Stacked(body, every=tuple(range(FIELDS + 1))))
    assert any(said in finding.reason for finding in caught.value.findings)


def written(m: Any, x: Tensor) -> Tensor:
    y = torch.zeros(x.size(0), WIDTH)
    y[:, :] = x[:, 0]
    return y + x.sum(1)


def written_through_a_view(m: Any, x: Tensor) -> Tensor:
    y = torch.zeros(x.size(0), WIDTH)
    y.view(-1)[:3] = 1.0
    return y + x.sum(1)


def read_through_a_view(m: Any, x: Tensor) -> Tensor:
    y = torch.zeros(x.size(0), WIDTH)
    view = y[:, 0]
    y[:, 1] = 2.0
    return view.unsqueeze(1) + x.sum(1)


def under_no_grad(m: Any, x: Tensor) -> Tensor:
    y = x.sum(1)
    with torch.no_grad():
        y[:, 0] = 0.0
    return y


def test_assigned_items_are_new_tensors() -> None:
    model, batch = transformed(Stacked(written))
    out = model(*batch)
    out.sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters())


@pytest.mark.parametrize(("body", "code"), [
    (written_through_a_view, "DMT103"), (read_through_a_view, "DMT103"), (under_no_grad, "DMT114"),
])  # fmt: skip
def test_assigned_items_that_are_seen_elsewhere_are_refused(body: Body, code: str) -> None:
    with pytest.raises(CaptureError) as error:
        transformed(Stacked(body))
    assert [f.code for f in error.value.findings if f.severity == "error"] == [code]



def test_a_parameter_of_several_features_stays_behind() -> None:
    class Shared(Stacked):
        def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
            return self.out(torch.stack([t(ids[:, i]) * self.scale for i, t in enumerate(self.tables)], 1).sum(1))

    with pytest.raises(TransformError, match="DMT303"):
        transformed(Shared(written, scale=nn.Parameter(torch.randn(WIDTH))))
