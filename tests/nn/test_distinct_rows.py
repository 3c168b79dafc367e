"""Rows that arrive block by block and are read by every block behind: values and gradients against plain indexing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dmt_plugin.comm.batch_layout import RowCounts
from dmt_plugin.comm.distinct.requests import BlockRequests, ReadIds
from dmt_plugin.nn.distinct_rows import ExpandRows, HandedRows, SpreadRows

ROWS = (3, 0, 2)
"""Rows that arrive with each block."""
IDS = ([0, 2, 2, 1], [1, 0], [4, 0, 3, 4, 4])
"""What each block reads of all that has arrived."""


def requests(block: int) -> BlockRequests:
    """One lookup of an id per sample, and one of bags of one, two, ... ids with a mean."""
    places = torch.tensor(IDS[block])
    lengths = torch.tensor([1, places.numel() - 1])
    reads = (ReadIds(places, None, None, len(places)), ReadIds(places, lengths, None, 2, mean=True))
    return BlockRequests(RowCounts((), ()), places, None, reads)


def handed(arrived: list[Tensor], node: ExpandRows | SpreadRows) -> list[HandedRows]:
    """What each block hands on."""
    found: list[HandedRows] = []
    for block, rows in enumerate(arrived):
        found.append(node((rows,), requests(block), found[-1] if found else None))
    return found


def expected(arrived: list[Tensor], block: int) -> tuple[Tensor, Tensor]:
    rows = torch.cat(arrived[: block + 1])[torch.tensor(IDS[block])]
    return rows, torch.stack([rows[:1].mean(0), rows[1:].mean(0)])


@pytest.mark.parametrize("used", [(0, 1, 2), (0,), (2,), (0, 2), (1,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_all_blocks_meet(used: tuple[int, ...], dtype: torch.dtype) -> None:
    """Whichever blocks a loss uses, in one backward pass and in a second one; 16-bit gradients enter rounded."""
    close = {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 2e-2}
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(n, 5, generator=generator).to(dtype) for n in ROWS]
    weights = [[torch.randn(len(IDS[k]), 5, generator=generator), torch.randn(2, 5, generator=generator)] for k in used]
    rows = [value.clone().requires_grad_() for value in values]
    plain = [value.float().requires_grad_() for value in values]
    found = handed(rows, ExpandRows())
    own = [[column.float() for column in found[k].columns] for k in used]
    reference = [expected(plain, k) for k in used]
    for a, b in zip(own, reference, strict=True):
        torch.testing.assert_close(a[0], b[0], rtol=0, atol=0)
        torch.testing.assert_close(a[1], b[1], **close)

    def loss(columns: list[tuple[Tensor, ...]] | list[list[Tensor]]) -> Tensor:
        pairs = zip(columns, weights, strict=True)
        return torch.stack([(c * w).sum() for own, by in pairs for c, w in zip(own, by, strict=True)]).sum()

    whole = loss(reference)
    whole.backward()
    for _ in range(2):
        for row in rows:
            row.grad = None
        loss(own).backward(retain_graph=True)
        for row, other in zip(rows, plain, strict=True):
            assert row.grad is None or row.grad.dtype == dtype
            grad = torch.zeros_like(other) if row.grad is None else row.grad.float()
            right = torch.zeros_like(other) if other.grad is None else other.grad
            torch.testing.assert_close(grad, right, **close)


def test_lanes_get_rows_of_earlier_blocks() -> None:
    values = [torch.arange(5.0 * n).view(n, 5) + 100 * i for i, n in enumerate(ROWS)]
    for block, found in enumerate(handed(values, SpreadRows())):
        assert torch.equal(found.rows, torch.cat(values[: block + 1])[torch.tensor(IDS[block])])
