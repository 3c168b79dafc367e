"""Graphs as plain data: kinds, parts of the model, levels, lines of text."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from dmt_plugin.capture import ExampleBatch, capture
from dmt_plugin.report.explain.graph_data import condensed, kinds_of, node_lines


class Model(nn.Module):
    """Two towers of layers with functional steps between them, a learned vector, and one part that is met twice."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(9, 4) for _ in range(3))
        self.bottom = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
        self.mix = nn.Linear(4, 4)
        self.top = nn.ModuleList(nn.Linear(16, 16) for _ in range(layers))
        self.shift = nn.Parameter(torch.zeros(16))

    def forward(self, dense: Tensor, ids: Tensor) -> Tensor:
        """``(B, 4)`` and ids ``(B, 3)`` to ``(B,)``."""
        ids = ids.long() % 9
        x = torch.relu(self.bottom(dense))
        vectors = [self.mix(table(ids[:, i])) for i, table in enumerate(self.tables)]
        flat = torch.cat([self.mix(x), *vectors], dim=1) + self.shift
        for layer in self.top:
            flat = torch.relu(layer(flat)) + flat.reshape(dense.size(0), -1)
        return flat.sum(1)


def graph(layers: int = 2) -> tuple[torch.fx.GraphModule, int]:
    example = ExampleBatch((torch.randn(4, 4), torch.zeros(4, 3)))
    captured = capture(Model(layers), example)
    return captured.graph_module, captured.batch_size


def test_kinds() -> None:
    gm, _ = graph()
    kinds = {n.name: k for n, k in kinds_of(gm).items()}
    assert kinds["tables_0"] == "lookup" and kinds["bottom_0"] == "dense" and kinds["cat"] == "interaction"
    assert kinds["shift"] == "constant"  # says how, not what
    assert {kinds[n.name] for n in gm.graph.nodes if n.target == "size"} == {"size"}
    before = {n.name for t in gm.graph.nodes if kinds[t.name] == "lookup" for n in t.all_input_nodes}
    assert {kinds[name] for name in before} == {"input"}


@pytest.mark.parametrize("layers", [2, 30])
def test_condensed(layers: int) -> None:
    gm, batch = graph(layers)
    data = condensed(gm, batch)
    boxes = nx.DiGraph([(e["source"], e["target"]) for e in data["edges"]])
    assert nx.is_directed_acyclic_graph(boxes)
    assert set(boxes) == {n["id"] for n in data["nodes"]}
    labels = [n["label"] for n in data["nodes"]]
    assert len(labels) < 20 and {"dense", "ids", "bottom", "top", "output"} <= set(labels)
    assert [n["note"] for n in data["nodes"] if n["kind"] == "lookup"] == ["(B, 4)"] * 3
    # What is given, not what is made of it on the way to the lookups.
    inputs = {n["label"]: n["note"] for n in data["nodes"] if n["kind"] == "input"}
    assert inputs == {"dense": "(B, 4)", "ids": "(B, 3)"}


def test_what_is_left_and_entered_again_stays_apart() -> None:
    gm, batch = graph()
    data = condensed(gm, batch)
    mixes = [n for n in data["nodes"] if n["label"] == "mix"]
    assert len(mixes) == 4  # one beside the dense part, one behind each table


def test_lines_are_those_around_the_lookups() -> None:
    gm, batch = graph()
    lines = node_lines(gm, batch)
    assert lines[0][1].startswith("module tables.") and ("cat", "function cat", "(B, 16)") in lines
    assert not [name for name, _, _ in lines if name.startswith("bottom")]


def test_towers_and_decoders_are_told_apart() -> None:
    import dmt_plugin

    class Chunks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Embedding(9, 4) for _ in range(6))
            self.top = nn.Linear(24, 1)

        def forward(self, ids: Tensor) -> Tensor:
            joined = torch.stack([table(ids[:, i]) for i, table in enumerate(self.tables)], dim=1)
            return self.top(torch.cat(joined.chunk(6, dim=1), dim=1).flatten(1))

    config = {"dmt": {"transform": {"on_unsupported": "decoder"}}}
    towers = dmt_plugin.transform(Chunks(), (torch.zeros(4, 6, dtype=torch.long),), config, "2x1")
    data = condensed(towers.__dict__["graph_module"], towers.batch_size)
    named = {kind: [n["label"] for n in data["nodes"] if n["kind"] == kind] for kind in ("tower", "decoder")}
    assert named == {k: [f"group0.{k}0", f"group0.{k}1"] for k in ("tower", "decoder")}
