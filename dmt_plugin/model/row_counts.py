"""Counts on real batches which distinct rows ranks and hosts would ask whom for: what ``comm.dedup`` would send.

1. Batches of any size are read as the placed model reads their ids, and cut into the batches of all ranks of one step
   after the other;
2. per step, the codes that each rank, and each host, would ask for are made and counted by owner, as
   :mod:`dmt_plugin.comm.distinct.requests` makes them. What is told is the mean of the steps.

How many rows of a feature or a table are distinct, whoever owns them, is counted by
:mod:`dmt_plugin.planner.row_counter`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from dmt_plugin.capture.batch_sizes import batch_size_of
from dmt_plugin.capture.example_call import example_of
from dmt_plugin.comm.distinct.requests import RowRequests, ids_of_read
from dmt_plugin.comm.distinct.row_groups import Read, RowCodes
from dmt_plugin.comm.distinct.step_batches import Ids, checked_streams, cut_into_steps
from dmt_plugin.comm.input_dist.id_stage import Stream
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.fxtools.names import REQUESTS
from dmt_plugin.model.id_prefetch import reading_program
from dmt_plugin.model.placed import PlacedGraph
from dmt_plugin.planner.distinct_cost import Needs


@dataclass(frozen=True)
class CountedRows:
    """What was counted.

    Attributes:
        samples: per rank and step.
        steps: of all ranks.
        needs: by group of tables the mean number of distinct rows, by who asks and who owns them.
    """

    samples: int
    steps: int
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
    for ids in islice(cut_into_steps(_read(graph, batches), counts.slots, samples, graph.topology.world_size), steps):
        counts.add(ids)
    return counts.result()


@dataclass
class _Sums:
    """Sums of one group by who asks, and owner."""

    rank: Counter[tuple[int, int]] = field(default_factory=Counter)
    host: Counter[tuple[int, int]] = field(default_factory=Counter)


class _Counts:
    def __init__(self, graph: PlacedGraph, samples: int) -> None:
        exchange = graph.placement.exchanges[REQUESTS]
        assert isinstance(exchange, RowRequests)
        self.topology, self.samples, self.steps = graph.topology.by_machine, samples, 0
        self.slots = exchange.slots
        self.codes = [RowCodes(group, graph.topology, graph.placement.route, 0) for group in exchange.groups]
        self.sums = [_Sums() for _ in self.codes]

    def add(self, of_ranks: Sequence[Ids]) -> None:
        """One step: the ids of every rank."""
        streams = [checked_streams(self.slots, ids, rank, self.steps) for rank, ids in enumerate(of_ranks)]
        self.steps += 1
        hosts = [
            [streams[r] for r in self.topology.lanes_of(self.topology.rank_of(h, 0))]
            for h in range(self.topology.hosts)
        ]
        for codes, sums in zip(self.codes, self.sums, strict=True):
            for host, lanes in enumerate(hosts):
                of_lanes = [
                    self._asked(codes, [self._codes(codes, read, own) for read in codes.group.reads]) for own in lanes
                ]
                for lane, found in enumerate(of_lanes):
                    _add(sums.rank, self.topology.rank_of(host, lane), codes.by_owner(found))
                _add(sums.host, host, codes.by_owner(self._asked(codes, of_lanes)))

    @staticmethod
    def _asked(codes: RowCodes, needed: Sequence[Tensor]) -> Tensor:
        """What is asked for where all this is needed."""
        (asked,) = codes.group.uses([torch.cat(list(needed))]).codes
        return asked

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
        needs = tuple(Needs(_means(own.rank, self.steps), _means(own.host, self.steps)) for own in self.sums)
        return CountedRows(self.samples, self.steps, needs)


def _add(sums: Counter[tuple[int, int]], asker: int, counted: dict[int, int]) -> None:
    for owner, count in counted.items():
        sums[asker, owner] += count


def _means(sums: Counter[tuple[int, int]], steps: int) -> dict[tuple[int, int], float]:
    return {key: total / steps for key, total in sums.items()}


def _read(graph: PlacedGraph, batches: Iterable[Any]) -> Iterator[tuple[int, Ids]]:
    read, logical = reading_program(graph.graph_module), graph.logical
    for batch in batches:
        call = example_of(batch, logical.flat, labelled=True)
        inputs = logical.binder.inputs(call.args, call.kwargs)
        ids = tuple(read(graph.graph_module, *inputs)[REQUESTS])
        said = next((own.batch_size for own in ids if not own.by_themselves), None)
        yield (batch_size_of(inputs) or 0) if said is None else said, ids
