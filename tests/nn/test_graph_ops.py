"""The functions of our own in a graph: shapes, views, gradients, and one node each when traced."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from dmt_plugin.nn.graph_ops import (
    jagged_offsets,
    jagged_values,
    jagged_weights,
    pack_streams,
    side_by_side,
    split_columns,
    split_streams,
)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 5), st.integers(0, 4), st.booleans())
def test_packing_and_splitting_are_inverse(towers: list[int], width: int, batch: int, columns: bool) -> None:
    shape = (1, width) if columns else (width,)
    streams = [torch.randn(batch, *shape) for _ in range(sum(towers))]
    parts, start = [], 0
    for count in towers:
        packed = pack_streams(streams[start : start + count])
        assert packed.shape == (batch, count, width)
        parts.append(packed.flatten(1))
        start += count
    again = split_streams(parts, [[shape] * count for count in towers])
    assert len(again) == len(streams)
    assert all(torch.equal(a, b) for a, b in zip(again, streams, strict=True))


def test_splits_are_views() -> None:
    output = torch.randn(3, 10)
    for part in split_streams([output], [[(4,), (1, 6)]]):
        assert part._base is output
    left, right = torch.randn(2, 3), torch.randn(4, 2)
    columns = split_columns([left, right], [[1, 2], [2]])
    assert [tuple(c.shape) for c in columns] == [(2, 1), (2, 2), (4, 2)]
    assert columns[1]._base is left and torch.equal(columns[1], left[:, 1:])


def test_blocks_without_columns() -> None:
    assert split_columns([torch.zeros(3, 0), torch.zeros(3, 2)], [[], [2]])[0].shape == (3, 2)


def test_side_by_side() -> None:
    one = torch.randn(3, 2)
    assert side_by_side([one]) is one
    assert torch.equal(side_by_side([one, one]), torch.cat([one, one], 1))


def test_gradients() -> None:
    streams = [torch.randn(2, 3, dtype=torch.double, requires_grad=True) for _ in range(3)]

    def through(*given: Tensor) -> Tensor:
        packed = pack_streams(given)
        parts = split_streams([packed.flatten(1)], [[(3,)] * 3])
        return side_by_side(parts[::-1])

    assert torch.autograd.gradcheck(through, tuple(streams))


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (pack_streams, lambda x: ([x, x],)),
        (split_streams, lambda x: ([x], (((2,), (2,)),))),
        (split_columns, lambda x: ([x], ((1, 3),))),
        (side_by_side, lambda x: ([x, x],)),
    ],
)
def test_one_node_when_traced(function: object, arguments: object) -> None:
    class Uses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(*arguments(x))  # type: ignore[operator]

    traced = fx.symbolic_trace(Uses())
    calls = [n for n in traced.graph.nodes if n.op == "call_function"]
    assert [n.target for n in calls] == [function]
    x = torch.randn(3, 4)
    found, expected = traced(x), Uses()(x)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_jagged_reads() -> None:
    from torchrec import KeyedJaggedTensor

    features = KeyedJaggedTensor(["a", "b"], torch.arange(5), torch.arange(5) / 2, lengths=torch.tensor([2, 0, 1, 2]))
    assert jagged_values(features, "b").tolist() == [2, 3, 4]
    assert jagged_offsets(features, "b").tolist() == [0, 1, 3]
    assert jagged_weights(features, "a").tolist() == [0.0, 0.5]
