"""Pieces that are cut out of a concatenation at the borders of its parts become these parts; others stay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from dmt_plugin.capture import ExampleBatch, capture
from dmt_plugin.compiler import transform
from dmt_plugin.config.section import DMTConfig
from dmt_plugin.passes.base import PassContext, run_passes
from dmt_plugin.passes.logical.undo_cuts import UndoCuts
from dmt_plugin.passes.ops.names import name_of
from dmt_plugin.topology.shape import Topology

N = 4


class Cuts(nn.Module):
    """A function of six vectors side by side; ``x`` also has a part that is cut in no vectors."""

    def __init__(self, function: Callable[[list[Tensor], Tensor], Any]) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(9, N) for _ in range(6))
        self.function = function

    def forward(self, dense: Tensor, ids: Tensor) -> Any:
        vectors = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        return self.function(vectors, dense)


def whole(v: list[Tensor], *more: Tensor) -> Tensor:
    return torch.cat([*more, *v], dim=1)


def undone(function: Callable[[list[Tensor], Tensor], Any], module: str = "dlrm") -> tuple[fx.GraphModule, nn.Module]:
    model = Cuts(function)
    captured = capture(model, ExampleBatch(batch(5)))
    ctx = PassContext(captured, DMTConfig.model_validate({"towers": {"module": module}}), Topology(2, 1))
    ctx.tags |= {"regroups_spelled"}
    run_passes([UndoCuts()], ctx)
    return ctx.gm, model


def batch(n: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(n)
    return torch.randn(n, 3, generator=g), torch.randint(0, 9, (n, 6), generator=g)


def cuts_of(gm: fx.GraphModule) -> list[str]:
    names = ("split", "split_with_sizes", "chunk", "narrow", "tensor_split")
    slices = [n.name for n in gm.graph.nodes if name_of(n) == "getitem" and name_of(n.args[0]) == "cat"]
    return [n.name for n in gm.graph.nodes if name_of(n) in names] + slices


Function = Callable[[list[Tensor], Tensor], Any]

UNDONE: dict[str, Function] = {
    "split": lambda v, d: list(whole(v).split([8, 16], 1)),
    "split by one size": lambda v, d: list(torch.split(whole(v), 12, dim=1)),
    "uneven last": lambda v, d: list(whole(v).split(16, -1)),
    "chunk": lambda v, d: list(whole(v).chunk(3, dim=1)),
    "narrow": lambda v, d: whole(v).narrow(1, 8, 12),
    "slice": lambda v, d: whole(v)[:, 8:],
    "negative slice": lambda v, d: whole(v)[:, -8:],
    "ellipsis": lambda v, d: whole(v)[..., :8],
    "dense part": lambda v, d: (whole(v, d)[:, :3], whole(v, d)[:, 3:]),
    "a cut of a cut": lambda v, d: whole(v)[:, 4:20][:, 4:12],
    "across a joined part": lambda v, d: torch.cat([whole(v[:2]), whole(v[2:])], 1)[:, 4:12],
    "pieces joined again": lambda v, d: torch.cat([whole(v)[:, 12:], whole(v)[:, :12]], 1)[:, 8:16],
    "all of it": lambda v, d: whole(v).narrow(1, 0, 24),
    "stacked": lambda v, d: torch.cat([e.unsqueeze(1) for e in v], 1)[:, 1:3],
    "stacked pieces": lambda v, d: torch.stack(whole(v).split(8, 1), 1),
}


@pytest.mark.parametrize("name", list(UNDONE))
def test_cuts_at_borders(name: str) -> None:
    gm, model = undone(UNDONE[name])
    assert cuts_of(gm) == []
    for n in (1, 4):
        a, b = (torch.utils._pytree.tree_leaves(m(*batch(n))) for m in (gm, model))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


KEPT: dict[str, Function] = {
    "inside a vector": lambda v, d: whole(v)[:, 2:10],
    "a step": lambda v, d: whole(v)[:, ::2],
    "fields one by one beside the whole": lambda v, d: (whole(v).split(4, 1), whole(v)),
    "the batch": lambda v, d: whole(v)[1:],
    "no concatenation": lambda v, d: torch.relu(whole(v))[:, :8],
    "one size inside vectors": lambda v, d: whole(v).chunk(4, 1)[0][:, :3],
}


@pytest.mark.parametrize("name", list(KEPT))
def test_other_cuts_stay(name: str) -> None:
    gm, model = undone(KEPT[name] if "one by one" not in name else one_by_one)
    assert cuts_of(gm) or name in ("no concatenation", "one size inside vectors")
    a, b = (torch.utils._pytree.tree_leaves(m(*batch(4))) for m in (gm, model))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def one_by_one(v: list[Tensor], d: Tensor) -> Any:
    x = whole(v)
    return x.split(4, 1)[0], x


def test_nothing_where_the_numbers_are_kept() -> None:
    gm, _ = undone(UNDONE["split"], module="none")
    assert cuts_of(gm)


def test_halves_of_a_plain_model_are_two_groups() -> None:
    class Halves(Cuts):
        def __init__(self) -> None:
            super().__init__(lambda v, d: whole(v, d))
            self.user, self.item = nn.Linear(15, 3), nn.Linear(12, 3)

        def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
            user, item = super().forward(dense, ids).split([15, 12], 1)
            return (self.user(user) * self.item(item)).sum(1)

    towers = transform(Halves(), batch(5), {"dmt": {"towers": {"module": "dlrm", "c": 1, "p": 0, "dim": 2}}}, "2x1")
    assert [(g.form, len(g.features)) for g in towers.plan.groups] == [("native", 3), ("native", 3)]
    assert {r.what for r in towers.repairs if r.target in ("user", "item")} == {
        "in_features 15 -> 9", "in_features 12 -> 6"
    }  # fmt: skip
