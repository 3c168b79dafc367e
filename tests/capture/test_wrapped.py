"""Functions marked with torch.fx.wrap are traced through, and stay one node where that fails."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace

from dmt_plugin import ExampleBatch
from dmt_plugin.capture import capture
from dmt_plugin.core.errors import CaptureError
from tests.capture.test_capture import rows


@fx.wrap
def joined(columns: list[Tensor]) -> Tensor:
    return torch.cat([column.flatten(1) for column in columns], dim=1)


@fx.wrap
def by_data(x: Tensor) -> Tensor:
    """Cannot be followed, neither inside nor as a leaf."""
    return x * 2 if x.sum() > 0 else x


@fx.wrap
def by_type(x: Tensor) -> Tensor:
    """Cannot be followed: what is recorded is no tensor."""
    if not isinstance(x, Tensor):
        raise TypeError("a tensor is needed")
    return x * 2


@fx.wrap
def by_batch(x: Tensor) -> Tensor:
    """Can be followed, but not for all batch sizes."""
    return x + torch.arange(int(x.size(0))).unsqueeze(1)


@fx.wrap
def outer(x: Tensor) -> Tensor:
    return by_type(x) + joined([x])


class Joins(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return joined([x, x * 2])


class Mixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return joined([by_type(x), by_batch(x)])


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return by_data(x)


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return outer(x)


@pytest.mark.parametrize(
    ("kind", "leaves"), [(Joins, set()), (Mixed, {by_type, by_batch}), (Nested, {outer})], ids=lambda v: str(v)[:12]
)
def test_only_what_cannot_be_followed_is_a_leaf(kind: type[nn.Module], leaves: set[object]) -> None:
    registry = set(_symbolic_trace._wrapped_fns_to_patch)
    captured = capture(kind(), ExampleBatch((rows(5),)))
    targets = {n.target for n in captured.graph_module.graph.nodes}
    assert targets & {joined, by_type, by_batch, outer} == leaves
    assert (torch.cat in targets) == (kind is not Nested)
    for n in (2, 5, 12):
        assert torch.equal(captured.as_module()(rows(n)), kind()(rows(n)))
    assert registry <= set(_symbolic_trace._wrapped_fns_to_patch)


def test_a_leaf_of_one_capture_is_one_of_the_next() -> None:
    """The code of a captured graph marks the function once more, in globals of its own."""
    for _ in range(3):
        captured = capture(Mixed(), ExampleBatch((rows(5),)))
        assert torch.equal(captured.as_module()(rows(4)), Mixed()(rows(4)))


def test_what_fails_as_a_leaf_too_names_the_line_inside() -> None:
    with pytest.raises(CaptureError, match=r"DMT101.*return x \* 2 if x\.sum"):
        capture(Branches(), ExampleBatch((rows(5),)))


def test_ordinary_tracing_sees_a_wrapped_function_as_before() -> None:
    capture(Joins(), ExampleBatch((rows(5),)))
    assert joined in {n.target for n in fx.symbolic_trace(Joins()).graph.nodes}


def test_the_registry_of_wrapped_functions_is_where_it_was() -> None:
    """A canary: fx keeps them by identity of their globals and name."""
    assert (id(globals()), "joined") in _symbolic_trace._wrapped_fns_to_patch
