"""Which part of a step each node of a placed graph belongs to."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from benchmarks.step.breakdown_parts import Where, exchange_kind, where_in_graph
from dmt_plugin.model.placed import PlacedModel, place
from dmt_plugin.topology.shape import Topology
from tests.passes.test_place import DLRM, case

NONE = {"module": "none"}


def placed(towers: dict[str, Any], topology: str = "2x2", **comm: Any) -> tuple[PlacedModel, Any]:
    logical, config, batches = case("dlrm", topology, towers, comm=comm)
    return place(logical, config, Topology.parse(topology), 0), batches[0]


def named(found: dict[torch.fx.Node, Where], name: str) -> list[torch.fx.Node]:
    return [node for node in found if getattr(node.target, "__name__", "") == name]


@pytest.mark.parametrize(
    ("towers", "route", "expected"),
    [
        (NONE, "flat", {"index", "lookup", "global", "dense"}),
        (NONE, "hierarchical", {"index", "lookup", "intra", "peer", "dense"}),
        (DLRM, "hierarchical", {"index", "lookup", "intra", "tower", "peer", "dense"}),
        (DLRM, "flat", {"index", "lookup", "global", "tower", "dense"}),
    ],
)
def test_every_node_has_its_part(towers: dict[str, Any], route: str, expected: set[str]) -> None:
    model, _ = placed(towers, route=route)
    found = where_in_graph(model.graph)
    assert set(found) == set(model.graph.nodes)
    assert {where.part for where in found.values()} == expected
    for node, where in found.items():
        target = str(node.target)
        if target.startswith("dmt_exchange."):
            assert where.part == exchange_kind(target.split(".")[1]) and where.detail == target.split(".")[2]
        if target.startswith(("dense", "bottom", "over", "top")) and node.op == "call_module":
            assert where.part == "dense", target


@pytest.mark.parametrize("blocks", [1, 3])
def test_a_batch_in_blocks_has_the_same_parts(blocks: int) -> None:
    model, _ = placed(DLRM, route="hierarchical", micro_blocks=blocks)
    found = where_in_graph(model.graph)
    count = Counter(where for where in found.values() if where.detail in ("start", "wait"))
    assert count == {
        Where("index", "start"): 1, Where("index", "wait"): 1,
        **{Where(part, end): blocks for part in ("intra", "peer") for end in ("start", "wait")},
    }  # fmt: skip
    moved = [node for name in ("cut_rows", "cut_batch", "join_rows") for node in named(found, name)]
    assert bool(moved) == (blocks > 1)
    assert {found[node].part for node in moved} <= {"intra", "dense"}


@pytest.mark.parametrize("blocks", [1, 2])
def test_rows_that_travel_once(blocks: int) -> None:
    model, _ = placed(NONE, route="hierarchical", dedup="on", micro_blocks=blocks)
    found = where_in_graph(model.graph)
    ends = Counter(where for where in found.values() if where.detail in ("start", "wait", "spread", "expand"))
    assert ends == {
        Where("index", "start"): 1, Where("index", "wait"): 1,
        **{Where(part, end): blocks for part in ("intra", "peer") for end in ("start", "wait")},
        **{Where("distinct", end): blocks for end in ("spread", "expand")},
    }  # fmt: skip


def test_what_packs_for_an_exchange_belongs_to_it() -> None:
    model, _ = placed(DLRM, route="hierarchical", micro_blocks=1)
    found = where_in_graph(model.graph)
    (join,) = named(found, "side_by_side")
    assert found[join] == Where("peer", "join")
    cuts = named(found, "split_columns")
    assert [found[node] for node in cuts] == [Where("peer", "cut")]  # the tower takes the lanes' blocks as they are
    assert {found[user].part for cut in cuts for user in cut.users} == {"peer"}


def test_what_an_exchange_has_brought_is_put_in_order_by_it() -> None:
    model, _ = placed(NONE, route="hierarchical", micro_blocks=1)
    found = where_in_graph(model.graph)
    cuts = named(found, "split_columns")
    assert {found[node] for node in cuts} == {Where("intra", "cut"), Where("peer", "cut")}
    assert {found[user].part for cut in cuts for user in cut.users} == {"intra", "peer"}
    model, _ = placed({**DLRM, "p": 0}, route="hierarchical", micro_blocks=1)
    found = where_in_graph(model.graph)
    (tower,) = (node for node in found if found[node] == Where("tower", "module"))
    (picked,) = named(found, "pick_columns")
    assert found[picked] == Where("intra", "cut") and list(found).index(tower) < list(found).index(picked)


def test_several_exchanges_of_a_kind_and_unknown_ones() -> None:
    assert [exchange_kind(name) for name in ("peers", "peers_1", "lanes.2", "index.world.ids", "world", "orbit")] == [
        "peer", "peer", "intra", "index", "global", None,
    ]  # fmt: skip
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    strange = graph.call_module("dmt_exchange.orbit.start", (x,))
    graph.output(strange)
    assert where_in_graph(graph)[strange] == Where("rest", "dmt_exchange.orbit.start")
