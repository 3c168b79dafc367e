"""How many of the rows that a batch looks up are distinct, by feature and by table: what was counted on real batches.

Plain data, kept in the plan that was made from it, and in files of its own. It belongs to a number of samples per rank
and of ranks per host; how many hosts there are does not matter to it.

No torch is imported here: a plan is read where torch is not wanted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dmt_plugin.core.errors import PlanError


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
            PlanError: missing, unknown or impossible entries.
        """
        try:
            shares = cls(
                source=str(data["source"]),
                samples=int(data["samples"]),
                lanes=int(data["lanes"]),
                steps=int(data["steps"]),
                features=tuple(FeatureShare(**own) for own in data["features"]),
                tables=tuple(TableRows(**own) for own in data["tables"]),
            )
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise PlanError(f"not a count of distinct rows: {type(error).__name__}: {error}") from error
        if unknown := sorted(set(data) - set(vars(shares))):
            raise PlanError(f"a count of distinct rows has the entries {sorted(vars(shares))}, not {unknown}.")
        shares._check()
        return shares

    def _check(self) -> None:
        """Refuses what cannot have been counted.

        Raises:
            PlanError: no samples, lanes or steps; a number that is none, negative or infinite; something twice.
        """
        if empty := sorted(key for key in ("samples", "lanes", "steps") if getattr(self, key) < 1):
            raise PlanError(f"a count of distinct rows needs at least 1 of each of its {', '.join(empty)}.")
        entries: tuple[FeatureShare | TableRows, ...] = (*self.features, *self.tables)
        for own in entries:
            numbers = {key: value for key, value in vars(own).items() if key not in ("feature", "table")}
            bad = {k: v for k, v in numbers.items() if not (isinstance(v, int | float) and 0 <= v < math.inf)}
            if bad:
                raise PlanError(f"a count of distinct rows has {bad} for {own}; numbers from 0 on are expected.")
        for names in ([own.feature for own in self.features], [own.table for own in self.tables]):
            if twice := sorted(name for name, count in Counter(names).items() if count > 1):
                raise PlanError(f"a count of distinct rows has {twice} more than once.")
