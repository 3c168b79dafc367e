"""Batches of ids of any size, put behind each other and cut into the batches of ranks, step after step.

Ids by themselves, of which nobody knows whose they are, are cut in proportion to the samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from dmt_plugin.comm.input_dist.id_source import SourceCheck
from dmt_plugin.comm.input_dist.id_stage import Stream
from dmt_plugin.comm.input_dist.ids import FeatureIds, IdSlot
from dmt_plugin.core.errors import IdRangeError

Ids = tuple[FeatureIds, ...]
"""Ids of all slots, of as many samples as there are."""


def cut_into_steps(
    batches: Iterable[tuple[int, Ids]], slots: Sequence[IdSlot], samples: int, ranks: int
) -> Iterator[list[Ids]]:
    """The ids of all ranks, step after step; samples that do not fill a step are left out.

    Args:
        batches: in the order of the data; each with its number of samples.
        slots: what they are the ids of.
        samples: per rank and step.
        ranks: that take their samples from one step, one behind the other.

    Raises:
        IdRangeError: ids of a batch cannot be read.
    """
    check = SourceCheck(slots, 0)
    pending: list[Ids] = []
    there = 0
    for number, (size, batch) in enumerate(batches):
        if (fault := check.fault_of_form(batch)).rank >= 0:
            raise IdRangeError(f"batch {number}: {fault.message(slots)}")
        pending.append(batch)
        there += size
        while there >= samples * ranks:
            whole = _joined(pending)
            yield [_cut(whole, there, r * samples, (r + 1) * samples) for r in range(ranks)]
            rest = _cut(whole, there, ranks * samples, there)
            there -= samples * ranks
            pending = [rest] if there else []


def checked_streams(slots: Sequence[IdSlot], ids: Ids, rank: int, step: int) -> dict[int, Stream]:
    """The ids of one rank's batch by slot, on the CPU.

    Raises:
        IdRangeError: an id is outside its table, or the lengths of bags do not fit the ids.
    """
    _, streams, fault = SourceCheck(slots, rank)(ids, torch.device("cpu"))
    if fault.rank >= 0:
        raise IdRangeError(f"step {step}: {fault.message(slots)}")
    return streams


def _joined(parts: Sequence[Ids]) -> Ids:
    if len(parts) == 1:
        return parts[0]
    joined = []
    for own in zip(*parts, strict=True):
        lengths = None if own[0].lengths is None else torch.cat([_lengths(ids) for ids in own])
        weights = None if own[0].weights is None else torch.cat([w for ids in own if (w := ids.weights) is not None])
        batch = sum(ids.batch_size for ids in own)
        joined.append(FeatureIds(torch.cat([ids.values for ids in own]), lengths, own[0].hotness, batch, weights))
    return tuple(joined)


def _lengths(ids: FeatureIds) -> Tensor:
    assert ids.lengths is not None
    return ids.lengths


def _cut(whole: Ids, samples: int, first: int, end: int) -> Ids:
    """Of so many samples those from ``first`` to before ``end``."""
    cut = []
    for ids in whole:
        lengths = None
        if ids.by_themselves:
            count = ids.values.numel()
            cut.append(FeatureIds(ids.values[count * first // samples : count * end // samples], None, None, 0))
            continue
        if ids.lengths is None:
            a, b = first * (ids.hotness or 0), end * (ids.hotness or 0)
        else:
            lengths = ids.lengths[first:end]
            a = int(ids.lengths[:first].sum())
            b = a + int(lengths.sum())
        weights = None if ids.weights is None else ids.weights[a:b]
        cut.append(FeatureIds(ids.values[a:b], lengths, ids.hotness, end - first, weights))
    return tuple(cut)
