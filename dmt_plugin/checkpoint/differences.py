"""What differs between a model and the checkpoint that it is to go on from, as a caller has to say it.

1. A table is compared with the one that has its place in the same parameter. Where fields share a parameter, rows move
   as a field grows: such tables are paired by the features that are looked up in them, else in their order.
2. Everything else is compared by name and shape. A tower whose features or module are others has other parameters,
   whatever their shapes.
3. A feature that came, went or is looked up elsewhere counts where tables do not show it.
4. What this model never reads may be a table in the checkpoint, of a run that looked it up and did nothing with it.

Each difference has the key under which ``changes`` names it: ``"grow"``, ``"new"`` or ``"drop"``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Literal, NamedTuple

from dmt_plugin.checkpoint.compare import fits, shown
from dmt_plugin.checkpoint.manifest import Manifest, TensorEntry
from dmt_plugin.checkpoint.state import MODEL
from dmt_plugin.fxtools.names import tower_part
from dmt_plugin.plan.tables import TableSpec
from dmt_plugin.plan.tower_plan import TowerPlan

Key = Literal["grow", "new", "drop"]
KEYS: tuple[Key, ...] = ("grow", "new", "drop")


class Thing(NamedTuple):
    """What a name of the user's may mean.

    Attributes:
        sort: ``"table"``, ``"tensor"`` (a parameter or buffer that is no table) or ``"feature"``.
        name: its own.
    """

    sort: str
    name: str


@dataclass(frozen=True)
class Side:
    """One of the two: a model, or a checkpoint.

    Attributes:
        tensors: parameters and buffers by name, tables too.
        tables: tables by name.
        features: by name the tables that a feature is looked up in; empty where features are not known.
        plan: its plan; None for a model without one.
    """

    tensors: Mapping[str, TensorEntry]
    tables: Mapping[str, TableSpec]
    features: Mapping[str, tuple[str, ...]]
    plan: TowerPlan | None = None

    @cached_property
    def by_parameter(self) -> dict[str, list[TableSpec]]:
        """The tables of each parameter in the order of their rows."""
        found: dict[str, list[TableSpec]] = defaultdict(list)
        for table in sorted(self.tables.values(), key=lambda t: t.first_row):
            found[table.parameter].append(table)
        return dict(found)

    def features_of(self, table: str) -> frozenset[str]:
        """Features that are looked up in a table, but those that are only called after it."""
        return frozenset(name for name, tables in self.features.items() if table in tables and name != table)


def side_of(tensors: Mapping[str, TensorEntry], plan: TowerPlan) -> Side:
    """A model with a plan."""
    tables = {t.name: t for t in plan.tables if t.parameter in tensors}
    return Side(tensors, tables, {f.name: f.tables for f in plan.features}, plan)


def side_of_manifest(manifest: Manifest) -> Side:
    """A checkpoint."""
    state = {name.removeprefix(MODEL): entry for name, entry in manifest.tensors.items() if name.startswith(MODEL)}
    return side_of(state, manifest.tower_plan)


def side_of_flat(tensors: Mapping[str, TensorEntry], saved: Side) -> Side:
    """A flat model, whose tables are those parameters that are tables in a checkpoint."""
    tables: dict[str, TableSpec] = {}
    for parameter, own in saved.by_parameter.items():
        shape = tensors[parameter].shape if parameter in tensors else ()
        if shape == saved.tensors[parameter].shape:
            tables.update({t.name: t for t in own})
        elif len(own) == 1 and len(shape) == 2:
            tables[own[0].name] = replace(own[0], rows=shape[0], dim=shape[1])
    return Side(tensors, tables, {})


@dataclass
class Differences:
    """See the module's docstring.

    Attributes:
        here: the model.
        saved: the checkpoint.
        pairs: by table of the model the one of the checkpoint that has its place.
        found: what the caller has to name, by key, each with the reason.
        known: what he may name as well, as it is so.
        misfits: tables, of those under ``"new"``, that are in the checkpoint and cannot take rows from there.
        unread: names that this model never reads.
    """

    here: Side
    saved: Side
    unread: frozenset[str] = frozenset()
    pairs: dict[str, str] = field(default_factory=dict)
    found: dict[Key, dict[Thing, str]] = field(default_factory=lambda: {key: {} for key in KEYS})
    known: dict[Key, set[Thing]] = field(default_factory=lambda: {key: set() for key in KEYS})
    misfits: set[str] = field(default_factory=set)

    def is_so(self, key: Key, thing: Thing) -> bool:
        """Whether it may be named under ``key``; a feature also for one of its tables."""
        if thing in self.found[key] or thing in self.known[key]:
            return True
        side = self.saved if key == "drop" else self.here
        return thing.sort == "feature" and any(Thing("table", t) in self.found[key] for t in side.features[thing.name])


def compare(here: Side, saved: Side, optional: Iterable[str] = (), unread: Iterable[str] = ()) -> Differences:
    """All differences.

    Args:
        here: the model.
        saved: the checkpoint.
        optional: names that need not be stored.
        unread: names that the model never reads.
    """
    found = Differences(here, saved, frozenset(unread))
    _pair(found)
    _tables(found, set(optional))
    _tensors(found, set(optional))
    _towers(found)
    if here.plan is not None:
        _features(found)
    return found


def _pair(found: Differences) -> None:
    here, saved = found.here, found.saved
    for parameter, own in here.by_parameter.items():
        old = saved.by_parameter.get(parameter, [])
        if len(own) == len(old) == 1:
            found.pairs[own[0].name] = old[0].name
            continue
        mine, theirs = (
            {side.features_of(t.name): t.name for t in tables} for side, tables in ((here, own), (saved, old))
        )
        telling = all(
            len(keys) == len(tables) and frozenset() not in keys for keys, tables in ((mine, own), (theirs, old))
        )
        if telling:
            found.pairs.update({name: theirs[key] for key, name in mine.items() if key in theirs})
        else:
            found.pairs.update({a.name: b.name for a, b in zip(own, old, strict=False)})


def _tables(found: Differences, optional: set[str]) -> None:
    for name, table in found.here.tables.items():
        thing = Thing("table", name)
        old = found.saved.tables.get(found.pairs.get(name, ""))
        called = name if old is None or old.name == name else f"{name} (there {old.name})"
        if old is None:
            if table.parameter not in optional:
                found.found["new"][thing] = f"table {called}, {table.rows} x {table.dim}, is not in it"
        elif (old.dim, True) == (table.dim, old.rows < table.rows):
            found.found["grow"][thing] = f"table {called} has {table.rows} rows here and {old.rows} in it"
        elif (old.dim, old.rows) != (table.dim, table.rows):
            found.misfits.add(name)
            fewer = ", and nothing says which rows went away" if old.dim == table.dim else ""
            sizes = f"{table.rows} x {table.dim} here and {old.rows} x {old.dim} in it"
            found.found["new"][thing] = (
                f'table {called} is {sizes}{fewer}: only under "new", without its rows, can it go on'
            )
    kept, plain = set(found.pairs.values()), set(found.here.tensors) - set(found.here.by_parameter)
    for name, table in found.saved.tables.items():
        if table.parameter in found.unread:
            continue
        if name not in kept and table.parameter not in plain and table.parameter in found.saved.tensors:
            found.found["drop"][Thing("table", name)] = f"table {name}, {table.rows} x {table.dim}, is only in it"


def _tensors(found: Differences, optional: set[str]) -> None:
    here, saved = found.here, found.saved
    moved = {
        len(own): parameter
        for parameter, own in here.by_parameter.items()
        if any(t.first_row != saved.tables[found.pairs[t.name]].first_row for t in own if t.name in found.pairs)
    }
    for name in sorted(set(here.tensors) - set(here.by_parameter)):
        entry, old = here.tensors[name], saved.tensors.get(name)
        thing = Thing("tensor", name)
        found.known["new"].add(thing)
        if old is None:
            if name not in optional:
                found.found["new"][thing] = f"{name} {list(entry.shape)} is not in it"
        elif here.plan is not None and name in saved.by_parameter and name not in found.unread:
            found.found["new"][thing] = f"{name} is a table in it, and none here"
        elif not fits(old, entry):
            types = (f" {entry.dtype}", f" {old.dtype}") if entry.dtype != old.dtype else ("", "")
            shapes = f"{list(entry.shape)}{types[0]} here and {list(old.shape)}{types[1]} in it"
            joint = len(saved.by_parameter.get(name, ())) > 1
            why = " (rows of several tables: dmt_plugin.transform tells which have grown)" if joint else ""
            found.found["new"][thing] = f"{name} is {shapes}{why}"
        elif entry.dtype.startswith("int") and prod(entry.shape) in moved:
            fields = f"the fields of {moved[prod(entry.shape)]} now begin at other rows"
            found.found["new"][thing] = f"{name} {list(entry.shape)} may say where fields begin, and {fields}"
    for name in sorted(set(saved.tensors) - set(saved.by_parameter)):
        if name not in here.tensors:
            found.found["drop"][Thing("tensor", name)] = f"{name} {list(saved.tensors[name].shape)} is only in it"


def _towers(found: Differences) -> None:
    if found.here.plan is None or found.saved.plan is None:
        return
    mine = _meaning(found.here.plan, {name: _before(found, name) for name in found.here.features})
    theirs = _meaning(found.saved.plan, {})
    for name in sorted(set(found.here.tensors) & set(found.saved.tensors)):
        part = tower_part(name)
        if part is None:
            continue
        own, old = mine.get((part.group, part.number)), theirs.get((part.group, part.number))
        if own is not None and old is not None and own != old:
            what = f"has the features {own.features} here and {old.features} in it"
            text = what if own.features != old.features else f"is {own.module} here and {old.module} in it"
            found.found["new"][Thing("tensor", name)] = f"tower {part.number} of {part.group} {text}"


class _Meaning(NamedTuple):
    """What decides which function the module of a tower is."""

    features: list[str]
    module: tuple[object, ...]


def _meaning(plan: TowerPlan, names: Mapping[str, str]) -> dict[tuple[str, int], _Meaning]:
    """By group and number of the tower; features are called as ``names`` has it."""
    found: dict[tuple[str, int], _Meaning] = {}
    for group in plan.groups if plan.module.kind != "none" else ():
        for tower in range(len(plan.towers)):
            spec = plan.module_of(group, tower)
            features = [names.get(name, name) for name in plan.features_of(group, tower)]
            letters = (spec.c, spec.p, spec.dim, *((spec.rank, spec.outputs) if spec.rank or spec.outputs else ()))
            found[group.name, tower] = _Meaning(features, (group.kind, group.form, spec.kind, *letters))
    return found


def _before(found: Differences, feature: str) -> str:
    """What the checkpoint calls a feature: one that is called after its table changes its name with it."""
    return found.pairs.get(feature, feature) if feature in found.here.tables else feature


def _features(found: Differences) -> None:
    here, saved = found.here, found.saved
    gone = {thing.name for thing in found.found["drop"] if thing.sort == "table"}
    kept = set()
    for name, tables in here.features.items():
        thing, before = Thing("feature", name), _before(found, name)
        old = saved.features.get(before)
        if old is None:
            found.known["new"].add(thing)
            if all(table in found.pairs for table in tables):
                found.found["new"][thing] = f"feature {name}, looked up in {shown(tables)}, is not in it"
            continue
        kept.add(before)
        mine, theirs = (
            [found.pairs[t] for t in tables if t in found.pairs],
            [t for t in old if t in saved.tables and t not in gone],
        )
        if mine != theirs:
            places = f"{shown(tables) or 'nothing'} here and in {shown(old) or 'nothing'} in it"
            found.found["new"][thing] = f"feature {name} is looked up in {places}"
    for name in sorted(set(saved.features) - kept):
        if all(saved.tables[table].parameter in found.unread for table in saved.features[name]):
            continue
        thing = Thing("feature", name)
        found.known["drop"].add(thing)
        if gone.isdisjoint(saved.features[name]):
            found.found["drop"][thing] = f"feature {name}, looked up in {shown(saved.features[name])}, is only in it"
