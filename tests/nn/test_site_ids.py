"""Row ranges of one table, looked up apart and added up, are the table."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dmt_plugin.comm.batch_layout import BatchLayout
from dmt_plugin.comm.input_dist.input_dist import RoutedIds
from dmt_plugin.nn.lookup.sharded import ShardedLookup
from dmt_plugin.nn.lookup.site import LookupSite
from dmt_plugin.nn.lookup.site_ids import ids_of

ROWS, DIM = 7, 4
WHOLE = LookupSite("s", "t", 0, ROWS, DIM, "sum", False)
SITES = {
    "sum": WHOLE,
    "mean": dataclasses.replace(WHOLE, pooling="mean"),
    "weighted": dataclasses.replace(WHOLE, weighted=True),
    "position": dataclasses.replace(WHOLE, position=1),
    "padding": dataclasses.replace(WHOLE, position=1, padding=3),
}


def routed(kind: str, hotness: int | None, rows: int, seed: int, dtype: torch.dtype) -> RoutedIds:
    generator = torch.Generator().manual_seed(seed)
    lengths = None if hotness else torch.randint(0, 4, (rows,), generator=generator).to(dtype)
    count = rows * (hotness or 0) if lengths is None else int(lengths.sum())
    values = torch.randint(0, ROWS, (count,), generator=generator).to(dtype)
    weights = torch.rand(count, generator=generator) if kind == "weighted" else None
    return RoutedIds((values,), (lengths,), (weights,), BatchLayout(rows, ((rows,),)))


def ranges(site: LookupSite, cuts: list[int]) -> list[LookupSite]:
    spans = pairwise([0, *sorted(cuts), ROWS])
    return [dataclasses.replace(site, table=f"t{a}", first_row=a, rows=b - a) for a, b in spans]


@pytest.mark.parametrize("backend", ["torch", "fbgemm"])
@pytest.mark.parametrize("kind", SITES)
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([None, 1, 3]),
    st.integers(0, 5),
    st.lists(st.integers(1, ROWS - 1), max_size=3, unique=True),
    st.integers(0, 10**6),
    st.sampled_from([torch.int32, torch.int64]),
)
def test_ranges_add_up_to_the_table(
    backend: str, kind: str, hotness: int | None, rows: int, cuts: list[int], seed: int, dtype: torch.dtype
) -> None:
    site = SITES[kind]
    ids = routed(kind, 3 if site.position is not None else hotness, rows, seed, dtype)
    table = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(seed))
    whole = ShardedLookup([site], {"t": table}, backend="torch", optimizer="sgd", lr=1.0)
    cotangent = torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed + 1))
    expected = whole(ids)
    (expected * cotangent).sum().backward()
    whole.step()
    total: Tensor | float = 0.0
    trained = []
    for own in ranges(site, cuts):
        assert own.first_row is not None
        weights = {own.table: table[own.first_row : own.first_row + own.rows]}
        part = ShardedLookup([own], weights, backend=backend, optimizer="sgd", lr=1.0)
        found = part(ids)
        (found * cotangent).sum().backward()
        part.step()
        total = total + found
        trained.append(part.table_weight(own.table))
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.cat(trained), whole.table_weight("t"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("size", "dtype"), [(2**31, torch.int32), (2**31 + 1, torch.int64)])
def test_ranges_at_the_border_of_int32(size: int, dtype: torch.dtype) -> None:
    """The last id of a table that still travels as int32 is found in the last range, and nowhere else."""
    values = torch.tensor([0, 2**30 - 1, 2**30, size - 1], dtype=dtype)
    ids = RoutedIds((values,), (None,), (None,), BatchLayout(4, ((4,),)))
    low = dataclasses.replace(WHOLE, rows=2**30, first_row=0)
    high = dataclasses.replace(WHOLE, rows=size - 2**30, first_row=2**30)
    assert ids_of(low, ids).values.tolist() == [0, 2**30 - 1]
    found = ids_of(high, ids)
    assert found.values.tolist() == [0, size - 1 - 2**30] and found.values.dtype == dtype
    assert found.lengths is not None and found.lengths.tolist() == [0, 0, 1, 1]
