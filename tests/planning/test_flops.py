"""FLOPs of a rewritten model, by part, against formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.config.section import DMTConfig
from dmt_plugin.planning.flops import flops_of
from dmt_plugin.planning.variants import Rewriter, Way
from dmt_plugin.topology.shape import Topology
from tests.planning.models import DENSE, batch, dots

FEATURES, WIDTH, HIDDEN = 8, 16, 64
PAIRS = (FEATURES + 1) * FEATURES // 2


def counted(model: nn.Module, example: object, towers: dict[str, object], features: int = FEATURES):
    way = Way("", {"towers": towers, "comm": {"dedup": "off"}})
    del features
    return Rewriter(model, example, DMTConfig(), {}).variant(way, Topology(2, 1), 4).flops


def dlrm(streams: int, width: int) -> tuple[float, float]:
    """Forward and backward of the dense part; no gradient goes back to what the bottom MLP reads."""
    pairs = (streams + 1) * streams // 2
    # Shape repair gives the bottom MLP's last layer the towers' width.
    bottom, top = [DENSE * HIDDEN, HIDDEN * width], [(pairs + width) * HIDDEN, HIDDEN]
    products = (streams + 1) ** 2 * width
    forward = 2 * (sum(bottom) + sum(top) + products)
    return forward, 2 * forward - 2 * bottom[0]


def test_the_flat_model() -> None:
    found = counted(dots(FEATURES, WIDTH, hidden=HIDDEN), batch(FEATURES), {"module": "none"})
    assert found.dense == dlrm(FEATURES, WIDTH) and found.towers == (0, 0) and found.unknown == ()
    assert found.saved > 4 * FEATURES * WIDTH


def test_tower_modules_apart_from_what_is_behind_them() -> None:
    found = counted(dots(FEATURES, WIDTH, hidden=HIDDEN), batch(FEATURES), {"module": "dlrm", "dim": 8})
    assert found.towers == (2 * FEATURES * WIDTH * 8, 4 * FEATURES * WIDTH * 8)
    assert found.dense == dlrm(FEATURES, 8)


class Chooses(nn.Module):
    """A layer behind an operation that needs values."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(10, 4) for _ in range(4))
        self.top = nn.Linear(16, 1)

    def forward(self, ids: Tensor) -> Tensor:
        rows = torch.cat([table(ids[:, f]) for f, table in enumerate(self.tables)], dim=1)
        return self.top(torch.where(torch.isfinite(rows), rows, torch.zeros_like(rows)))


def test_weights_may_be_there_and_are_not_read() -> None:
    model = Chooses()
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))
    found = counted(model, (torch.zeros(4, 4, dtype=torch.long),), {"module": "none"})
    assert found.dense == (2 * 16, 4 * 16)


def test_frozen_layers_get_no_gradient() -> None:
    model = dots(FEATURES, WIDTH, hidden=HIDDEN)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found = counted(model, batch(FEATURES), {"module": "none"})
    assert found.dense[0] == dlrm(FEATURES, WIDTH)[0]
    # Only what leads back to the rows: no table is trained, and nothing is computed for them.
    assert found.dense[1] == 0


def test_operations_that_cannot_run_are_named() -> None:
    way = Way("", {"towers": {"module": "none"}, "comm": {"dedup": "off"}})
    variant = Rewriter(dots(), batch(), DMTConfig(), {}).variant(way, Topology(2, 1), 4)
    logical = variant.placed.logical
    node = next(n for n in logical.graph.nodes if n.target is torch.bmm)

    def refuses(*_: object) -> Tensor:
        raise RuntimeError("needs values")

    node.target = refuses
    found = flops_of(logical)
    assert found.unknown == (node.name,)
    assert found.dense[0] == pytest.approx(dlrm(8, 16)[0] - 2 * 81 * 16)
