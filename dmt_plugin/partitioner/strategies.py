"""Partition strategies that need no training: strided, contiguous, from a file.

Every strategy answers one question: given the features in the model's order, some of
them tied together because they share a table, which tower does each belong to? Tied
features move as one unit. The number of units in two towers differs by at most one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import networkx as nx

from dmt_plugin.errors import PlanError
from dmt_plugin.plan import FeatureSpec, read_json

Units = list[list[str]]
Towers = list[list[str]]


def partition_features(
    features: Sequence[FeatureSpec], towers: int, strategy: str, file: str | Path | None = None
) -> tuple[tuple[str, ...], ...]:
    """Assigns every feature to a tower.

    Args:
        features: the model's features, in the model's order.
        towers: number of towers ``T``.
        strategy: ``"strided"``, ``"contiguous"`` or ``"file"``.
        file: for ``"file"``: JSON with an entry ``"towers"``, a list of lists of feature names.

    Returns:
        The feature names of each tower, in the model's order.

    Raises:
        PlanError: more towers than independent features, or a file that does not fit.
    """
    if strategy == "file":
        if file is None:
            raise PlanError('dmt.partition.strategy is "file" but dmt.partition.file is not set.')
        return _from_file(features, towers, file)
    units = tied_units(features)
    if towers > len(units):
        raise PlanError(
            f"{towers} towers but only {len(units)} independent features ({len(features)} features; features that "
            "share a table stay together). Lower dmt.towers.count."
        )
    if strategy not in _STRATEGIES:
        raise PlanError(f"unknown partition strategy {strategy!r}; known: {sorted([*_STRATEGIES, 'file'])}.")
    order = {f.name: i for i, f in enumerate(features)}
    return tuple(tuple(sorted(tower, key=order.__getitem__)) for tower in _STRATEGIES[strategy](units, towers))


def tied_units(features: Sequence[FeatureSpec]) -> Units:
    """Groups features that share a table; units are in order of their first feature."""
    graph: nx.Graph[str | tuple[str, str]] = nx.Graph()
    for feature in features:
        graph.add_node(feature.name)
        for table in feature.tables:
            graph.add_edge(feature.name, ("table", table))
    names = [f.name for f in features]
    position = {name: i for i, name in enumerate(names)}
    units = [
        sorted((n for n in part if isinstance(n, str)), key=position.__getitem__)
        for part in nx.connected_components(graph)
    ]
    return sorted(units, key=lambda unit: position[unit[0]])


def _strided(units: Units, towers: int) -> Towers:
    """Deals the units out like cards: unit ``i`` goes to tower ``i mod T`` (paper, section 5.2.3)."""
    return [[name for unit in units[t::towers] for name in unit] for t in range(towers)]


def _contiguous(units: Units, towers: int) -> Towers:
    """Cuts the list of units into ``T`` runs whose lengths differ by at most one."""
    short, extra = divmod(len(units), towers)
    runs: Towers = []
    start = 0
    for t in range(towers):
        stop = start + short + (1 if t < extra else 0)
        runs.append([name for unit in units[start:stop] for name in unit])
        start = stop
    return runs


_STRATEGIES: dict[str, Callable[[Units, int], Towers]] = {"strided": _strided, "contiguous": _contiguous}


def _from_file(features: Sequence[FeatureSpec], towers: int, file: str | Path) -> tuple[tuple[str, ...], ...]:
    data = read_json(file)
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
