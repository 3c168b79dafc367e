"""Whatever is said to treat every sample by itself gives a part of a batch what it gives that part in the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from dmt_plugin.capture import ExampleBatch
from dmt_plugin.capture.graph_state import graph_module_over
from dmt_plugin.capture.inputs import InputBinder
from dmt_plugin.capture.tracer import trace_with_values
from dmt_plugin.passes.ops.per_sample import is_per_sample
from dmt_plugin.passes.ops.pointwise import POINTWISE_LAYERS
from tests.passes.per_sample_cases import BATCH, TAKEN, UNKNOWN, UNSAFE, Case


class Model(nn.Module):
    """One case as a model."""

    constant: Tensor

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.run = case.run
        self.layer = case.layer()
        self.register_buffer("constant", torch.randn(case.constant))

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def traced(model: nn.Module, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
    """The graph at this batch size, without capture's own comparison of two."""
    binder = InputBinder(model.forward, ExampleBatch(inputs))
    trace = trace_with_values(model, binder, inputs)
    return graph_module_over(model, trace.graph, trace.constants)


def claimed(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether every operation is said to treat samples by themselves."""
    gm = traced(model, inputs)
    calls = [n for n in gm.graph.nodes if n.op.startswith("call_")]
    return all(is_per_sample(gm, node, BATCH) for node in calls)


def same_in_parts(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether parts of the batch, some in another order, give the same rows of the result."""
    whole = model(*inputs)
    if whole.shape[:1] != (BATCH,):
        return False
    for rows in ([0, 1, 2], [3, 4, 5], [5, 0, 2, 1], [4]):
        try:
            part = model(*(x[rows] for x in inputs))
        except (RuntimeError, ValueError, IndexError):  # what the part lacks the operation may ask for
            return False
        if part.shape != whole[rows].shape or not torch.allclose(part, whole[rows], rtol=1e-6, atol=1e-6):
            return False
    return True


def made(case: Case) -> tuple[Model, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    return Model(case), tuple(torch.randn(BATCH, *shape) for shape in case.shapes)


WHOLE_VECTORS = 64
"""A width at which samples fill the vectors of any processor: what is left over in the end, some compute by another
routine than the rest, which rounds otherwise."""


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_gives_parts_of_a_batch_the_same(name: str) -> None:
    model, inputs = made(TAKEN[name])
    assert claimed(model, inputs)
    assert same_in_parts(model, inputs)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", UNSAFE)
def test_what_reads_other_samples_is_refused(name: str) -> None:
    model, inputs = made(UNSAFE[name])
    assert not same_in_parts(model, inputs), "the case shows nothing"
    assert not claimed(model, inputs)


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_refused(name: str) -> None:
    model, inputs = made(UNKNOWN[name])
    assert not claimed(model, inputs)


@pytest.mark.parametrize("shape", [(), (4,), (1, 4)])
def test_an_input_that_is_neither_constant_nor_of_samples_is_refused(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = Model(Case(lambda m, x, y: torch.addcmul(x, x, y)))
    assert not claimed(model, (torch.randn(BATCH, 4), torch.randn(shape)))


@pytest.mark.parametrize("kind", POINTWISE_LAYERS)
def test_every_pointwise_layer_is(kind: type[nn.Module]) -> None:
    layer = (kind(0.1, 2.0) if kind is nn.Threshold else kind()).eval()
    inputs = torch.randn(BATCH, WHOLE_VECTORS)
    assert torch.equal(torch.cat([layer(inputs[:3]), layer(inputs[3:])]), layer(inputs))
