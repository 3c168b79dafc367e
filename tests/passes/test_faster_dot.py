"""The faster dot interaction is found in every spelling that is proven, and computes what it replaced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.model.placed import PlacedGraph, place_graph
from dmt_plugin.nn.pair_products import pair_products
from dmt_plugin.passes.base import PassResult
from dmt_plugin.passes.rank import faster_dot
from dmt_plugin.topology.shape import Topology
from tests._util.simulated import SimulatedWorld
from tests.passes.flat import ids
from tests.passes.world import Step, differences, run_placed, settings, towered

FEATURES, WIDTH = 5, 4
PAIRS = torch.tril_indices(FEATURES, FEATURES, -1)
Pick = Callable[[Tensor, Tensor, "Dots"], Tensor]


class Dots(nn.Module):
    """Dot interaction of looked-up vectors ``(B, F, N)``, written by ``dot``, and a layer on top."""

    def __init__(self, dot: Pick, saved: bool = False) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(10, WIDTH, mode="sum") for _ in range(FEATURES))
        self.dot = dot
        self.register_buffer("pairs", PAIRS.clone(), persistent=saved)
        self.register_buffer("mask", torch.ones(FEATURES, FEATURES).triu(1).bool(), persistent=saved)
        self.index = nn.Parameter(PAIRS[0].clone(), requires_grad=False)
        self.top = nn.Linear(PAIRS.shape[1], 1)

    def forward(self, index: Tensor) -> Tensor:
        x = torch.stack([table(index[:, f : f + 1]) for f, table in enumerate(self.tables)], dim=1)
        return self.top(self.dot(x, x.transpose(1, 2), self))


LISTS = PAIRS.tolist()
COLUMNS = (PAIRS % WIDTH).tolist()
"""With squares and pairs that are listed twice."""
SPELLINGS: dict[str, Pick] = {
    "bmm": lambda x, t, m: torch.bmm(x, t)[:, m.pairs[0], m.pairs[1]],
    "bmm by name": lambda x, t, m: torch.bmm(input=x, mat2=t)[:, m.pairs[0], m.pairs[1]],
    "method": lambda x, t, m: x.bmm(t)[:, m.pairs[0], m.pairs[1]],
    "matmul": lambda x, t, m: torch.matmul(x, x.transpose(-1, -2))[:, m.pairs[0], m.pairs[1]],
    "operator": lambda x, t, m: (x @ x.mT)[:, m.pairs[0], m.pairs[1]],
    "permute": lambda x, t, m: torch.bmm(x, x.permute(0, 2, 1))[:, m.pairs[0], m.pairs[1]],
    "transposed before": lambda x, t, m: torch.bmm(t.transpose(1, 2), t)[:, m.pairs[0], m.pairs[1]],
    "einsum": lambda x, t, m: torch.einsum("bik,bjk->bij", x, x)[:, m.pairs[0], m.pairs[1]],
    "lists": lambda x, t, m: torch.bmm(x, t)[:, LISTS[0], LISTS[1]],
    "swapped": lambda x, t, m: torch.bmm(x, t)[:, m.pairs[1], m.pairs[0]],
    "of the columns": lambda x, t, m: torch.bmm(t, x)[:, COLUMNS[0], COLUMNS[1]],
    "mask": lambda x, t, m: torch.bmm(x, t)[:, m.mask],
    "masked_select": lambda x, t, m: torch.masked_select(torch.bmm(x, t), m.mask).view(-1, PAIRS.shape[1]),
}
REFUSED: dict[str, Pick] = {
    "another tensor": lambda x, t, m: torch.bmm(x, (2 * x).transpose(1, 2))[:, m.pairs[0], m.pairs[1]],
    "changed between": lambda x, t, m: torch.bmm(x, t).relu()[:, m.pairs[0], m.pairs[1]],
    "written into": lambda x, t, m: torch.bmm(x, t).mul_(2)[:, m.pairs[0], m.pairs[1]],
    "an index that is a parameter": lambda x, t, m: torch.bmm(x, t)[:, m.index, m.pairs[1]],
    "an index of the batch": lambda x, t, m: torch.bmm(x, t)[:, m.pairs[0] + _zero(x), m.pairs[1]],
    "counted from the end": lambda x, t, m: torch.bmm(x, t)[:, [i - FEATURES for i in LISTS[0]], LISTS[1]],
    "indices of two dimensions": lambda x, t, m: torch.bmm(x, t)[:, m.pairs[0][:, None], m.pairs[1][:1]].flatten(1),
    "a scaled product": lambda x, t, m: torch.baddbmm(torch.zeros(1), x, t)[:, m.pairs[0], m.pairs[1]],
    "one position": lambda x, t, m: torch.bmm(x, t)[:, 1, m.pairs[0]],
}
BOTH = {
    "also read whole": lambda x, t, m: _with_sum(torch.bmm(x, t), m),
    "of two tensors of one size": lambda x, t, m: torch.bmm(x, x[:, :, :WIDTH].sin().transpose(1, 2))[:, m.mask],
}


def _zero(x: Tensor) -> Tensor:
    return (x[0, 0, 0] * 0).long()


def _with_sum(product: Tensor, model: Dots) -> Tensor:
    return product[:, model.pairs[0], model.pairs[1]] + product.sum((1, 2)).unsqueeze(1)


def graph_of(
    dot: Pick, towers: dict[str, Any] | None = None, saved: bool = False, **dmt: Any
) -> tuple[PlacedGraph, PassResult]:
    torch.manual_seed(0)
    config = settings(towers=towers or {"module": "none"}, **dmt)
    logical = towered(Dots(dot, saved), (ids(FEATURES, 5),), "2x2", config)
    placed = place_graph(logical, config, Topology(2, 2), 0)
    (result,) = [r for r in placed.passes if r.name == "faster_dot"]
    return placed, result


def count(placed: PlacedGraph, target: Any) -> int:
    return sum(node.target is target for node in placed.graph_module.graph.nodes)


def ranks_of(dot: Pick, towers: dict[str, Any], **dmt: Any) -> tuple[list[Step], list[str]]:
    torch.manual_seed(0)
    config = settings(towers=towers, **dmt)
    logical = towered(Dots(dot), (ids(FEATURES, 5),), "2x2", config)
    batches = [(ids(FEATURES, n, seed=rank),) for rank, n in enumerate((3, 1, 0, 4))]
    steps = run_placed(logical, config, SimulatedWorld(Topology(2, 2)), batches)
    return steps, differences(logical, steps, batches)


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_is_found_and_equals_the_logical_graph(name: str) -> None:
    blocks = {"comm": {"micro_blocks": 1}}
    placed, result = graph_of(SPELLINGS[name], **blocks)
    assert (result.matched, result.changed) == (1, 1)
    assert count(placed, pair_products) == 1
    assert not count(placed, torch.bmm) + count(placed, torch.matmul) + count(placed, torch.einsum)
    fast, wrong = ranks_of(SPELLINGS[name], {"module": "none"}, **blocks)
    assert wrong == []
    slow, wrong = ranks_of(SPELLINGS[name], {"module": "none"}, transform={"faster_dot": False}, **blocks)
    assert wrong == []
    for a, b in zip(fast, slow, strict=True):
        assert torch.equal(a.output, b.output)
        for table in a.tables:
            assert torch.allclose(a.tables[table], b.tables[table], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["bmm", "lists", "mask"])
def test_behind_tower_modules(name: str) -> None:
    towers = {"module": "dlrm", "c": 1, "p": 1, "dim": 3}
    assert graph_of(SPELLINGS[name], towers, comm={"micro_blocks": 1})[1].changed == 1
    assert ranks_of(SPELLINGS[name], towers)[1] == []


def test_blocks_of_a_batch_share_their_indices() -> None:
    placed, result = graph_of(SPELLINGS["bmm"], comm={"micro_blocks": 2})
    assert result.changed == count(placed, pair_products) == 2
    names = [n for n in placed.graph_module._buffers if n.startswith(faster_dot.BUFFERS)]
    assert len(names) == 3  # both halves of the pairs, and which pair an entry of the product belongs to
    assert ranks_of(SPELLINGS["bmm"], {"module": "none"}, comm={"micro_blocks": 2})[1] == []


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_proven_stays(name: str) -> None:
    placed, result = graph_of(REFUSED[name])
    assert result.changed == 0 and count(placed, pair_products) == 0


@pytest.mark.parametrize("name", BOTH)
def test_products_that_are_something_else_stay(name: str) -> None:
    placed, result = graph_of(BOTH[name])
    assert result.changed == 0 and count(placed, pair_products) == 0


def test_indices_that_a_state_can_replace_stay() -> None:
    for name in ("bmm", "mask"):
        result = graph_of(SPELLINGS[name], saved=True, comm={"micro_blocks": 1})[1]
        assert (result.matched, result.changed) == (1, 0)
    assert graph_of(SPELLINGS["lists"], saved=True, comm={"micro_blocks": 1})[1].changed == 1


def test_the_state_is_as_before() -> None:
    on, _ = graph_of(SPELLINGS["bmm"])
    off, result = graph_of(SPELLINGS["bmm"], transform={"faster_dot": False})
    assert (result.matched, result.changed, result.note) == (0, 0, "switched off")
    assert list(on.graph_module.state_dict()) == list(off.graph_module.state_dict())


def test_the_logical_graph_is_untouched() -> None:
    config = settings(towers={"module": "none"})
    logical = towered(Dots(SPELLINGS["bmm"]), (ids(FEATURES, 5),), "2x2", config)
    before = str(logical.graph)
    place_graph(logical, config, Topology(2, 2), 0)
    assert str(logical.graph) == before


@pytest.mark.parametrize("mutation", ["other pairs", "another source"])
def test_a_mutated_rewrite_is_seen(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if mutation == "other pairs":
        whole = faster_dot._pairs

        def rolled(*args: Any) -> Any:
            found = whole(*args)
            return found and (found[0], found[1].roll(1))

        monkeypatch.setattr(faster_dot, "_pairs", rolled)
        dot = SPELLINGS["bmm"]
    else:
        monkeypatch.setattr(faster_dot, "_untransposed", lambda node, tokens: (None, None))
        dot = REFUSED["another tensor"]
    wrong = ranks_of(dot, {"module": "none"}, comm={"micro_blocks": 1})[1]
    assert "outputs" in wrong
