"""Watches, while a run goes on, how many of its rows are distinct, and says once when that has changed by half.

1. Requests for distinct rows know how many ids they stand for, how many rows are distinct in this rank's batch, and how
   many this rank asks its peers for, for its host; these are lengths that the host has anyway, so nothing waits for a
   device. They are summed up by group of tables (of one width and update rule).
2. Records of the run take the sums. Over all lanes of a host, rows asked for per id are the host's share.
3. Every :data:`WINDOW` calls rank 0 compares its share with what the plan says. Batches of another size have other
   shares, and are not compared. Nothing is switched.

Rows that travel by sample are not counted: that would take a sort that nothing else needs.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from dmt_plugin.comm.distinct.requests import Requests
from dmt_plugin.comm.distinct.row_groups import Read, RowGroup
from dmt_plugin.passes.rank_facts import Placement
from dmt_plugin.plan.row_shares import FeatureShare, RowShares
from dmt_plugin.plan.tower_plan import TowerPlan

logger = logging.getLogger(__name__)

WINDOW = 100
"""Calls between two comparisons."""

DRIFT = 0.5
SAME_SIZE = 0.2
"""How far the ids of a step may be from those that were counted on, for shares to be compared."""


@dataclass
class GroupCount:
    """Sums over some calls.

    Attributes:
        ids: that lookups of this rank's batches have.
        rank: distinct rows of these batches.
        asked: rows that this rank asked their owners for, for all lanes of its host.
    """

    ids: int = 0
    rank: int = 0
    asked: int = 0

    def add(self, other: GroupCount) -> None:
        """Adds another sum."""
        self.ids += other.ids
        self.rank += other.rank
        self.asked += other.asked


class ShareWatch:
    """The counts of one rank.

    Args:
        plan: of the model, which may have counts.
        placement: of this rank, with rows that travel once.
        lookup: this rank's tables.
        speaks: whether this rank says what has changed.
    """

    def __init__(self, plan: TowerPlan, placement: Placement, lookup: Any, speaks: bool) -> None:
        self._names = [group.name for group in placement.groups]
        self._tables = [tuple(table.name for table in group.tables) for group in placement.groups]
        self._expected = _expected(placement, plan)
        self._said = [not speaks] * len(self._names)
        self._window = [GroupCount() for _ in self._names]
        self._record = [GroupCount() for _ in self._names]
        self._calls = 0
        self._hook = lookup.distinct.register_forward_pre_hook(self._asked)

    def close(self) -> None:
        """Counts no longer."""
        self._hook.remove()

    def take(self) -> dict[str, GroupCount]:
        """What was counted since the last time, by group."""
        taken, self._record = self._record, [GroupCount() for _ in self._names]
        return dict(zip(self._names, taken, strict=True))

    def _asked(self, module: Any, arguments: tuple[Any, ...]) -> None:
        del module
        if not torch.is_grad_enabled():
            return
        requests: Requests = arguments[0]
        for own, window, record in zip(requests.groups, self._window, self._record, strict=True):
            found = GroupCount(own.ids, own.distinct, own.fetched)
            window.add(found)
            record.add(found)
        self._calls += 1
        if self._calls == WINDOW:
            self._compare()

    def _compare(self) -> None:
        for i, (found, expected) in enumerate(zip(self._window, self._expected, strict=True)):
            if self._said[i] or expected is None or not found.ids:
                continue
            ids, share = expected
            now = found.rank / found.ids
            if abs(found.ids / self._calls - ids) <= SAME_SIZE * ids and abs(now - share) > DRIFT * share:
                self._said[i] = True
                logger.warning(
                    "rows that travel once: %.2f of the ids of a rank's batch are distinct rows, the plan was made for "
                    "%.2f (tables %s). Nothing is switched in mid-run; count again (a new plan) if it stays so.",
                    now,
                    share,
                    ", ".join(self._tables[i][:4]) + (", ..." if len(self._tables[i]) > 4 else ""),
                )
        self._window, self._calls = [GroupCount() for _ in self._names], 0


def _expected(placement: Placement, plan: TowerPlan) -> list[tuple[float, float] | None]:
    """By group ids of a rank's step, and the share of them that are distinct rows; None where they were not counted."""
    shares = plan.row_shares
    if shares is None:
        return [None] * len(placement.groups)
    ids = _IdsPerSample(placement, shares)
    return [_of_group(group, ids, shares, plan) for group in placement.groups]


def _of_group(group: RowGroup, ids_of: _IdsPerSample, shares: RowShares, plan: TowerPlan) -> tuple[float, float] | None:
    if not group.once:
        return None  # every id asks for its row
    whole = {table.name for table in plan.tables}
    names = [table.name if table.name in whole else plan.shard(table.name).table.name for table in group.tables]
    rows = [shares.of_table(name) for name in names]  # a range of columns asks for the rows of its table
    per_sample = [ids_of(read) for read in group.reads]
    ids = shares.samples * sum(n for n in per_sample if n is not None)
    if None in rows or None in per_sample or not ids:
        return None
    return ids, sum(own.rank for own in rows if own is not None) / ids


class _IdsPerSample:
    """Ids per sample that ask for a row, by lookup; None where they were not counted.

    Where their number varies, or some are padding, they are those that were counted of the feature, over all of its
    streams alike.
    """

    def __init__(self, placement: Placement, shares: RowShares) -> None:
        self._slots, self._shares = placement.distinct_slots, shares
        streams = {(read.slot, read.padding) for group in placement.groups for read in group.reads}
        self._streams = Counter(self._feature(slot) for slot, _ in streams)

    def __call__(self, read: Read) -> float | None:
        slot, feature = self._slots[read.slot], self._feature(read.slot)
        if slot.hotness is not None and read.padding is None:
            return slot.hotness
        return None if feature is None else feature.ids / self._streams[feature]

    def _feature(self, slot: int) -> FeatureShare | None:
        name = self._slots[slot].name  # that of the feature; of its second stream with "/2" behind it
        return self._shares.of_feature(name) or self._shares.of_feature(name.rpartition("/")[0])
