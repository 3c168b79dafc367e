"""Towers that a file or the order of the features decides; the short way in for those that need nothing more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dmt_plugin.checkpoint.folder import find_checkpoint, what_is_there
from dmt_plugin.config.section import PartitionConfig
from dmt_plugin.core.errors import PlanError
from dmt_plugin.partitioner.partition import Partition, make_partition
from dmt_plugin.partitioner.strategies import IN_ORDER, STRATEGIES
from dmt_plugin.plan.tower_plan import FeatureSpec, TableSpec, read_json
from dmt_plugin.topology.shape import Topology


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
        return from_file(features, towers, file).towers
    if strategy not in STRATEGIES:
        raise PlanError(f"unknown partition strategy {strategy!r}; known: {sorted([*STRATEGIES, 'file'])}.")
    if strategy not in (*IN_ORDER, "random"):
        raise PlanError(f"{strategy!r} needs more than the features: use make_partition, which takes the rest as well.")
    return make_partition(features, (), towers, PartitionConfig(strategy=strategy)).towers  # type: ignore[arg-type]


def resolve(
    features: Sequence[FeatureSpec], tables: Sequence[TableSpec], towers: int, config: PartitionConfig, model: str
) -> Partition:
    """The partition that a ``partition`` section asks for, from a file or made now.

    Raises:
        PlanError: as :func:`make_partition`, or a file that does not fit.
    """
    if config.strategy == "file":
        assert config.file is not None  # the section has no such strategy without a file
        return from_file(features, towers, config.file, model)
    return make_partition(features, tables, towers, config, model=model)


def read_partition(file: str | Path, topology: Topology | None = None) -> dict[str, Any]:
    """A partition, or a whole plan, from a file or from a folder of checkpoints.

    Args:
        file: a JSON file; or the folder of a checkpoint, or one with several, of which the newest is taken. Of a
            checkpoint that was saved on another topology, only the towers are taken.
        topology: hosts and lanes of this run.

    Raises:
        PlanError: there is nothing to read.
    """
    if not Path(file).is_dir():
        return read_json(file)
    found = find_checkpoint(file)
    if found is None:
        raise PlanError(f"dmt.partition.file: {file} has no checkpoint with a plan: {what_is_there(file)}")
    plan = dict(found.manifest.plan)
    if topology is not None and plan["topology"] == str(topology):
        return plan
    return {key: plan[key] for key in ("towers", "model", "provenance")}


def from_file(features: Sequence[FeatureSpec], towers: int, file: str | Path, model: str = "") -> Partition:
    """Reads a partition: ``{"towers": [[...], ...]}``, and what ``dmt partition`` adds to it.

    Raises:
        PlanError: not of this form, or made for another model or number of towers.
    """
    data = read_partition(file)
    made_for = data.get("model", "")
    if model and made_for and made_for != model:
        raise PlanError(
            f"{file} was made for the model {made_for}, this model is {model} (other features, tables or shapes). Make "
            'it again, or keep only its "towers".'
        )
    made: dict[str, Any] = {"made": data["provenance"]} if isinstance(data.get("provenance"), dict) else {}
    found = _towers(features, towers, file, data)
    return Partition(found, {"strategy": "file", "file": str(file), **made})


def _towers(
    features: Sequence[FeatureSpec], towers: int, file: str | Path, data: dict[str, Any]
) -> tuple[tuple[str, ...], ...]:
    given = data.get("towers")
    if not isinstance(given, list) or not all(
        isinstance(tower, list) and all(isinstance(name, str) for name in tower) for tower in given
    ):
        raise PlanError(f'{file} needs an entry "towers": a list with one list of feature names per tower.')
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
