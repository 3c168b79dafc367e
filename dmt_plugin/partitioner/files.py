"""Partitions that exist already: checks towers from a file, a plan or the caller against the features of this model.

:func:`partition_features` is the short entry point for strategies that need neither affinities nor settings. Other
files are read by the caller: a partition may also lie in a folder of checkpoints, which this package does not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dmt_plugin.config.section import PartitionConfig
from dmt_plugin.core.entries import Entry
from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner.partition import Partition, make_partition
from dmt_plugin.partitioner.strategies import IN_ORDER, STRATEGIES
from dmt_plugin.plan.file import read_json
from dmt_plugin.plan.reading import plain_object
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.plan.tower_plan import FeatureSpec, TableSpec, TowerPlan


def partition_features(
    features: Sequence[FeatureSpec], towers: int, strategy: str, file: str | Path | None = None
) -> tuple[tuple[str, ...], ...]:
    """Assigns every feature to a tower, by a strategy that needs neither affinities nor settings.

    Args:
        features: the model's features, in the model's order.
        towers: number of towers ``T``.
        strategy: ``"strided"``, ``"contiguous"``, ``"random"`` or ``"file"``.
        file: for ``"file"``: JSON with an entry ``"towers"``, a list of lists of feature names.

    Returns:
        The feature names of each tower, in the model's order; from a file, in the file's.

    Raises:
        PlanError: more towers than independent features, or a file that does not fit.
    """
    if strategy == "file":
        if file is None:
            raise PlanError('dmt.partition.strategy is "file" but dmt.partition.file is not set.')
        return from_given(features, towers, GivenPartition(read_json(file), str(file))).towers
    if strategy not in STRATEGIES:
        raise PlanError(f"unknown partition strategy {strategy!r}; known: {sorted([*STRATEGIES, 'file'])}.")
    if strategy not in (*IN_ORDER, "random"):
        raise PlanError(f"{strategy!r} needs more than the features: use make_partition, which takes the rest as well.")
    return make_partition(features, (), towers, PartitionConfig(strategy=strategy)).towers  # type: ignore[arg-type]


@dataclass(frozen=True)
class GivenPartition:
    """Towers that were decided before: a partition, or a whole plan.

    Attributes:
        data: ``"towers"``, a list with one list of feature names per tower, with what ``dmt partition`` adds to it; or
            a plan as :meth:`dmt_plugin.plan.tower_plan.TowerPlan.to_dict` gives it.
        source: the file that it is from; empty for one that was handed over.
        counts: whether the number of towers follows from it where the configuration leaves that open.
        resumed: whether it is that of a checkpoint: what it does not know was not known to that run either.

    Raises:
        PlanError: an entry that is missing, unknown or impossible; names the file and the entry.
    """

    data: Mapping[str, Any]
    source: str = ""
    counts: bool = True
    resumed: bool = False

    def __post_init__(self) -> None:
        try:
            if self.is_plan:
                _ = self.plan
            else:
                _check_partition(self.data)
        except PlanError as error:
            raise PlanError(f"{self.named}: {error}") from error

    @property
    def is_plan(self) -> bool:
        """Whether it decides everything, not the towers alone."""
        return isinstance(self.data, Mapping) and "version" in self.data

    @cached_property
    def plan(self) -> TowerPlan:
        """The plan that it is, where it is one."""
        return TowerPlan.from_dict(self.data)

    @property
    def towers(self) -> int | None:
        """The number of towers it asks for by itself, if it does."""
        found = self.data.get("towers")
        return len(found) if self.counts and isinstance(found, (list, tuple)) else None

    @property
    def named(self) -> str:
        """What messages call it."""
        return self.source or "the partition that was given"


def _check_partition(data: Any) -> None:
    """Refuses what is no partition.

    Raises:
        PlanError: naming the entry.
    """
    given = Entry(data, "not a partition", PlanError).section(("towers",), ("model", "provenance", "row_shares"))
    for tower in given["towers"].items():
        for name in tower.items():
            name.text()
    if "model" in given:
        given["model"].text(empty=True)
    if "provenance" in given:
        plain_object(given["provenance"])
    if "row_shares" in given and data["row_shares"] is not None:
        RowShares.from_dict(data["row_shares"])


def given_partition(value: Partition | TowerPlan | Mapping[str, Any]) -> GivenPartition:
    """A partition or a plan that a caller hands over."""
    if isinstance(value, TowerPlan):
        return GivenPartition(value.to_dict())
    if isinstance(value, Partition):
        return GivenPartition({"towers": [list(t) for t in value.towers], "provenance": dict(value.provenance)})
    return GivenPartition(value)


def resolve(
    features: Sequence[FeatureSpec],
    tables: Sequence[TableSpec],
    towers: int,
    config: PartitionConfig,
    model: str,
    given: GivenPartition | None = None,
    rows: Mapping[str, float] | None = None,
) -> Partition:
    """The partition that was given, or that a ``partition`` section asks for.

    Args:
        features: the model's features.
        tables: its tables.
        towers: number of towers.
        config: the ``partition`` section.
        model: fingerprint of the model.
        given: what was decided before.
        rows: see :func:`make_partition`.

    Raises:
        PlanError: as :func:`make_partition`, or a given one that does not fit.
    """
    if given is not None:
        return from_given(features, towers, given, model)
    return make_partition(features, tables, towers, config, model=model, rows=rows)


def from_given(features: Sequence[FeatureSpec], towers: int, given: GivenPartition, model: str = "") -> Partition:
    """Towers as they were decided before.

    Raises:
        PlanError: made for another model or number of towers, or without some of the features.
    """
    data = given.data
    made_for = data.get("model", "")
    if model and made_for and made_for != model:
        raise PlanError(
            f"{given.named} was made for the model {made_for}, this model is {model} (other features, tables or "
            'shapes). Make it again, or keep only its "towers".'
        )
    provenance = dict(data["provenance"]) if "provenance" in data else None
    found = _towers(features, towers, given.named, data)
    if not given.source:
        return Partition(found, provenance or {})
    made = {} if provenance is None else {"made": provenance}
    return Partition(found, {"strategy": "file", "file": given.source, **made})


def _towers(
    features: Sequence[FeatureSpec], towers: int, file: str, data: Mapping[str, Any]
) -> tuple[tuple[str, ...], ...]:
    given = data["towers"]
    if len(given) != towers:
        raise PlanError(
            f"{file} has {len(given)} towers, this run needs {towers}. Set dmt.towers.count to {len(given)} or change "
            "the file."
        )
    known = {f.name for f in features}
    unknown = sorted({name for tower in given for name in tower} - known)
    missing = sorted(known - {name for tower in given for name in tower})
    twice = sorted(name for name, count in Counter(name for tower in given for name in tower).items() if count > 1)
    if unknown or missing or twice:
        raise PlanError(
            f"{file} does not fit the model: unknown features {unknown}, features in no tower {missing}, features "
            f"listed more than once {twice}. "
            f"The model's features are {[f.name for f in features]}."
        )
    empty = [t for t, tower in enumerate(given) if not tower]
    if empty:
        raise PlanError(f"{file}: tower(s) {empty} have no feature. Every tower needs at least one.")
    return tuple(tuple(tower) for tower in given)
