"""Labels around an engine's step: they change nothing, and the profiler's trace leads every moment to its part."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.step.breakdown_labels import PREFIX, STEP, Flight, Labels, autograd_count
from benchmarks.step.breakdown_parts import Where
from benchmarks.step.breakdown_trace import KNOWN_REST, spans_of, totals
from dmt_plugin.fxtools.order import drop_unused
from dmt_plugin.model.placed import PlacedModel
from tests._util.ranks import run_ranks
from tests._util.simulated import SimulatedWire, SimulatedWorld
from tests.benchmarks.test_breakdown_parts import placed
from tests.passes.test_place import DLRM


def test_autograd_counts_its_nodes() -> None:
    """Canary: the private count that leads from a backward node to its part of the forward pass."""
    x = torch.ones(3, requires_grad=True)
    before = autograd_count()
    y = x * 2
    between = autograd_count()
    z = y + 1
    assert before <= y.grad_fn._sequence_nr() < between <= z.grad_fn._sequence_nr() < autograd_count()  # type: ignore[union-attr]


class Engine(nn.Module):
    """What the labels need of an engine, on one rank without processes."""

    def __init__(self, model: PlacedModel) -> None:
        super().__init__()
        wire = SimulatedWire(SimulatedWorld(model.topology), 0)
        model.bind(wire)
        self.module = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.dmt = SimpleNamespace(placed=model, transport=wire, lookup=model.lookup)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()
        self.allreduce_gradients()

    def allreduce_gradients(self) -> None:
        pass

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.dmt.lookup.step()


def test_a_real_trace_of_a_labelled_engine() -> None:
    model, batch = placed(DLRM, "1x1", route="hierarchical")
    untouched, _ = placed(DLRM, "1x1", route="hierarchical")
    untouched.bind(SimulatedWire(SimulatedWorld(model.topology), 0))
    names = list(model.state_dict())
    engine = Engine(model)
    labels = Labels(engine)
    assert list(model.state_dict()) == names
    assert torch.equal(engine(*batch), untouched(*batch))
    assert not labels.marks

    def train() -> None:
        engine.backward(engine(*batch).square().mean())
        engine.step()

    train()
    with profile(activities=[ProfilerActivity.CPU]) as trace, labels.tracing(), record_function(f"{PREFIX}/{STEP}"):
        train()
    (spans,) = spans_of(trace.events(), labels.marks)
    found = totals(spans)
    parts = {(where.part, phase) for where, phase in found}
    for part in ("lookup", "tower", "dense"):
        assert {(part, "forward"), (part, "backward")} <= parts, part
    assert ("index", "forward") in parts and ("index", "backward") not in parts
    assert ("optimizer", "step") in parts
    (step,) = (e for e in trace.events() if e.name == f"{PREFIX}/{STEP}")
    assert sum(found.values()) == pytest.approx(1e-6 * (step.time_range.end - step.time_range.start))
    assert {where.detail for where, _ in found if where.part == "rest"} <= KNOWN_REST


def collective_flights(rank: int, world_size: int) -> tuple[list[Flight], dict[tuple[Where, str], float]]:
    """Reductions that block, that run beside work, and that another step collects."""
    model, _ = placed(DLRM, "1x1", route="hierarchical")
    labels = Labels(Engine(model))
    x = torch.ones(1000)
    with profile(activities=[ProfilerActivity.CPU]) as trace, labels.tracing(), record_function(f"{PREFIX}/{STEP}"):
        dist.all_reduce(x)
        work = dist.all_reduce(x, async_op=True)
        x.square().sum()
        time.sleep(0.01)
        if rank == 1:
            time.sleep(0.2)
        dist.all_reduce(torch.ones(1), group=dist.group.WORLD)
        work.wait()
    (spans,) = spans_of(trace.events(), labels.marks)
    assert float(x[0]) == world_size**2
    return labels.flights, totals(spans)


@pytest.mark.processes
def test_collectives_and_the_waits_for_them() -> None:
    (flights, found), (late, _) = run_ranks(2, collective_flights)
    assert [(f.name, f.number, f.ranks, f.part) for f in flights] == [
        ("all_reduce", number, (0, 1), "all-reduce") for number in range(3)
    ]
    assert all(f.waited is not None and f.arrived is not None for f in (*flights, *late))
    blocking, beside, waiting = flights
    assert blocking.arrived <= beside.started  # type: ignore[operator]
    assert beside.waited > waiting.arrived >= late[2].started  # type: ignore[operator]
    assert found[Where("idle", "all-reduce"), "forward"] > 0.15
    assert late[2].started - flights[2].waited > 0.15  # type: ignore[operator]


def test_an_exchange_posted_before_a_trace_is_known_in_it() -> None:
    """As the ids of the next batch are, when they are sent a step early."""
    model, _ = placed(DLRM, "1x1", route="hierarchical")
    engine = Engine(model)
    labels = Labels(engine)
    wire = engine.dmt.transport
    wire.all_to_all("index.peers.ids", "forward", "peers", torch.ones(3), [3], [3]).wait()
    pending = wire.all_to_all("index.peers.ids", "forward", "peers", torch.ones(3), [3], [3])
    with profile(activities=[ProfilerActivity.CPU]) as trace, labels.tracing(), record_function(f"{PREFIX}/{STEP}"):
        pending.wait()
    (flight,) = labels.flights
    assert flight.number == 1 and flight.waited is not None
    (spans,) = spans_of(trace.events(), labels.marks)
    assert (Where("idle", "index"), "forward") in totals(spans)


def test_marks_are_there_without_the_first_nodes() -> None:
    """Ids that came early: the graph runs from the lookup on, and what nobody uses is gone."""
    model, batch = placed(DLRM, "1x1", route="hierarchical")
    labels = Labels(Engine(model))
    module = model.__dict__["graph_module"]
    graph, values = torch.fx.Graph(), {}
    graph.output(graph.graph_copy(module.graph, values))
    wait = next(n for n in graph.nodes if str(n.target) == "dmt_exchange.index.wait")
    routed: list[Any] = []
    hook = module.get_submodule("dmt_exchange.index.wait").register_forward_hook(lambda *call: routed.append(call[2]))
    expected = model(*batch)
    hook.remove()
    module.arrived = nn.Identity()
    module.arrived.forward = lambda: routed[0]
    with graph.inserting_before(wait):
        wait.replace_all_uses_with(graph.call_module("arrived"))
    drop_unused(graph)
    assert not any("index" in str(n.target) for n in graph.nodes)
    rest = torch.fx.GraphModule(module, graph)
    with profile(activities=[ProfilerActivity.CPU]) as trace, labels.tracing(), record_function(f"{PREFIX}/{STEP}"):
        assert torch.equal(rest(*model.binder.inputs(tuple(batch), {})), expected)
    (spans,) = spans_of(trace.events(), labels.marks)
    assert {"lookup", "tower", "dense"} <= {where.part for where, _ in totals(spans)}


class Bucket:
    """Gradients that are summed from within the backward pass."""

    def begin(self) -> None:
        torch.ones(10).sum()

    def finish(self) -> None:
        torch.ones(10).sum()

    _cross = finish


def test_what_an_engine_does_ahead_is_labelled() -> None:
    model, _ = placed(DLRM, "1x1", route="hierarchical")
    engine: Any = Engine(model)
    wire = SimulatedWire(SimulatedWorld(model.topology), 0)
    ahead = SimpleNamespace(_transport=wire, begin=lambda: None, settle=lambda: time.sleep(0.01))
    model._keep(prefetcher=ahead)
    engine.prefetch = lambda: None
    engine._reduction = SimpleNamespace(_buckets=[Bucket()])
    labels = Labels(engine)

    def exchange() -> None:
        wire.all_to_all("index.peers.ids", "forward", "peers", torch.ones(3), [3], [3]).wait()

    with profile(activities=[ProfilerActivity.CPU]) as trace, labels.tracing(), record_function(f"{PREFIX}/{STEP}"):
        thread = threading.Thread(target=exchange)
        thread.start()
        thread.join()
        engine.prefetch()
        ahead.begin()
        engine._reduction._buckets[0].begin()
        ahead.settle()
    (flight,) = labels.flights
    assert flight.beside and flight.arrived is not None
    (spans,) = spans_of(trace.events(), labels.marks)
    found = totals(spans)
    assert found[Where("idle", "index"), "forward"] > 0.005  # settle alone: the exchange is another thread's
    assert (Where("all-reduce", "begin"), "forward") in found and (Where("index", "begun ahead"), "forward") in found
