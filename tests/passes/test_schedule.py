"""Exchanges start early, are waited for late, and dense work fills the time between."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from dmt_plugin.fxtools.names import BLOCK_META, EXCHANGE_META
from dmt_plugin.model.placed import PlacedModel, place
from dmt_plugin.passes.rank.schedule import Schedule
from dmt_plugin.topology.shape import Topology
from tests.passes.test_place import DLRM, case


def placed(
    name: str, route: str, overlap: bool = True, topology: str = "2x2", micro_blocks: int | str = "auto"
) -> PlacedModel:
    comm = {"route": route, "overlap": overlap, "micro_blocks": micro_blocks}
    logical, config, _ = case(name, topology, DLRM, comm=comm)
    return place(logical, config, Topology.parse(topology), 0)


def spans(model: PlacedModel) -> list[tuple[str, int, int]]:
    """Name, position of the start and of the wait of each exchange."""
    position = {n: i for i, n in enumerate(model.graph.nodes)}
    waits = [n for n in position if n.op == "call_module" and str(n.target).endswith(".wait")]
    return [(n.meta[EXCHANGE_META], position[n.all_input_nodes[0]], position[n]) for n in waits]


def independent(model: PlacedModel) -> list[fx.Node]:
    """Layers that need no exchange: those of the dense input."""
    needs: set[fx.Node] = set()
    for node in model.graph.nodes:
        if EXCHANGE_META in node.meta or any(n in needs for n in node.all_input_nodes):
            needs.add(node)
    return [n for n in model.graph.nodes if n.op == "call_module" and n not in needs]


@pytest.mark.parametrize("route", ["hierarchical", "flat"])
@pytest.mark.parametrize("name", ["dlrm", "multi_hot_dlrm", "torchrec_dcn", "deepfm"])
def test_independent_dense_work_runs_during_the_last_exchange(name: str, route: str) -> None:
    model = placed(name, route)
    position = {n: i for i, n in enumerate(model.graph.nodes)}
    found = spans(model)
    start, wait = found[-1][1:]
    dense = independent(model)
    assert dense
    for node in dense:
        assert start < position[node] < wait, node.name
    for _, earlier, _ in found:
        assert all(earlier < position[node] for node in dense)


@pytest.mark.parametrize("name", ["dlrm", "deepfm"])
def test_a_wait_comes_right_before_its_first_use(name: str) -> None:
    model = placed(name, "hierarchical")
    nodes = list(model.graph.nodes)
    _, _, wait = spans(model)[-1]
    behind: set[fx.Node] = {nodes[wait]}
    for node in nodes[wait + 1 :]:
        if any(n in behind for n in node.all_input_nodes):
            behind.add(node)
    dense = [n for n in nodes[wait + 1 :] if n.op == "call_module" and n not in behind]
    assert not dense


def test_without_overlap_a_start_is_waited_for_at_once() -> None:
    assert all(wait == start + 1 for _, start, wait in spans(placed("dlrm", "hierarchical", overlap=False)))
    assert any(wait > start + 1 for _, start, wait in spans(placed("dlrm", "hierarchical")))


def test_every_order_is_one_in_which_inputs_come_first_and_nothing_is_lost() -> None:
    texts = set()
    for overlap in (True, False):
        graph = placed("deepfm", "hierarchical", overlap, micro_blocks=2).graph
        graph.lint()
        texts.add(tuple(sorted(n.format_node() or n.name for n in graph.nodes)))
    assert len({len(t) for t in texts}) == 1


@pytest.mark.parametrize(("blocks", "exchanges"), [(1, 3), (2, 5), (4, 9)])
def test_scheduling_twice_changes_nothing(blocks: int, exchanges: int) -> None:
    from dmt_plugin.capture import CapturedModel, ExampleBatch
    from dmt_plugin.passes.base import PassContext

    logical, config, _ = case("dlrm", "2x2", DLRM, comm={"micro_blocks": blocks})
    model = place(logical, config, Topology(2, 2), 0)
    captured = CapturedModel(model.graph_module, model.binder, ExampleBatch(), logical.batch_size)
    before = str(model.graph)
    result = Schedule().run(PassContext(captured, config, Topology(2, 2)))
    assert str(model.graph) == before
    assert (result.matched, result.changed) == (exchanges, 0)


def test_the_backward_of_the_dense_part_runs_during_the_last_exchange_too() -> None:
    """Autograd goes through the graph in the opposite order: wait, dense work, start."""
    model = placed("dlrm", "hierarchical")
    nodes = list(model.graph.nodes)
    _, start, wait = spans(model)[-1]
    between = [n for n in nodes[start + 1 : wait] if n.op == "call_module"]
    assert [n.target for n in between][:1] == ["bottom.0.0"]
    assert all(isinstance(model.get_submodule(str(n.target)), torch.nn.Module) for n in between)


def test_a_block_is_computed_for_an_exchange_when_the_block_before_has_gone_on() -> None:
    """So that in the backward pass it is computed while the rows of the block before are still on their way."""
    logical, config, _ = case("dlrm", "2x2", {**DLRM, "p": 0}, comm={"micro_blocks": 2})
    model = place(logical, config, Topology(2, 2), 0)
    targets = [str(node.target) for node in model.graph.nodes]
    towers = [place for place, target in enumerate(targets) if target.startswith("dmt_towers.")]
    lanes = [place for place, target in enumerate(targets) if target == "dmt_exchange.lanes.start"]
    first, _ = (place for place, target in enumerate(targets) if target == "dmt_exchange.peers.start")
    assert towers[0] < lanes[0] < first < towers[1] < lanes[1]


def once(name: str, **comm: object) -> list[str]:
    """What a rank runs of a model whose rows travel once in two blocks: exchanges, layers, and of which block."""
    section = {"dedup": "on", "micro_blocks": 2, **comm}
    logical, config, _ = case(name, "2x2", {"module": "none"}, comm=section)
    nodes = place(logical, config, Topology(2, 2), 0).graph.nodes
    called = [n for n in nodes if n.op == "call_module"]
    return [f"{n.target} {n.meta.get(BLOCK_META, '')}".strip().removeprefix("dmt_exchange.") for n in called]


def test_a_block_of_distinct_rows_is_computed_while_the_next_one_is_under_way() -> None:
    """Both cross hosts from the start on; a block is spread and expanded before the next one is waited for."""
    ran = once("deepfm")
    order = [
        "requests.wait", "rows1.peers.start 0", "rows1.peers.start 1", "rows1.peers.wait 0", "rows1.spread 0",
        "rows1.lanes.start 0", "rows1.lanes.wait 0", "rows1.expand 0", "deep.0 0", "rows1.peers.wait 1",
        "rows1.spread 1", "rows1.lanes.start 1", "rows1.lanes.wait 1", "rows1.expand 1", "deep.0 1",
    ]  # fmt: skip
    assert [node for node in ran if node in order] == order
    assert ran.index("requests.wait") < ran.index("dmt_lookup.distinct") < ran.index("rows0.peers.start 0")
    assert ran.index("rows0.peers.start 1") < ran.index("dense") < ran.index("rows1.peers.wait 1")


def test_no_block_is_held_up_by_rows_of_a_later_one() -> None:
    """Where some features keep their way, all that a block needs enters the slow link before the next block's rows."""
    ran = once("dlrm", dedup_features={"*1": "off"})
    order = [
        "lanes.wait 0", "peers.start 0", "rows0.peers.start 1", "lanes.wait 1", "peers.start 1", "rows0.peers.wait 0",
        "peers.wait 0", "rows0.peers.wait 1", "peers.wait 1",
    ]  # fmt: skip
    assert [node for node in ran if node in order] == order
    assert ran.index("rows0.peers.start 0") < ran.index("lanes.wait 0")
