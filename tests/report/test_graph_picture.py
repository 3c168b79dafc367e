"""Pictures of graphs: layout laws, folding, joining of ranks."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_plugin.report.explain.graph_picture import KINDS, Edge, Graph, Node, picture_of_graph
from dmt_plugin.report.explain.layered_layout import layout
from dmt_plugin.report.explain.rank_graphs import beside_each_other, without_plumbing


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, tuple[float, float]], list[tuple[str, str]], dict[str, str | None]]:
    count = draw(st.integers(1, 12))
    names = [f"n{i}" for i in range(count)]
    sizes = {name: (draw(st.sampled_from([40.0, 90.0, 160.0])), 30.0) for name in names}
    pairs = list(combinations(names, 2))
    edges = draw(st.lists(st.sampled_from(pairs), max_size=20, unique=True)) if pairs else []
    columns = {name: draw(st.sampled_from([None, "host 0", "host 1"])) for name in names}
    return sizes, edges, columns


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_layout_laws(case: tuple) -> None:
    sizes, edges, columns = case
    placed = layout(sizes, edges, columns)
    boxes = {
        name: (x - sizes[name][0] / 2, y - sizes[name][1] / 2, x + sizes[name][0] / 2, y + sizes[name][1] / 2)
        for name, (x, y) in placed.centre.items()
    }
    for left, top, right, bottom in boxes.values():
        assert left >= -1e-6 and right <= placed.width + 1e-6
        assert top >= -1e-6 and bottom <= placed.height + 1e-6
    for a, b in combinations(boxes.values(), 2):  # no two nodes touch
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    for source, target in edges:  # edges go down
        assert placed.centre[source][1] < placed.centre[target][1]
        assert placed.routes[source, target][0] == placed.centre[source]
        assert placed.routes[source, target][-1] == placed.centre[target]
    for name, column in columns.items():
        if column is not None:
            band = placed.bands[column]
            assert band.left - 1e-6 <= boxes[name][0] and boxes[name][2] <= band.right + 1e-6


def test_layout_refuses_cycles_and_strangers() -> None:
    sizes = {"a": (10.0, 10.0), "b": (10.0, 10.0)}
    with pytest.raises(ValueError, match="cycle"):
        layout(sizes, [("a", "b"), ("b", "a")], {})
    with pytest.raises(ValueError, match="do not exist: c"):
        layout(sizes, [("a", "c")], {})


def star(count: int) -> Graph:
    nodes = [Node("in", "ids", "input"), *(Node(f"t{i}", f"table {i}", "lookup") for i in range(count))]
    nodes.append(Node("out", "stack", "interaction", note="(B, 9)"))
    return Graph(nodes, [Edge("in", f"t{i}") for i in range(count)] + [Edge(f"t{i}", "out") for i in range(count)])


def test_parallel_twins_fold() -> None:
    folded = star(5).folded(4)
    assert [node.label for node in folded.nodes] == ["ids", "5 \u00d7 embedding lookup", "stack"]
    assert folded.nodes[1].count == 5 and "table 4" in folded.nodes[1].note
    assert folded.edges == [Edge("in", "t0"), Edge("t0", "out")]
    assert len(star(3).folded(4).nodes) == 5


def test_picture_is_a_file_of_its_own() -> None:
    svg = picture_of_graph(star(6), fold=0, title="a <model>")
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("svg")
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "table 5" in texts and "(B, 9)" in texts and KINDS["lookup"] in texts
    assert svg.count('class="edge"') == 12
    assert "prefers-color-scheme:dark" in svg
    assert set(re.findall(r"https?://[^\"]*", svg)) == {"http://www.w3.org/2000/svg"}


def test_long_texts_are_shortened_but_kept_for_the_pointer() -> None:
    long = "x" * 80
    svg = picture_of_graph(Graph([Node("a", long, "dense")], []))
    assert f">{long}<" not in svg.replace("<title>", "").replace(f"{long}</title>", "") and long in svg


def test_from_dict() -> None:
    data = {
        "nodes": [{"id": "a", "label": "A", "kind": "input"}, {"id": "b", "label": "B", "kind": "output", "note": "n"}],
        "edges": [{"source": "a", "target": "b"}, ["a", "b"]],
    }
    graph = Graph.from_dict(data)
    assert graph.edges == [Edge("a", "b"), Edge("a", "b")] and graph.nodes[1].note == "n"
    with pytest.raises(ValueError, match="'widget'"):
        Graph.from_dict({"nodes": [{"id": "a", "label": "A", "kind": "widget"}], "edges": []})


def rank_graph(tower: str) -> Graph:
    nodes = [
        Node("0", "ids", "input"),
        Node("1", "index", "exchange"),
        Node("2", "lookup", "lookup", note="(B, 4)"),
        Node("3", "getattr", "interaction"),
        Node("4", tower, "tower"),
        Node("5", "peers", "exchange"),
        Node("6", "top", "interaction", note="(B)"),
        Node("7", "pairs", "dense", note="(2, 3)"),
    ]
    edges = [("0", "1"), ("1", "2"), ("1", "3"), ("2", "4"), ("3", "4"), ("4", "5"), ("3", "5"), ("5", "6"), ("7", "6")]
    return Graph(nodes, [Edge(*edge) for edge in edges])


def test_plumbing_goes() -> None:
    plain = without_plumbing(rank_graph("tower 0"))
    assert [node.label for node in plain.nodes] == ["ids", "index", "lookup", "tower 0", "peers", "top"]
    assert {(e.source, e.target) for e in plain.edges} == {("0", "1"), ("1", "2"), ("2", "4"), ("4", "5"), ("5", "6")}


def test_ranks_beside_each_other() -> None:
    joined = beside_each_other({f"host {h}": without_plumbing(rank_graph(f"tower {h}")) for h in (0, 1)})
    columns = {node.label: node.column for node in joined.nodes if node.kind in ("tower", "exchange", "input")}
    assert columns == {"ids": None, "index": None, "peers": None, "tower 0": "host 0", "tower 1": "host 1"}
    assert len(joined.nodes) == 4 + 2 * 2
    assert len(joined.edges) == 2 + 2 * 3
    picture_of_graph(joined)


def towers(features: int, count: int) -> Graph:
    nodes = [Node("dense", "x", "input"), Node("out", "cat", "interaction")]
    edges = []
    for f in range(features):
        tower = f"t{f % count}"
        nodes += [Node(f"i{f}", f"ids_{f}", "input"), Node(f"e{f}", f"emb.{f}", "lookup", note=f"(B, {2 ** (f % 3)})")]
        edges += [(f"i{f}", f"e{f}"), (f"e{f}", tower)]
    for t in range(count):
        nodes.append(Node(f"t{t}", f"group0.tower{t}", "tower"))
        edges.append((f"t{t}", "out"))
    return Graph(nodes, [Edge(*edge) for edge in edges] + [Edge("dense", "out")])


def test_features_fold_by_tower() -> None:
    folded = towers(12, 2).folded(4)
    labels = sorted(node.label for node in folded.nodes)
    six = "6 \u00d7 "
    stacks = [six + "embedding lookup"] * 2 + [six + "input"] * 2
    assert labels == [*stacks, "cat", "group0.tower0", "group0.tower1", "x"]
    lookups = [node for node in folded.nodes if node.kind == "lookup"]
    assert {node.note for node in lookups} == {"emb\n(B, 1), (B, 4), (B, 2)", "emb\n(B, 2), (B, 1), (B, 4)"}
    assert {node.more for node in lookups} == {", ".join(f"emb.{f}" for f in range(t, 12, 2)) for t in (0, 1)}


def test_many_towers_fold_with_their_features() -> None:
    folded = towers(24, 8).folded(4)
    assert sorted((node.kind, node.count) for node in folded.nodes) == [
        ("input", 1), ("input", 24), ("interaction", 1), ("lookup", 24), ("tower", 8),
    ]  # fmt: skip
    picture_of_graph(folded)


def test_nodes_of_other_depth_do_not_fold() -> None:
    names = [f"r{i}" for i in range(6)]
    graph = Graph([Node(n, "relu", "dense") for n in names], [Edge(a, b) for a, b in pairwise(names)])
    assert len(graph.folded(2).nodes) == 6


def test_a_long_edge_passes_a_layer_beside_its_nodes() -> None:
    sizes = {"a": (60.0, 30.0), "b": (60.0, 90.0), "c": (60.0, 30.0)}
    placed = layout(sizes, [("a", "b"), ("b", "c"), ("a", "c")], {})
    (_, first, second, _) = placed.routes["a", "c"]
    x, y = placed.centre["b"]
    assert first[0] == second[0] and second[1] - first[1] == 90.0 == 2 * (y - first[1])
    assert abs(first[0] - x) > 30.0


def test_pictures_of_one_page_do_not_share_ids() -> None:
    first, second = (picture_of_graph(star(2), name=name) for name in ("one", "two"))
    assert 'id="one-tip"' in first and "url(#one-tip)" in first and "one-tip" not in second
