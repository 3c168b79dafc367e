"""The functions of our own in a graph: shapes, views, gradients, and one node each when traced."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from dmt_plugin.nn.graph_ops import (
    bags_of_rows,
    jagged_offsets,
    jagged_values,
    jagged_weights,
    pack_streams,
    rows_of_ids,
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


@pytest.mark.parametrize("lengths", [[2, 0, 3], [0, 0, 0], [0, 5, 0], []], ids=str)
def test_bags_of_rows_are_bags_of_the_table(lengths: list[int]) -> None:
    """Pooled where the samples are as the table's own bag would be, with the gradients of rows and weights."""
    table = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(sum(lengths), dtype=torch.float64, requires_grad=True)
    ids, offsets = torch.arange(sum(lengths)) % 3, torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0)
    found = bags_of_rows(table[ids], ids, weights, offsets, True)
    expected = F.embedding_bag(ids, table, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True)
    torch.testing.assert_close(found, expected)
    ours, own = (torch.autograd.grad(out.square().sum(), (table, weights)) for out in (found, expected))
    torch.testing.assert_close(ours, own)


def test_rows_of_ids_have_the_shape_of_the_ids() -> None:
    ids = torch.arange(12).view(2, 3, 2)
    rows = torch.arange(24.0).view(12, 2)
    assert torch.equal(rows_of_ids(rows, ids)[1, 2, 1], rows[11])
    assert rows_of_ids(rows[:0], ids[:0]).shape == (0, 3, 2, 2)
