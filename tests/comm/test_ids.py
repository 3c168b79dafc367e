"""Reading of users' arguments: the bags are those that PyTorch would pool."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dmt_plugin.comm.input_dist.ids import (
    FeatureIds,
    ids_from_bag_2d,
    ids_from_bag_offsets,
    ids_from_embedding,
)
from tests._util.routing import pool

TABLE = torch.randint(-9, 9, (10, 4), generator=torch.Generator().manual_seed(0)).float()
X = torch.tensor([3, 0, 7, 7, 0, 9, 1])
WEIGHTS = torch.arange(1.0, 8.0)


@pytest.mark.parametrize("shape", [(7,), (7, 1)])
def test_embedding(shape: tuple[int, ...]) -> None:
    ids = ids_from_embedding(X.view(shape))
    assert (ids.hotness, ids.lengths, ids.batch_size) == (1, None, 7)
    assert torch.equal(pool(ids, TABLE, "sum"), F.embedding(X, TABLE))
    dropped = ids_from_embedding(X.view(shape), padding_idx=0)
    assert torch.equal(pool(dropped, TABLE, "sum"), F.embedding(X, TABLE) * (X != 0).unsqueeze(1))


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding_idx", [None, 0, 7])
def test_bag_2d(mode: str, padding_idx: int | None) -> None:
    x = torch.tensor([[3, 0, 7], [7, 0, 9], [0, 0, 0]])
    ids = ids_from_bag_2d(x, padding_idx=padding_idx)
    assert torch.equal(pool(ids, TABLE, mode), F.embedding_bag(x, TABLE, mode=mode, padding_idx=padding_idx))


@pytest.mark.parametrize("padding_idx", [None, 0])
def test_bag_2d_weighted(padding_idx: int | None) -> None:
    x, weights = X[:6].view(2, 3), WEIGHTS[:6].view(2, 3)
    expected = F.embedding_bag(x, TABLE, mode="sum", per_sample_weights=weights, padding_idx=padding_idx)
    assert torch.equal(pool(ids_from_bag_2d(x, weights, padding_idx), TABLE, "sum"), expected)


@pytest.mark.parametrize("mode", ["sum", "mean"])
@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize("offsets, last", [([0, 2, 2, 5], False), ([0, 2, 2, 7], True)])
def test_bag_offsets(offsets: list[int], last: bool, padding_idx: int | None, mode: str) -> None:
    bounds = torch.tensor(offsets)
    weights = WEIGHTS if mode == "sum" else None
    expected = F.embedding_bag(
        X,
        TABLE,
        bounds,
        mode=mode,
        include_last_offset=last,
        per_sample_weights=weights,
        padding_idx=padding_idx,
    )
    ids = ids_from_bag_offsets(X, bounds, last, weights, padding_idx)
    assert ids.lengths is not None and int(ids.lengths.sum()) == ids.values.numel()
    assert torch.equal(pool(ids, TABLE, mode), expected)


def test_no_samples() -> None:
    none = torch.zeros(0, dtype=torch.long)
    for ids in (
        ids_from_embedding(none),
        ids_from_bag_2d(none.view(0, 3)),
        ids_from_bag_offsets(none, none),
        ids_from_bag_offsets(none, none.new_zeros(1), True),
    ):
        assert ids.batch_size == 0 and pool(ids, TABLE, "sum").shape == (0, 4)


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(7, 2\)"):
        ids_from_embedding(torch.zeros(7, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"matrix of ids"):
        ids_from_bag_2d(X)
    with pytest.raises(ValueError, match=r"weights have shape"):
        ids_from_bag_2d(X.view(7, 1), WEIGHTS)
    with pytest.raises(ValueError, match="exactly one"):
        FeatureIds(X, None, None, 7)
