"""``changes=``: what the caller of a load says has changed since the checkpoint was saved.

1. Every difference (:mod:`.differences`) has to be named, and what is named has to be so. A name is that of a table, a
   feature, a parameter or buffer, or a module (all below it); ``*`` and ``?`` stand for any characters.
2. What is not taken from the checkpoint keeps what the model holds: rows that were added, new tables, layers that are
   named.
3. Before the first tensor changes, :func:`fit_to` says what goes where, or what is wrong.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dmt_plugin.checkpoint.compare import shown
from dmt_plugin.checkpoint.differences import KEYS, Differences, Key, Side, Thing, compare
from dmt_plugin.checkpoint.manifest import Manifest
from dmt_plugin.checkpoint.state import MODEL, StoredTable
from dmt_plugin.core.errors import CheckpointError
from dmt_plugin.fxtools.names import tower_part, tower_path

Changes = Mapping[str, Iterable[str]]
"""Names under ``"grow"``, ``"new"`` and ``"drop"``."""


@dataclass(frozen=True)
class Fit:
    """What of a checkpoint goes where.

    Attributes:
        tables: by table of the model where the rows are that it takes; other tables keep what they hold.
        fresh: parameters and buffers that keep what they hold.
        gone: parameters and buffers of the checkpoint that have no place.
        grown: tables that have more rows than in the checkpoint.
    """

    tables: Mapping[str, StoredTable]
    fresh: frozenset[str]
    gone: frozenset[str]
    grown: frozenset[str]

    def left_of(self, manifest: Manifest) -> Manifest:
        """What a checkpoint says of itself without what is not taken from it."""
        left = {name: entry for name, entry in manifest.tensors.items() if not self._skips(name)}
        return dataclasses.replace(manifest, tensors=left)

    def _skips(self, name: str) -> bool:
        parameter = name.removeprefix(MODEL) if name.startswith(MODEL) else name.split(".", 2)[-1]
        return parameter in self.fresh or parameter in self.gone

    def __str__(self) -> str:
        parts = (("grown", self.grown), ("not taken from it", self.fresh), ("left behind", self.gone))
        return "; ".join(f"{what}: {shown(sorted(names))}" for what, names in parts if names)


Named = Mapping[Key, tuple[str, ...]]
"""Names by key, every key."""


def read_changes(given: Any) -> Named:
    """What the caller gave.

    Raises:
        CheckpointError: it is something else than lists of names under the three keys.
    """
    if given is None:
        given = {}
    problem = ""
    if not isinstance(given, Mapping):
        problem = f"found a {type(given).__name__}"
    elif unknown := [key for key in given if key not in KEYS]:
        problem = f"found the key {unknown[0]!r}"
    else:
        odd = [
            f"found {value!r} under {key!r}"
            for key, value in given.items()
            if isinstance(value, (str, Mapping))
            or not isinstance(value, Iterable)
            or not all(isinstance(name, str) for name in value)
        ]
        problem = odd[0] if odd else ""
    if problem:
        raise CheckpointError(
            f'changes= is a mapping with lists of names under "grow", "new" and "drop", such as {{"grow": ["items"]}}; '
            f"{problem}. Nothing was loaded."
        )
    return {key: tuple(dict.fromkeys(given.get(key, ()))) for key in KEYS}


def fit_to(
    here: Side, saved: Side, named: Named, where: str, optional: Iterable[str] = (), unread: Iterable[str] = ()
) -> Fit:
    """What of a checkpoint goes where.

    Args:
        here: the model.
        saved: the checkpoint.
        named: what the caller gave, of :func:`read_changes`.
        where: the checkpoint, for messages.
        optional: names that need not be stored.
        unread: names that the model never reads.

    Raises:
        CheckpointError: something differs that ``changes`` does not name, or it names what is not so.
    """
    optional = set(optional)
    found = compare(here, saved, optional, unread)
    said: dict[Key, set[Thing]] = {key: set() for key in KEYS}
    problems: list[str] = []
    for key, names in named.items():
        for name in names:
            try:
                said[key] |= _meant(found, key, name)
            except CheckpointError as error:
                problems.append(str(error))
    if problems:
        raise CheckpointError(f"changes= names what is not so, and nothing was loaded: {'; '.join(problems)}.")
    missing = {key: {thing: text for thing, text in found.found[key].items() if thing not in said[key]} for key in KEYS}
    if any(missing.values()):
        raise CheckpointError(_refusal(found, named, missing, where))
    return _fit(found, said["new"], optional)


def _fit(found: Differences, new: set[Thing], optional: set[str]) -> Fit:
    here, saved = found.here, found.saved
    taken = {name: _place(saved, old) for name, old in found.pairs.items() if name not in found.misfits}
    fresh = {thing.name for thing in new if thing.sort == "tensor"} | (
        optional & set(here.tensors) - set(saved.tensors)
    )
    fresh |= {parameter for parameter, own in here.by_parameter.items() if all(t.name not in taken for t in own)}
    grown = {thing.name for thing in found.found["grow"]}
    return Fit(taken, frozenset(fresh), frozenset(set(saved.tensors) - set(here.tensors)), frozenset(grown))


def _place(saved: Side, name: str) -> StoredTable:
    table = saved.tables[name]
    return StoredTable(table.first_row, table.rows, saved.tensors[table.parameter].shape[0])


def _meant(found: Differences, key: Key, name: str) -> set[Thing]:
    """What a name stands for under a key, as far as it is so.

    Raises:
        CheckpointError: it stands for nothing, for two things, or for something that is not so.
    """
    side = found.saved if key == "drop" else found.here
    pattern = "*" in name or "?" in name
    things = _matching(side, name) if pattern else _called(side, name, key)
    if key == "grow":
        things = [thing for thing in things if thing.sort != "tensor"]
    if not things:
        what = "table or feature" if key == "grow" else "table, feature, parameter or module"
        known = sorted({*side.tables, *side.features, *(() if key == "grow" else side.tensors)})
        close = difflib.get_close_matches(name, known, 3)
        hint = f" (close: {', '.join(close)})" if close else ""
        raise CheckpointError(f"{name!r} under {key!r} is no {what} of {_SIDES[key]}{hint}")
    so = [thing for thing in things if found.is_so(key, thing)]
    rest = [thing for thing in things if thing not in so]
    if rest and (pattern or key == "new" or not so):
        which = f" ({rest[0].name})" if rest[0].name != name else ""
        raise CheckpointError(f"{name!r}{which} under {key!r} {_why_not(found, key, rest[0])}")
    return _covered(found, side, key, so)


_SIDES: Mapping[Key, str] = {"grow": "this model", "new": "this model", "drop": "the checkpoint"}


def _matching(side: Side, pattern: str) -> list[Thing]:
    expression = re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern), re.DOTALL)
    names = [Thing("table", n) for n in side.tables] + [Thing("feature", n) for n in side.features]
    names += [Thing("tensor", n) for n in side.tensors if n not in side.by_parameter]
    found = [thing for thing in names if expression.fullmatch(thing.name)]
    known = set(found)
    tables = [Thing("table", t.name) for n, own in side.by_parameter.items() if expression.fullmatch(n) for t in own]
    return found + [thing for thing in tables if thing not in known]


def _called(side: Side, name: str, key: Key) -> list[Thing]:
    """Things of a name, without patterns: a table, a parameter, all below a module; else a feature."""
    below = [n for n in side.tensors if n == name or n.startswith(f"{name}.")]
    inside = [Thing("table", t.name) for n in below for t in side.by_parameter.get(n, ())]
    found = [Thing("table", name)] if name in side.tables else inside
    found += [Thing("tensor", n) for n in below if n not in side.by_parameter]
    if name not in side.features:
        return found
    of_feature = [Thing("table", t) for t in side.features[name]]
    if found and set(found) != set(of_feature):
        raise CheckpointError(
            f"{name!r} under {key!r} is a feature, looked up in {shown([t.name for t in of_feature])}, and a module "
            f"with {shown([t.name for t in found])}: name what is meant"
        )
    return [Thing("feature", name)]


def _covered(found: Differences, side: Side, key: Key, so: Iterable[Thing]) -> set[Thing]:
    covered = set(so)
    for thing in list(covered):
        if thing.sort == "feature":
            tables = [Thing("table", t) for t in side.features[thing.name]]
            covered |= {table for table in tables if table in found.found[key]}
    return covered


def _why_not(found: Differences, key: Key, thing: Thing) -> str:
    if key == "drop":
        return "is in this model too"
    tables = [thing.name] if thing.sort == "table" else list(found.here.features[thing.name])
    for table in tables:
        for other in KEYS:
            if text := found.found[other].get(Thing("table", table)):
                return f"is not so: {text}" + (f"; name it under {other!r}" if table not in found.misfits else "")
    sizes = [f"{t.rows} x {t.dim}" for name in tables if (t := found.here.tables.get(name)) is not None]
    return f"is not so: {shown(tables)}, {shown(sizes)}, is the same in the checkpoint"


def _refusal(found: Differences, named: Named, missing: Mapping[Key, Mapping[Thing, str]], where: str) -> str:
    lines = list(dict.fromkeys(text for key in KEYS for text in missing[key].values()))
    wanted = {key: [*named[key], *_short(found, key, missing[key])] for key in KEYS}
    says = "{" + ", ".join(f'"{key}": {_listed(names)}' for key, names in wanted.items() if names) + "}"
    more = "in more than changes= says" if any(named.values()) else "in what follows"
    rest = f"; and {len(lines) - _LINES} more" if len(lines) > _LINES else ""
    return (
        f"{where} is of another model, and nothing was loaded. This model differs {more}: "
        f"{'; '.join(lines[:_LINES])}{rest}. If that is meant, load_checkpoint(..., changes={says}) goes on from it: "
        "added rows, and what is new, keep what they are here, with the optimizer state they have; what is dropped "
        "stays behind. Else build the model that was saved."
    )


def _listed(names: list[str]) -> str:
    rest = len(names) - _MOST
    quoted = [f'"{name}"' for name in names[:_MOST]]
    return f"[{', '.join([*quoted, *([f'... {rest} more'] if rest > 0 else [])])}]"


_MOST, _LINES = 24, 12
"""Names, and differences, that a message lists."""


def _short(found: Differences, key: Key, things: Iterable[Thing]) -> list[str]:
    """Names of things; of a tower, or a layer, of which all is meant, one name."""
    side = found.saved if key == "drop" else found.here
    things = [thing for thing in things if thing.sort != "table" or thing.name not in found.misfits or key == "drop"]
    meant = {thing.name for thing in things if thing.sort == "tensor"}
    names: list[str] = []
    for thing in things:
        name = thing.name
        if thing.sort == "tensor":
            part = tower_part(name)
            above = name.rpartition(".")[0] if part is None else tower_path(part.group, part.number)
            below = {n for n in side.tensors if n.startswith(f"{above}.")}
            if above and below <= meant and above not in side.features:
                name = above
        names.append(name)
    return list(dict.fromkeys(names))
