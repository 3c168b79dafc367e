"""Counts how many of the rows that batches look up are distinct, by feature and by table, whoever owns them.

1. A feature reads one or more streams of ids; a table is read by one or more features. Ids that are padding of a
   sequence ask for no row.
2. Per step of a host: the distinct ids of each rank's batch, and those of all batches of the host, of each stream of a
   feature, and of each table over all that read it.
3. What is told is the mean: per id of a feature, and per step of a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dmt_plugin.comm.input_dist.id_stage import Stream
from dmt_plugin.plan.row_shares import FeatureShare, RowShares, TableRows


@dataclass(frozen=True)
class CountedRead:
    """One lookup.

    Attributes:
        slot: number of its stream of ids.
        feature: that it belongs to.
        table: that it reads.
        padding: id that asks for no row, or None.
    """

    slot: int
    feature: str
    table: str
    padding: int | None = None


@dataclass
class _Sums:
    ids: int = 0
    rank: int = 0
    host: int = 0

    def add(self, of_lanes: Sequence[Tensor]) -> None:
        self.ids += sum(ids.numel() for ids in of_lanes)
        self.rank += sum(torch.unique(ids).numel() for ids in of_lanes)
        self.host += torch.unique(torch.cat(list(of_lanes))).numel()


class RowCounter:
    """Sums up what is distinct.

    Args:
        reads: all lookups, in the order of the model.
        samples: per rank and step.
        lanes: ranks per host.

    Attributes:
        steps: of a host, counted so far.
    """

    def __init__(self, reads: Sequence[CountedRead], samples: int, lanes: int) -> None:
        self.samples, self.lanes, self.steps = samples, lanes, 0
        self._features: dict[str, dict[tuple[int, int | None], None]] = {}
        self._tables: dict[str, dict[tuple[int, int | None], None]] = {}
        for read in reads:  # each stream of ids once, in order
            stream = (read.slot, read.padding)
            self._features.setdefault(read.feature, {})[stream] = None
            self._tables.setdefault(read.table, {})[stream] = None
        self._streams = {(read.slot, read.padding): _Sums() for read in reads}
        self._rows = {table: _Sums() for table in self._tables}

    def add(self, of_lanes: Sequence[Mapping[int, Stream]]) -> None:
        """One step of a host: by lane the ids of every slot, checked."""
        self.steps += 1
        ids = {stream: [_ids(own[stream[0]], stream[1]) for own in of_lanes] for stream in self._streams}
        for stream, sums in self._streams.items():
            sums.add(ids[stream])
        for table, sums in self._rows.items():
            several = [ids[stream] for stream in self._tables[table]]
            sums.add([torch.cat(own) for own in zip(*several, strict=True)])

    def result(self, source: str) -> RowShares:
        """Means of what was added; at least one step was.

        Args:
            source: where the batches came from, for people.
        """
        features = []
        for name, streams in self._features.items():
            own = [self._streams[stream] for stream in streams]
            ids, per_id = sum(s.ids for s in own), max(sum(s.ids for s in own), 1)
            per_sample = ids / (self.steps * self.lanes * self.samples)
            features.append(
                FeatureShare(name, per_sample, sum(s.rank for s in own) / per_id, sum(s.host for s in own) / per_id)
            )
        tables = [
            TableRows(name, sums.rank / (self.steps * self.lanes), sums.host / self.steps)
            for name, sums in self._rows.items()
        ]
        return RowShares(source, self.samples, self.lanes, self.steps, tuple(features), tuple(tables))


def _ids(stream: Stream, padding: int | None) -> Tensor:
    ids = stream.values.reshape(-1)
    return ids if padding is None else ids[ids != padding]
