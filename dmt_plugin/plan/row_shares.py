"""How many of the rows that a batch looks up are distinct, by feature and by table: what was counted on real batches.

Plain data, kept in the plan that was made from it, and in files of its own. It belongs to a number of samples per rank
and of ranks per host; how many hosts there are does not matter to it.

No torch is imported here: a plan is read where torch is not wanted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dmt_plugin.core.entries import Entry
from dmt_plugin.core.errors import PlanError
from dmt_plugin.core.limits import MOST_TOWERS


@dataclass(frozen=True)
class FeatureShare:
    """How many of a feature's ids are distinct rows.

    Attributes:
        feature: its name.
        ids: per sample, on average.
        rank: distinct rows of a rank's batch, per id.
        host: distinct rows of all batches of a host, per id.
    """

    feature: str
    ids: float
    rank: float
    host: float


@dataclass(frozen=True)
class TableRows:
    """How many rows of a table a step needs, whichever features look them up.

    Attributes:
        table: its name.
        rank: distinct rows of a rank's batch, on average over ranks and steps.
        host: distinct rows of all batches of a host, on average over hosts and steps.
    """

    table: str
    rank: float
    host: float


@dataclass(frozen=True)
class RowShares:
    """What was counted.

    Attributes:
        source: where the batches came from, for people.
        samples: per rank and step.
        lanes: ranks per host.
        steps: how many were counted.
        features: one entry per feature, in the model's order.
        tables: one entry per table, in the model's order.
    """

    source: str
    samples: int
    lanes: int
    steps: int
    features: tuple[FeatureShare, ...]
    tables: tuple[TableRows, ...]

    def of_feature(self, name: str) -> FeatureShare | None:
        """The share of a feature; None where it was not counted."""
        return next((own for own in self.features if own.feature == name), None)

    def of_table(self, name: str) -> TableRows | None:
        """The rows of a table; None where they were not counted."""
        return next((own for own in self.tables if own.table == name), None)

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        features = [dict(vars(own)) for own in self.features]
        return {**vars(self), "features": features, "tables": [dict(vars(own)) for own in self.tables]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RowShares:
        """Reads what :meth:`to_dict` gave.

        Raises:
            PlanError: missing, unknown or impossible entries; something twice.
        """
        given = Entry(data, "not a count of distinct rows", PlanError).section(_KEYS)
        shares = cls(
            source=given["source"].text(empty=True),
            samples=given["samples"].whole(1),
            lanes=given["lanes"].whole(1, MOST_TOWERS),
            steps=given["steps"].whole(1),
            features=tuple(map(_feature, given["features"].items())),
            tables=tuple(map(_table, given["tables"].items())),
        )
        for names in ([own.feature for own in shares.features], [own.table for own in shares.tables]):
            if twice := sorted(name for name, count in Counter(names).items() if count > 1):
                raise PlanError(f"a count of distinct rows has {twice} more than once.")
        return shares


_KEYS = ("source", "samples", "lanes", "steps", "features", "tables")


def _feature(entry: Entry) -> FeatureShare:
    given = entry.section(("feature", "ids", "rank", "host"))
    return FeatureShare(given["feature"].text(), *(given[key].number() for key in ("ids", "rank", "host")))


def _table(entry: Entry) -> TableRows:
    given = entry.section(("table", "rank", "host"))
    return TableRows(given["table"].text(), given["rank"].number(), given["host"].number())
