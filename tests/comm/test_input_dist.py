"""What input distribution promises besides the right rows: types, order, refusals, bytes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from dmt_plugin.comm.batch_layout import BatchLayout
from dmt_plugin.comm.input_dist.ids import (
    FeatureIds,
    IdSlot,
    ids_from_bag_2d,
    ids_from_bag_offsets,
    ids_from_column,
    ids_from_embedding,
)
from dmt_plugin.comm.input_dist.input_dist import InputDist
from dmt_plugin.comm.output_dist.output_dist import OutputDist
from dmt_plugin.core.errors import IdRangeError
from dmt_plugin.topology.shape import Topology
from tests._util.routing import Case, Feature, make_ids
from tests._util.simulated import SimulatedWorld


def ids(*values: int, hotness: int = 1) -> FeatureIds:
    return FeatureIds(torch.tensor(values), None, hotness, len(values) // hotness)


def bound(slots: list[IdSlot], wire: Any, route: str = "hierarchical") -> InputDist:
    exchange = InputDist(slots, wire.topology, wire.rank, route)  # type: ignore[arg-type]
    exchange.bind(wire)
    return exchange


def test_rows_are_sorted_by_lane_then_host() -> None:
    slots = [IdSlot("a", 100, 1, False, 1, (0,))]

    def program(wire: Any) -> Any:
        batch = wire.rank + 1
        return bound(slots, wire)(ids(*[10 * wire.rank + n for n in range(batch)]))

    routed = SimulatedWorld(Topology(2, 2)).run(program)
    # Ranks 0, 2 are lane 0 of hosts 0, 1; ranks 1, 3 are lane 1.
    assert routed[2].layout == BatchLayout(3, ((1, 3), (2, 4)))
    assert routed[2].values[0].tolist() == [0, 20, 21, 22, 10, 11, 30, 31, 32, 33]
    assert [len(r.values) for r in routed] == [0, 0, 1, 0]
    assert routed[3].layout.blocks == ((1, 3), (2, 4))
    assert routed[0].layout.rows == 10 and routed[0].layout.rows_of_lane(1) == 6


def test_flat_rows_are_sorted_by_rank() -> None:
    slots = [IdSlot("a", 100, 1, False, 0, (1,))]
    routed = SimulatedWorld(Topology(2, 2)).run(
        lambda wire: bound(slots, wire, "flat")(ids(*[wire.rank] * (wire.rank + 1)))
    )
    assert routed[1].values[0].tolist() == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert routed[1].layout == BatchLayout(2, ((1, 2, 3, 4),))


@pytest.mark.parametrize("rows, dtype", [(2**31, torch.int32), (2**31 + 1, torch.int64)])
def test_wire_type_follows_the_largest_table(rows: int, dtype: torch.dtype) -> None:
    slots = [IdSlot("a", rows, 2, False, 0, (0,)), IdSlot("b", 5, None, False, 1, (0,))]
    top = rows - 1

    def program(wire: Any) -> Any:
        jagged = FeatureIds(torch.tensor([4, 3]), torch.tensor([0, 2]), None, 2)
        return bound(slots, wire)(ids(0, top, 1, 2, hotness=2), jagged)

    first, second = SimulatedWorld(Topology(2, 1)).run(program)
    assert first.values[0].dtype == dtype and first.values[0].tolist() == [0, top, 1, 2] * 2
    assert second.values[0].dtype == dtype and second.lengths[0].tolist() == [0, 2, 0, 2]


def test_int32_ids_and_fixed_ids_in_a_varying_slot() -> None:
    slots = [IdSlot("a", 9, None, False, 0, (0,))]

    def program(wire: Any) -> Any:
        return bound(slots, wire)(FeatureIds(torch.tensor([1, 2, 3, 4], dtype=torch.int32), None, 2, 2))

    first, _ = SimulatedWorld(Topology(2, 1)).run(program)
    assert first.values[0].tolist() == [1, 2, 3, 4] * 2 and first.lengths[0].tolist() == [2] * 4


def test_bytes_follow_the_formula() -> None:
    """Hierarchical: ids cross hosts once per slot of another host, 4 bytes each; headers are 8-byte words."""
    features = tuple(Feature(f"f{i}", 9, i + 1, i % 2, ((f"t{i}", i // 2, 4),)) for i in range(4))
    case = Case(2, 2, (3, 5, 2, 7), features)

    def program(wire: Any) -> Any:
        bound(case.slots, wire)(*make_ids(case, wire.rank))
        return wire.traffic.as_dict()

    for rank, counted in enumerate(SimulatedWorld(case.topology).run(program)):
        host, lane = divmod(rank, 2)
        away = sum(f.hotness or 0 for f in features if f.host != host)
        peer_rows = case.batches[lane] + case.batches[2 + lane]
        other_lane = sum(f.hotness or 0 for f in features if f.host == host and f.tables[0][1] != lane)
        assert counted["index.peers.ids"]["forward"]["other_hosts"] == 4 * case.batches[rank] * away
        assert counted["index.peers.ids"]["forward"]["same_host"] == 0
        assert counted["index.peers.header"]["forward"]["other_hosts"] == 8 * 5
        assert counted["index.lanes.ids"]["forward"]["same_host"] == 4 * peer_rows * other_lane
        assert counted["index.lanes.ids"]["forward"]["other_hosts"] == 0
        assert counted["index.lanes.header"]["forward"]["same_host"] == 8 * 6


def test_no_state() -> None:
    exchange = InputDist([IdSlot("a", 5, 1, False, 0, (0,))], Topology(1, 1), 0)
    assert not exchange.state_dict() and not list(exchange.parameters())
    assert {name for name, _ in exchange.named_modules()} == {"", "start", "wait", "arrived"}


def test_misuse_is_named() -> None:
    topology = Topology(2, 2)
    good = IdSlot("a", 5, 1, False, 0, (0,))
    with pytest.raises(ValueError, match="at least one slot"):
        InputDist([], topology, 0)
    with pytest.raises(ValueError, match="host 2 does not exist"):
        InputDist([IdSlot("a", 5, 1, False, 2, (0,))], topology, 0)
    with pytest.raises(ValueError, match=r"lanes \(2,\)"):
        InputDist([IdSlot("a", 5, 1, False, 0, (2,))], topology, 0)
    with pytest.raises(ValueError, match="at least 1"):
        InputDist([IdSlot("a", 5, 0, False, 0, (0,))], topology, 0)
    with pytest.raises(ValueError, match=r"dmt\.comm\.route"):
        InputDist([good], topology, 0, "ring")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="bind"):
        InputDist([good], topology, 0).start(ids(1))


def test_wrong_calls_are_named() -> None:
    slots = [IdSlot("a", 5, 1, False, 0, (0,)), IdSlot("b", 5, 1, True, 0, (0,))]

    def program(wire: Any) -> None:
        exchange = bound(slots, wire)
        weights = torch.ones(2)
        good = FeatureIds(torch.tensor([1, 2]), None, 1, 2, weights)
        with pytest.raises(ValueError, match="2 slots expected, found 1"):
            exchange.start(ids(1, 2))
        learned = FeatureIds(good.values, None, 1, 2, weights.clone().requires_grad_())
        for batch, words in (
            ((ids(1, 2), ids(1, 2)), "'b' has no weights"),
            ((good, good), "'a' has weights"),
            ((FeatureIds(torch.ones(2), None, 1, 2), good), "integer ids"),
            ((ids(1, 2), learned), "learned"),
        ):
            with pytest.raises(IdRangeError, match=words):
                exchange(*batch)

    SimulatedWorld(Topology(1, 1)).run(program)


def test_of_several_faults_that_of_the_first_feature_is_named() -> None:
    """Whatever kind they are of: fixed or varying bags, ids without bags, shapes, types."""
    names = "abcdef"
    slots = [IdSlot(n, 5, None if n in "bd" else 1, n == "e", i % 2, (0,)) for i, n in enumerate(names)]
    good = {n: ids_from_bag_offsets(torch.tensor([1, 2]), torch.tensor([0, 1])) for n in "bd"}
    good |= {n: ids(1, 2) for n in "acf"} | {"e": FeatureIds(torch.tensor([1, 2]), None, 1, 2, torch.ones(2))}
    bad = {
        "a": ids(1, 7),
        "b": ids_from_bag_offsets(torch.tensor([1, 9]), torch.tensor([0, 1])),
        "c": ids_from_column(torch.tensor([[1], [2]]), 4),
        "d": ids_from_bag_offsets(torch.tensor([1, 2]), torch.tensor([0, 5])),
        "e": FeatureIds(torch.tensor([1, 2]), None, 1, 2, torch.ones(3)),
        "f": FeatureIds(torch.tensor([1.0, 2.0]), None, 1, 2),
    }

    def program(wire: Any) -> list[str]:
        exchange, said = bound(slots, wire), []
        for pair in itertools.combinations(names, 2):
            spoilt = good if wire.rank == 0 else {**good, **{n: bad[n] for n in pair}}
            with pytest.raises(IdRangeError) as caught:
                exchange(*(spoilt[n] for n in names))
            said.append(str(caught.value))
        return said

    found = SimulatedWorld(Topology(2, 1)).run(program)
    assert found[0] == found[1]
    for (first, _), text in zip(itertools.combinations(names, 2), found[0], strict=True):
        assert f"rank 1: feature '{first}' has" in text


def test_two_batches_in_flight() -> None:
    """A prefetcher starts the next batch before the current one is waited for."""
    slots = [IdSlot("a", 100, 1, False, 1, (0, 1))]

    def program(wire: Any) -> Any:
        exchange = bound(slots, wire)
        first = exchange.start(ids(wire.rank))
        second = exchange.start(ids(10 + wire.rank, 20 + wire.rank))
        return exchange.wait(first), exchange.wait(second)

    for one, two in SimulatedWorld(Topology(2, 2)).run(program)[2:]:
        assert one.values[0].tolist() == [0, 2, 1, 3]
        assert two.values[0].tolist() == [10, 20, 12, 22, 11, 21, 13, 23]


def test_start_and_wait_are_graph_nodes() -> None:
    slots = [IdSlot("a", 5, 1, False, 0, (0,)), IdSlot("b", 5, 2, False, 0, (0,))]

    def program(wire: Any) -> Any:
        root = torch.nn.Module()
        root.dmt_exchange = torch.nn.Module()
        root.dmt_exchange.index = bound(slots, wire)
        root.dmt_exchange.rows = rows = OutputDist("rows", "lanes", 3, (3,))
        rows.bind(wire)
        graph = torch.fx.Graph()
        a, b = graph.placeholder("a"), graph.placeholder("b")
        calls = (graph.call_function(ids_from_embedding, (a,)), graph.call_function(ids_from_bag_2d, (b,)))
        pending = graph.call_module("dmt_exchange.index.start", calls)
        routed = graph.call_module("dmt_exchange.index.wait", (pending,))
        layout = graph.call_function(getattr, (routed, "layout"))
        values = graph.call_function(getattr, (routed, "values"))
        matrix = graph.call_function(_join, (values,))
        flight = graph.call_module("dmt_exchange.rows.start", (matrix, layout))
        graph.output(graph.call_module("dmt_exchange.rows.wait", (flight,)))
        module = torch.fx.GraphModule(root, graph)
        return module(torch.tensor([1, 2]), torch.tensor([[3, 4], [0, 1]]))

    ((block,),) = SimulatedWorld(Topology(1, 1)).run(program)
    assert block.tolist() == [[1, 3, 4], [2, 0, 1]]


def _join(values: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return torch.cat([values[0].view(-1, 1), values[1].view(-1, 2)], 1).float()
