"""Every operation of the registry has a row, and what follows from its entry is what torch does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from dmt_plugin.capture import ExampleBatch
from dmt_plugin.capture.graph_state import graph_module_over
from dmt_plugin.capture.inputs import InputBinder
from dmt_plugin.capture.tracer import trace_with_values
from dmt_plugin.passes.ops.axes import Axis
from dmt_plugin.passes.ops.names import name_of
from dmt_plugin.passes.ops.per_sample import is_per_sample
from dmt_plugin.passes.ops.pointwise import elementwise
from dmt_plugin.passes.ops.queries import producers
from dmt_plugin.passes.ops.registry import LAYERS, OPS
from dmt_plugin.passes.ops.walk import State
from dmt_plugin.passes.resize.sweep import Sweep, UnsupportedAt
from tests.passes.ops.rows import BATCH, ROWS, Row

MORE = 3
"""Entries that a changed dimension gets."""
NO_TENSOR_OPERATIONS = {"LSTM", "GRU"}


class Model(nn.Module):
    """A row as a model."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        self.run = row.run
        self.layer = row.layer() if row.layer is not None else None

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(*(() if self.layer is None else (self.layer,)), *inputs)


class Changed(Sweep):
    """A walk over a model whose inputs change."""

    def __init__(self, gm: fx.GraphModule, row: Row) -> None:
        super().__init__(gm)
        given = [n for n in gm.graph.nodes if n.op == "placeholder"]
        self.changes: dict[fx.Node, dict[int, Axis]] = {}
        for at, dim in row.change:
            size = given[at].meta["val"].shape[dim]
            self.changes.setdefault(given[at], {})[dim] = Axis.of(size, size + MORE)

    def _state(self, node: fx.Node) -> State:
        if node not in self.changes:
            return super()._state(node)
        value = node.meta["val"]
        shape = [self.changes[node][d].new if d in self.changes[node] else s for d, s in enumerate(value.shape)]
        return State(torch.empty(shape, dtype=value.dtype, device="meta"), self.changes[node], True)


def inputs_of(row: Row, more: bool = False) -> tuple[Tensor, ...]:
    """Example inputs, or such with the changed sizes."""
    torch.manual_seed(0)
    found = []
    for at, shape in enumerate(row.shapes):
        sizes = [size + MORE * (more and (at, d) in row.change) for d, size in enumerate(shape)]
        value = torch.rand(sizes) * 0.8 + 0.1
        whole = row.kind == "int" and (at > 0 or len(row.shapes) == 1 or len(set(row.shapes)) == 1)
        found.append(value > 0.5 if row.kind == "bool" else (value * 3).long() if whole else value)
    return tuple(found)


def graph_of(row: Row) -> fx.GraphModule:
    model = Model(row)
    inputs = inputs_of(row)
    trace = trace_with_values(model, InputBinder(model.forward, ExampleBatch(inputs)), inputs)
    return graph_module_over(model, trace.graph, trace.constants)


def result_of(gm: fx.GraphModule) -> fx.Node:
    (output,) = (n for n in gm.graph.nodes if n.op == "output")
    return output.all_input_nodes[0]


def walked(row: Row) -> tuple[Changed, fx.Node]:
    gm = graph_of(row)
    walk = Changed(gm, row)
    try:
        walk.run()
    except UnsupportedAt as error:
        if error.node.op != "output":
            raise
    return walk, result_of(gm)


def test_every_operation_has_a_row() -> None:
    assert {name.partition(",")[0] for name in ROWS} == {*OPS, *(kind.__name__ for e in LAYERS for kind in e.kinds)}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_calls_its_operation(name: str) -> None:
    gm, plain = graph_of(ROWS[name]), name.partition(",")[0]
    kinds = {kind.__name__: kind for entry in LAYERS for kind in entry.kinds}
    for node in gm.graph.nodes:
        if name_of(node) == plain:
            return
        if node.op == "call_module" and plain in kinds and isinstance(gm.get_submodule(node.target), kinds[plain]):
            return
    pytest.fail("it does not")


@pytest.mark.parametrize("name", ROWS)
def test_changed_dimensions(name: str) -> None:
    """The walk says which dimensions change, and so does torch, run on the new sizes."""
    row = ROWS[name]
    if isinstance(row.out, str):
        with pytest.raises(UnsupportedAt, match=row.out):
            walked(row)
        return
    walk, result = walked(row)
    axes = walk.states[result].axes
    assert tuple(sorted(axes)) == row.out
    before = result.meta["val"].shape
    expected = tuple(axes[d].new if d in axes else size for d, size in enumerate(before))
    assert tuple(walk.states[result].value.shape) == expected
    if row.layer is None:
        for node, (args, kwargs) in walk.edits.items():
            node.args, node.kwargs = args, kwargs
        assert tuple(fx.Interpreter(walk.gm).run(*inputs_of(row, more=True)).shape) == expected


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.out and not isinstance(row.out, str)])
def test_what_is_asked_backwards_is_what_changed_forwards(name: str) -> None:
    row = ROWS[name]
    walk, result = walked(row)
    given = [n for n in walk.gm.graph.nodes if n.op == "placeholder"]
    pending, asked = [(result, walk.states[result].axes)], set()
    while pending:
        node, wanted = pending.pop()
        if node in given:
            asked |= {(given.index(node), d) for d in wanted}
        else:
            pending += producers(walk, node, wanted)
    assert asked == set(row.change if row.asked is None else row.asked)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.filterwarnings("ignore")
def test_samples_stay_apart(name: str) -> None:
    """What is known to keep samples apart gives half a batch what it gives that half in the whole."""
    row, model, inputs = ROWS[name], Model(ROWS[name]), inputs_of(ROWS[name])
    gm = graph_of(row)
    calls = [n for n in gm.graph.nodes if n.op.startswith("call_")]
    assert all(is_per_sample(gm, node, BATCH) for node in calls) == row.apart
    if not row.apart:
        return
    halves = [model(*(x[rows] for x in inputs)) for rows in (slice(0, 3), slice(3, 6))]
    whole, parts = model(*inputs), torch.cat(halves)
    entry = OPS.get(name.partition(",")[0])
    if entry is not None and entry.forward is elementwise:
        assert torch.equal(parts, whole)
    else:
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
