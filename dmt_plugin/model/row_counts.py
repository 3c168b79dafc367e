"""Counts on real batches how many rows are distinct: what ``comm.dedup`` would send, before anything runs.

1. Batches of any size are read as the model reads their ids, and put behind each other;
2. they are cut into the batches of all ranks of one step after the other;
3. per step, the codes that each rank, and each host, would ask for are made and counted by owner, as
   :mod:`dmt_plugin.comm.distinct.requests` makes them. What is told is the mean of the steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dmt_plugin.capture.inputs import example_of
from dmt_plugin.comm.distinct.requests import RowRequests, ids_of_read
from dmt_plugin.comm.distinct.row_groups import Read, RowCodes
from dmt_plugin.comm.input_dist.id_source import SourceCheck
from dmt_plugin.comm.input_dist.id_stage import Stream
from dmt_plugin.comm.input_dist.ids import FeatureIds
from dmt_plugin.core.errors import ConfigError, IdRangeError
from dmt_plugin.fxtools.names import REQUESTS
from dmt_plugin.model.id_prefetch import reading_program
from dmt_plugin.model.placed import PlacedGraph
from dmt_plugin.plan.row_shares import FeatureShare
from dmt_plugin.planner.distinct_cost import Needs

Ids = tuple[FeatureIds, ...]


@dataclass(frozen=True)
class CountedRows:
    """What was counted.

    Attributes:
        samples: per rank and step.
        steps: how many were counted.
        features: in the order of the model.
        needs: by group of tables the mean number of distinct rows, by who asks and who owns them.
    """

    samples: int
    steps: int
    features: tuple[FeatureShare, ...]
    needs: tuple[Needs, ...]


def count_rows(graph: PlacedGraph, batches: Iterable[Any], samples: int, steps: int) -> CountedRows:
    """Count the distinct rows of some steps.

    Args:
        graph: any rank's, with the features in question asking for distinct rows.
        batches: as the model is called with them; labels behind its arguments are left out.
        samples: per rank and step.
        steps: the most that are counted.

    Raises:
        ConfigError: the batches are fewer than one step needs.
        IdRangeError: an id is outside its table.
    """
    counts = _Counts(graph, samples)
    for ids in islice(_of_ranks(graph, batches, samples), steps):
        counts.add(ids)
    return counts.result()


@dataclass
class _Feature:
    """Sums of one feature."""

    ids: int = 0
    rank: int = 0
    host: int = 0
    samples: int = 0


@dataclass
class _Sums:
    """Sums of one group by who asks, and owner."""

    rank: Counter[tuple[int, int]] = field(default_factory=Counter)
    host: Counter[tuple[int, int]] = field(default_factory=Counter)


class _Counts:
    def __init__(self, graph: PlacedGraph, samples: int) -> None:
        exchange = graph.placement.exchanges[REQUESTS]
        assert isinstance(exchange, RowRequests)
        self.topology, self.samples, self.steps = graph.topology, samples, 0
        self.slots = exchange.slots
        self.codes = [RowCodes(group, graph.topology, graph.placement.route, 0) for group in exchange.groups]
        self.sums = [_Sums() for _ in self.codes]
        self.features = {slot.name: _Feature() for slot in self.slots}

    def add(self, of_ranks: Sequence[Ids]) -> None:
        """One step: the ids of every rank."""
        self.steps += 1
        streams = [self._checked(ids, rank) for rank, ids in enumerate(of_ranks)]
        hosts = [[streams[r] for r in self.topology.lanes_of(self.topology.rank_of(h, 0))] for h in self._hosts()]
        for codes, sums in zip(self.codes, self.sums, strict=True):
            for host, lanes in enumerate(hosts):
                of_lanes = [
                    torch.unique(torch.cat([self._codes(codes, read, own) for read in codes.group.reads]))
                    for own in lanes
                ]
                for lane, found in enumerate(of_lanes):
                    _add(sums.rank, self.topology.rank_of(host, lane), codes.by_owner(found))
                _add(sums.host, host, codes.by_owner(torch.unique(torch.cat(of_lanes))))
        for number, slot in enumerate(self.slots):
            feature = self.features[slot.name]
            for lanes in hosts:
                of_lanes = [own[number].values.reshape(-1) for own in lanes]
                feature.ids += sum(x.numel() for x in of_lanes)
                feature.samples += self.samples * len(lanes)
                feature.rank += sum(torch.unique(x).numel() for x in of_lanes)
                feature.host += torch.unique(torch.cat(of_lanes)).numel()

    def _hosts(self) -> range:
        return range(self.topology.hosts)

    def _checked(self, ids: Ids, rank: int) -> dict[int, Stream]:
        _, streams, fault = SourceCheck(self.slots, rank)(ids, torch.device("cpu"))
        if fault.rank >= 0:
            raise IdRangeError(f"step {self.steps}: {fault.message(self.slots)}")
        return streams

    def _codes(self, codes: RowCodes, read: Read, streams: dict[int, Stream]) -> Tensor:
        ids, _ = ids_of_read(read, streams[read.slot], self.samples)
        return codes.of(read, ids)

    def result(self) -> CountedRows:
        """Means of what was added."""
        if not self.steps:
            needed = self.samples * self.topology.world_size
            raise ConfigError(
                f"the data has fewer than {needed} samples, which one step of {self.topology.world_size} ranks with "
                f"{self.samples} samples each needs; give more of it, or count for smaller batches (--batch-size)"
            )
        features = tuple(
            FeatureShare(name, own.ids / own.samples, own.rank / max(own.ids, 1), own.host / max(own.ids, 1))
            for name, own in self.features.items()
        )
        needs = tuple(Needs(_means(own.rank, self.steps), _means(own.host, self.steps)) for own in self.sums)
        return CountedRows(self.samples, self.steps, features, needs)


def _add(sums: Counter[tuple[int, int]], asker: int, counted: dict[int, int]) -> None:
    for owner, count in counted.items():
        sums[asker, owner] += count


def _means(sums: Counter[tuple[int, int]], steps: int) -> dict[tuple[int, int], float]:
    return {key: total / steps for key, total in sums.items()}


def _of_ranks(graph: PlacedGraph, batches: Iterable[Any], samples: int) -> Iterable[list[Ids]]:
    """The ids of all ranks, step after step."""
    read = reading_program(graph.graph_module)
    logical, world = graph.logical, graph.topology.world_size
    pending: list[Ids] = []
    for batch in batches:
        call = example_of(batch, logical.flat)
        inputs = logical.binder.inputs(call.args, call.kwargs)
        pending.append(tuple(read(graph.graph_module, *inputs)[REQUESTS]))
        while sum(ids[0].batch_size for ids in pending) >= samples * world:
            whole = _joined(pending)
            yield [_cut(whole, r * samples, (r + 1) * samples) for r in range(world)]
            rest = _cut(whole, world * samples, whole[0].batch_size)
            pending = [rest] if rest[0].batch_size else []


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


def _cut(whole: Ids, first: int, end: int) -> Ids:
    """The samples from ``first`` to before ``end``."""
    cut = []
    for ids in whole:
        lengths = None
        if ids.lengths is None:
            a, b = first * (ids.hotness or 0), end * (ids.hotness or 0)
        else:
            lengths = ids.lengths[first:end]
            a = int(ids.lengths[:first].sum())
            b = a + int(lengths.sum())
        weights = None if ids.weights is None else ids.weights[a:b]
        cut.append(FeatureIds(ids.values[a:b], lengths, ids.hotness, end - first, weights))
    return tuple(cut)
