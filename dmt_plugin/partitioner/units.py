"""Groups features into units, the smallest things that a partition assigns to a tower, with the user's constraints.

1. Features that share a table, and features that the user keeps together, form one unit.
2. A unit has the constraints of its members: the tower they are pinned to, the group they belong to.
3. Rules that contradict each other are refused here where a look at them is enough, by naming the pair at fault; what
   only shows when loads are counted is found by :mod:`dmt_plugin.partitioner.exact`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, pairwise

import networkx as nx

from dmt_plugin.core.errors import PlanError
from dmt_plugin.plan.tower_plan import FeatureSpec

OTHERS = "others"
"""Group of the features that the user's groups do not name."""


@dataclass(frozen=True)
class Rules:
    """The user's constraints, by names of features.

    Attributes:
        pin: feature to tower.
        together: lists of features that share a tower.
        apart: lists of features no two of which share a tower.
        groups: groups of features; a tower holds features of one group only.
    """

    pin: Mapping[str, int] = field(default_factory=dict)
    together: Sequence[Sequence[str]] = ()
    apart: Sequence[Sequence[str]] = ()
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.pin or self.together or self.apart or self.groups)

    def named(self) -> Iterable[tuple[str, str]]:
        """Every feature named, with the key that names it."""
        for name in self.pin:
            yield name, "pin"
        for key, lists in (("together", self.together), ("apart", self.apart), ("groups", self.groups.values())):
            for names in lists:
                for name in names:
                    yield name, key


@dataclass(frozen=True)
class Unit:
    """Features that go to one tower.

    Attributes:
        names: the features, in the order given.
        pin: the tower it must go to, if any.
        pinned_by: the feature that was pinned.
        group: name of its group, ``""`` without groups.
    """

    names: tuple[str, ...]
    pin: int | None = None
    pinned_by: str = ""
    group: str = ""


@dataclass(frozen=True)
class Units:
    """The units of a model.

    Attributes:
        units: in order of their first feature.
        apart: pairs of units that must not share a tower, each with the two features it was said of.
    """

    units: tuple[Unit, ...]
    apart: Mapping[tuple[int, int], tuple[str, str]]


def make_units(features: Sequence[FeatureSpec], rules: Rules, towers: int) -> Units:
    """Units under the rules.

    Args:
        features: the model's features.
        rules: the user's constraints.
        towers: number of towers.

    Raises:
        PlanError: unknown features or towers, or two rules that contradict each other; names them.
    """
    known = {f.name for f in features}
    _check_names(rules, known, towers)
    groups = {name: group for group, names in rules.groups.items() for name in names}
    units = []
    for names in _components(features, rules.together):
        pins = {name: rules.pin[name] for name in names if name in rules.pin}
        if len(set(pins.values())) > 1:
            (a, at), (b, bt) = next(p for p in combinations(sorted(pins.items()), 2) if p[0][1] != p[1][1])
            raise PlanError(
                f"dmt.partition.pin puts {a!r} in tower {at} and {b!r} in tower {bt}, but they must share a tower: "
                f"{_why_tied(features, rules, a, b)}. Change one of the two."
            )
        inside = {name: groups.get(name, OTHERS) for name in names} if groups else {}
        if len(set(inside.values())) > 1:
            a, b = next(p for p in combinations(names, 2) if inside[p[0]] != inside[p[1]])
            raise PlanError(
                f"{a!r} is in the group {inside[a]!r} and {b!r} in {inside[b]!r}, but they must share a tower: "
                f"{_why_tied(features, rules, a, b)}. Put both in one group."
            )
        by = min(pins, default="")
        units.append(Unit(tuple(names), pins.get(by), by, inside.get(names[0], "")))
    return Units(tuple(units), _apart_pairs(features, rules, units))


def _components(features: Sequence[FeatureSpec], together: Sequence[Sequence[str]]) -> list[list[str]]:
    graph: nx.Graph[str | tuple[str, str]] = nx.Graph()
    for feature in features:
        graph.add_node(feature.name)
        for table in feature.tables:
            graph.add_edge(feature.name, ("table", table))
    for names in together:
        graph.add_edges_from(pairwise(names))
    position = {f.name: i for i, f in enumerate(features)}
    found = [
        sorted((n for n in part if isinstance(n, str)), key=position.__getitem__)
        for part in nx.connected_components(graph)
    ]
    return sorted(found, key=lambda unit: position[unit[0]])


def _check_names(rules: Rules, known: set[str], towers: int) -> None:
    for name, key in rules.named():
        if name not in known:
            raise PlanError(
                f"dmt.partition.{key} names the feature {name!r}, which the model does not have. Its features are "
                f"{sorted(known)}."
            )
    for name, tower in rules.pin.items():
        if not 0 <= tower < towers:
            raise PlanError(
                f"dmt.partition.pin puts {name!r} in tower {tower}; with {towers} towers they are 0..{towers - 1}."
            )
    twice = [name for name, n in Counter(n for names in rules.groups.values() for n in names).items() if n > 1]
    if twice:
        raise PlanError(f"dmt.partition.groups names the features {sorted(twice)} more than once; one group each.")


def _apart_pairs(
    features: Sequence[FeatureSpec], rules: Rules, units: Sequence[Unit]
) -> dict[tuple[int, int], tuple[str, str]]:
    unit_of = {name: u for u, unit in enumerate(units) for name in unit.names}
    pairs: dict[tuple[int, int], tuple[str, str]] = {}
    for names in rules.apart:
        repeated = sorted(name for name, count in Counter(names).items() if count > 1)
        if repeated:
            raise PlanError(f"dmt.partition.apart names {repeated} more than once in {names}; name each of them once.")
        for a, b in combinations(names, 2):
            u, v = sorted((unit_of[a], unit_of[b]))
            if u == v:
                raise PlanError(
                    f"dmt.partition.apart keeps {a!r} and {b!r} apart, but they must share a tower: "
                    f"{_why_tied(features, rules, a, b)}. Drop one of the two."
                )
            if units[u].pin is not None and units[u].pin == units[v].pin:
                raise PlanError(
                    f"dmt.partition.apart keeps {a!r} and {b!r} apart, but dmt.partition.pin puts "
                    f"{units[unit_of[a]].pinned_by!r} and {units[unit_of[b]].pinned_by!r} in tower {units[u].pin}. "
                    "Drop one of the two."
                )
            pairs.setdefault((u, v), (a, b))
    return pairs


def _why_tied(features: Sequence[FeatureSpec], rules: Rules, a: str, b: str) -> str:
    """The shortest chain of tables and rules that ties two features."""
    graph: nx.Graph[str] = nx.Graph()
    for f, g in combinations(features, 2):
        shared = sorted(set(f.tables) & set(g.tables))
        if shared:
            graph.add_edge(f.name, g.name, why=f"{f.name!r} and {g.name!r} share the table {shared[0]!r}")
    for names in rules.together:
        for f_name, g_name in combinations(names, 2):
            if not graph.has_edge(f_name, g_name):
                why = f"dmt.partition.together keeps {f_name!r} and {g_name!r} together"
                graph.add_edge(f_name, g_name, why=why)
    path = nx.shortest_path(graph, a, b)
    return "; ".join(graph.edges[edge]["why"] for edge in pairwise(path))
