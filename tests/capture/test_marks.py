"""The marker computes nothing, wherever it runs, and is one node under a tracer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from dmt_plugin import ExampleBatch, mark_embeddings
from dmt_plugin.capture import capture
from tests.capture.test_capture import captured


class Marked(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.tables = nn.ModuleList(nn.Embedding(10, 4) for _ in range(3))
        self.head = nn.Linear(12, 1)

    def forward(self, ids: Tensor) -> Tensor:
        vectors = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        keys = ["user", "item", "shop"]
        if self.form == "list":
            vectors = mark_embeddings("deep", vectors, keys)
        elif self.form == "tuple":
            first, *others = mark_embeddings("deep", tuple(vectors), keys=keys)
            vectors = [first, *others]
        elif self.form == "tensor":
            return self.head(mark_embeddings("deep", torch.stack(vectors, 1), keys).flatten(1))
        return self.head(torch.cat(vectors, dim=1))


IDS = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [0, 1, 2], [3, 3, 3]])


@pytest.mark.parametrize("form", ["list", "tuple", "tensor"])
def test_it_is_nothing_but_one_node(form: str) -> None:
    torch.manual_seed(0)
    model, plain = Marked(form), Marked("")
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model(IDS), plain(IDS))
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(IDS), plain(IDS))
    assert torch.equal(torch.export.export(model, (IDS,)).module()(IDS), plain(IDS))
    graph = captured(model, IDS)
    (node,) = [n for n in graph.graph.nodes if n.target is mark_embeddings]
    assert node.args[0] == "deep" and list(node.args[2]) == ["user", "item", "shop"]
    assert torch.equal(graph(IDS), plain(IDS))


def test_it_hands_back_what_it_got() -> None:
    tensors = [torch.zeros(2, 3), torch.ones(2, 3)]
    assert mark_embeddings("a", tensors) is tensors
    assert mark_embeddings("a", tensors[0], ["x"]) is tensors[0]


def test_an_ordinary_tracer_sees_it_too() -> None:
    class Joint(nn.Module):
        def forward(self, vectors: Tensor) -> Tensor:
            return mark_embeddings("deep", vectors, ("a", "b")).flatten(1)

    graph = fx.symbolic_trace(Joint())
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"] == [mark_embeddings]
    assert torch.equal(graph(torch.ones(2, 2, 3)), torch.ones(2, 6))


@pytest.mark.parametrize(
    ("embeddings", "keys", "says"),
    [
        ([torch.zeros(2, 3)] * 2, ["a"], "1 keys for 2 feature"),
        (torch.zeros(2, 5, 3), ["a", "b"], "2 keys for 5 feature"),
        ([torch.zeros(2, 3)] * 2, ["a", "a"], "twice"),
    ],
)
def test_keys_that_do_not_fit(embeddings: Any, keys: list[str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        mark_embeddings("deep", embeddings, keys)

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            given = [x * 1 for _ in embeddings] if isinstance(embeddings, list) else x.unsqueeze(1).expand(-1, 5, -1)
            return sum(mark_embeddings("deep", given, keys))  # type: ignore[return-value]

    with pytest.raises(RuntimeError, match=says):
        capture(Model(), ExampleBatch((torch.zeros(2, 3),)))
