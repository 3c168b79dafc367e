"""Categorical input of one feature, as every lookup of a user's model can be read.

A feature's ids come in one of three forms: a fixed number of ids per sample (``hotness``), or ``lengths`` that
say how many ids each sample has, or ids by themselves, each of which is to give a row, whatever the model makes of
these. The functions below build that form from the arguments users give to
``nn.Embedding`` and ``nn.EmbeddingBag`` (to which torchrec's collections are dissolved); they are plain module-level
functions so that a graph can call them. With ``padding_idx`` the pad ids are dropped from the bags, which is
what ``nn.EmbeddingBag`` means by it:

1. find the ids that are not padding;
2. keep them, and their weights, in order;
3. count them per sample: the result has ``lengths`` and no fixed hotness.

Arguments that no bags can be read from are no error here, where one rank alone would know of it: what is wrong goes
with the ids to their check at the source (:mod:`dmt_plugin.comm.input_dist.id_source`), and from there to every rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

(
    ID_RANGE,
    BAG_LENGTHS,
    HOTNESS,
    BATCH_SIZE,
    ID_TYPE,
    DIMENSIONS,
    COLUMNS,
    OFFSET_TYPE,
    OFFSET_DIMENSIONS,
    WEIGHTS,
    WEIGHT_TYPE,
    WEIGHTED,
    LEARNED,
    CALL,
) = range(14)
"""What may be wrong with the ids of a feature; with each goes one number that was found."""

_TYPES = sorted({str(v) for v in vars(torch).values() if isinstance(v, torch.dtype)})


def code_of_type(dtype: torch.dtype) -> int:
    """The number that stands for a type where ranks tell each other."""
    return _TYPES.index(str(dtype))


def type_of_code(code: int) -> str:
    """The name of a type by its number."""
    return _TYPES[code]


@dataclass
class FeatureIds:
    """Ids of one feature for one rank's batch; at most one of ``lengths`` and ``hotness`` is set.

    Attributes:
        values: ``(n,)`` integer ids, sample by sample.
        lengths: ``(B,)`` int64 ids per sample, or None.
        hotness: ids per sample when every sample has the same number, else None.
        batch_size: ``B``; 0 for ids by themselves, which have neither lengths nor hotness.
        weights: ``(n,)`` float weight per id, or None.
        fault: what is wrong with what they were to be read from, and the number that goes with it; then the rest says
            nothing.
    """

    values: Tensor
    lengths: Tensor | None
    hotness: int | None
    batch_size: int
    weights: Tensor | None = None
    fault: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.fault is not None:
            return
        if self.by_themselves and not self.batch_size and self.weights is None:
            return
        if (self.lengths is None) == (self.hotness is None):
            raise ValueError("FeatureIds needs exactly one of lengths and hotness")

    @property
    def by_themselves(self) -> bool:
        """Whether nothing says which ids are of which sample."""
        return self.lengths is None and self.hotness is None


@dataclass(frozen=True)
class IdSlot:
    """One stream of ids to distribute: what every rank knows about it beforehand.

    Attributes:
        name: feature name, for messages.
        rows: valid ids are ``0 .. rows - 1``.
        hotness: fixed ids per sample, or None when bags vary.
        weighted: a float32 weight travels with every id.
        host: host that holds the tables looked up with these ids.
        lanes: lanes of ``host`` that own such a table.
        by_id: ids by themselves, each of which gives a row; these have no hotness.
    """

    name: str
    rows: int
    hotness: int | None
    weighted: bool
    host: int
    lanes: tuple[int, ...]
    by_id: bool = False


def _without(x: Tensor, kind: int, found: int) -> FeatureIds:
    """What stands for ids that cannot be read."""
    return FeatureIds(x.new_zeros(0), None, None, 0, fault=(kind, found))


def ids_by_themselves(x: Tensor) -> FeatureIds:
    """Ids of an ``nn.Embedding`` call that gives a row for each, in any number.

    Args:
        x: integer ids of any shape.
    """
    return FeatureIds(x.reshape(-1), None, None, 0)


def ids_from_embedding(x: Tensor, padding_idx: int | None = None) -> FeatureIds:
    """Ids of an ``nn.Embedding`` call with one id per sample.

    Args:
        x: ``(B,)`` or ``(B, 1)`` integer ids.
        padding_idx: drop this id; the sample's bag is then empty and its embedding zero.
    """
    if x.dim() not in (1, 2):
        return _without(x, DIMENSIONS, x.dim())
    if x.dim() == 2 and x.shape[1] != 1:
        return _without(x, HOTNESS, x.shape[1])
    values = x.reshape(-1)
    if padding_idx is None:
        return FeatureIds(values, None, 1, values.numel())
    keep = values != padding_idx
    return FeatureIds(values[keep], keep.long(), None, values.numel())


def ids_from_column(x: Tensor, column: int, padding_idx: int | None = None) -> FeatureIds:
    """Ids of one field of a matrix of ids.

    Args:
        x: ``(B, F)`` integer ids.
        column: the field.
        padding_idx: drop this id; the sample's bag is then empty and its embedding zero.
    """
    if x.dim() != 2:
        return _without(x, DIMENSIONS, x.dim())
    if not 0 <= column < x.shape[1]:
        return _without(x, COLUMNS, x.shape[1])
    return ids_from_embedding(x[:, column], padding_idx)


def ids_from_bag_2d(x: Tensor, weights: Tensor | None = None, padding_idx: int | None = None) -> FeatureIds:
    """Ids of an ``nn.EmbeddingBag`` call with a matrix.

    Args:
        x: ``(B, L)`` integer ids, ``L`` per sample.
        weights: ``(B, L)`` weight per id, or None.
        padding_idx: id to drop from the bags.
    """
    if x.dim() != 2:
        return _without(x, DIMENSIONS, x.dim())
    if weights is not None and weights.shape != x.shape:
        return _without(x, WEIGHTS, weights.numel())
    batch, hotness = x.shape
    if padding_idx is None:
        return FeatureIds(x.reshape(-1), None, hotness, batch, None if weights is None else weights.reshape(-1))
    keep = x != padding_idx
    return FeatureIds(x[keep], keep.sum(1), None, batch, None if weights is None else weights[keep])


def ids_from_bag_offsets(
    x: Tensor,
    offsets: Tensor,
    include_last_offset: bool = False,
    weights: Tensor | None = None,
    padding_idx: int | None = None,
) -> FeatureIds:
    """Ids of an ``nn.EmbeddingBag`` call with offsets.

    Args:
        x: ``(n,)`` integer ids of all bags.
        offsets: ``(B,)`` start of each bag, or ``(B + 1,)`` with ``include_last_offset``.
        include_last_offset: the last entry of ``offsets`` is the end of the last bag.
        weights: ``(n,)`` weight per id, or None.
        padding_idx: id to drop from the bags.
    """
    if x.dim() != 1:
        return _without(x, DIMENSIONS, x.dim())
    if offsets.dim() != 1 or (include_last_offset and not offsets.numel()):
        return _without(x, OFFSET_DIMENSIONS, offsets.dim())
    if offsets.is_floating_point() or offsets.is_complex() or offsets.dtype == torch.bool:
        return _without(x, OFFSET_TYPE, code_of_type(offsets.dtype))
    if weights is not None and weights.shape != x.shape:
        return _without(x, WEIGHTS, weights.numel())
    offsets = offsets.long()
    if not include_last_offset:
        offsets = torch.cat([offsets, offsets.new_tensor([x.numel()])])
    lengths = offsets.diff()
    # Bags that begin behind the first id, or before it, could have lengths as good ones have them.
    lengths[:1] = torch.where(offsets[:1] == 0, lengths[:1], -1)
    if padding_idx is not None and len(lengths) and not _bad(lengths, x.numel()):
        keep = x != padding_idx
        kept = torch.cat([offsets.new_zeros(1), keep.cumsum(0)])
        lengths = kept[offsets].diff()
        x = x[keep]
        weights = None if weights is None else weights[keep]
    return FeatureIds(x, lengths, None, offsets.numel() - 1, weights)


def _bad(lengths: Tensor, count: int) -> bool:
    """Whether these are not the lengths of bags that hold so many ids."""
    return bool((lengths.sum() != count) | (lengths < 0).any())
