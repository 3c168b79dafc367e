"""Reading of users' arguments: the bags are those that PyTorch would pool."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dmt_plugin.comm.input_dist.id_source import SourceCheck
from dmt_plugin.comm.input_dist.ids import (
    FeatureIds,
    IdSlot,
    ids_from_bag_2d,
    ids_from_bag_offsets,
    ids_from_column,
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


def said(ids: FeatureIds, hotness: int | None = None, weighted: bool = False) -> str:
    """What the check at the source says of the ids of one feature; empty if nothing is wrong."""
    slots = [IdSlot("a", 10, hotness, weighted, 0, (0,))]
    _, streams, fault = SourceCheck(slots, 3)([ids], torch.device("cpu"))
    assert (fault.rank < 0) == bool(streams)
    return fault.message(slots) if fault.rank >= 0 else ""


MATRIX = X[:6].view(3, 2)
HALF = torch.tensor([0.0, 2.5])


@pytest.mark.parametrize(
    ("ids", "hotness", "words"),
    [
        (ids_from_embedding(torch.zeros(7, 2, dtype=torch.long)), 1, "2 ids per sample, but 1 in the example batch"),
        (ids_from_embedding(torch.zeros(7, 2, dtype=torch.long), 0), None, "2 ids per sample, but 1 in the example"),
        (ids_from_embedding(torch.zeros(7, 1, 1, dtype=torch.long)), 1, "ids in a tensor of 3 dimension"),
        (ids_from_column(X, 0), 1, "ids in a tensor of 1 dimension"),
        (ids_from_column(MATRIX, 2), 1, "no column of its own: the matrix of ids has 2 column"),
        (ids_from_bag_2d(X), 2, "ids in a tensor of 1 dimension"),
        (ids_from_bag_2d(MATRIX.view(2, 3)), 2, "3 ids per sample, but 2 in the example batch"),
        (ids_from_bag_2d(MATRIX.float()), 2, "ids of the type torch.float32"),
        (ids_from_bag_2d(MATRIX.float(), padding_idx=7), None, "ids of the type torch.float32"),
        (ids_from_bag_2d(MATRIX > 1), 2, "ids of the type torch.bool"),
        (ids_from_bag_offsets(MATRIX, torch.tensor([0])), None, "ids in a tensor of 2 dimension"),
        (ids_from_bag_offsets(X, torch.tensor([[0, 2]])), None, "offsets of 2 dimension"),
        (ids_from_bag_offsets(X, torch.tensor(0)), None, "offsets of 0 dimension"),
        (ids_from_bag_offsets(X, X[:0], True), None, "offsets of 1 dimension(s), or none at all"),
        (ids_from_bag_offsets(X, HALF), None, "offsets of the type torch.float32"),
        (ids_from_bag_offsets(X, HALF, padding_idx=0), None, "offsets of the type torch.float32"),
        (ids_from_bag_offsets(X, HALF > 1), None, "offsets of the type torch.bool"),
    ],
)
def test_what_bags_cannot_be_read_from_is_named_at_the_source(ids: FeatureIds, hotness: Any, words: str) -> None:
    assert said(ids, hotness).startswith(f"rank 3: feature 'a' has {words}")


@pytest.mark.parametrize("padding_idx", [None, 0])
@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (WEIGHTS[:6], "6 weights, which is not one for each id"),
        (WEIGHTS.view(7, 1), "7 weights, which is not one for each id"),
        (WEIGHTS.long(), "weights of the type torch.int64"),
        (WEIGHTS.clone().requires_grad_(), "learned per-sample weights"),
        (None, "no weights, and had some in the example batch"),
    ],
)
def test_weights_are_one_for_each_id(weights: Any, words: str, padding_idx: int | None) -> None:
    offsets = torch.tensor([0, 2])
    assert words in said(ids_from_bag_offsets(X, offsets, False, weights, padding_idx), None, True)
    assert said(ids_from_bag_offsets(X, offsets, False, WEIGHTS, padding_idx), None, True) == ""
    assert "weights, and had none" in said(ids_from_bag_offsets(X, offsets, False, WEIGHTS, padding_idx), None, False)


def test_weights_of_a_matrix_have_its_shape() -> None:
    """As many, in another order, would weigh other ids."""
    for weights in (WEIGHTS[:6].view(2, 3), WEIGHTS[:6], WEIGHTS[:4].view(2, 2)):
        for padding_idx in (None, 7):
            ids = ids_from_bag_2d(MATRIX, weights, padding_idx)
            assert f"{weights.numel()} weights, which" in said(ids, None if padding_idx else 2, True)


@pytest.mark.parametrize("padding_idx", [None, 0, 5])
@settings(max_examples=150)
@given(st.lists(st.integers(-3, 9), max_size=4), st.integers(0, 6), st.booleans())
def test_offsets_are_taken_as_torch_takes_them_or_named(
    padding_idx: int | None, offsets: list[int], count: int, last: bool
) -> None:
    """They begin with 0, rise, and none is beyond the ids; with the last one given, that is their number."""
    x, bounds = X[:count], torch.tensor(offsets, dtype=torch.long)
    ids = ids_from_bag_offsets(x, bounds, last, padding_idx=padding_idx)
    ends = offsets if last else [*offsets, count]
    good = bool(ends) and ends[-1] == count and (len(ends) == 1 or ends[0] == 0) and ends == sorted(ends)
    if len(ends) == 1:  # no bag, and nothing that could be wrong with one
        assert (said(ids) == "") == (count == 0) and ids.batch_size == 0
        return
    if last and not offsets:
        assert "or none at all" in said(ids)
    elif not good:
        assert "bag lengths that are negative or add up to" in said(ids)
    else:
        assert said(ids) == ""
        expected = F.embedding_bag(x, TABLE, bounds, mode="sum", include_last_offset=last, padding_idx=padding_idx)
        assert torch.equal(pool(ids, TABLE, "sum"), expected)


def test_ids_say_how_they_are_cut_into_samples() -> None:
    with pytest.raises(ValueError, match="exactly one"):
        FeatureIds(X, None, None, 7)
