"""A tower plan out of plain data: every entry of its type and within its range.

What entries say together (features in one tower each, ranges that cover a table) a plan checks itself, and against the
model it is used for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dmt_plugin.core.entries import Entry
from dmt_plugin.core.errors import PlanError
from dmt_plugin.core.limits import INITS, MOST_TOWERS, TOWER_MODULES, WIDEST, is_own_module
from dmt_plugin.core.update_rule import WEIGHT_TYPES
from dmt_plugin.plan.row_shares import RowShares
from dmt_plugin.plan.specs import FORMS, GROUP_KINDS, FeatureSpec, GroupSpec, TowerModuleSpec
from dmt_plugin.plan.tables import TableRange, TableSpec, TableSplit

PLAN_VERSION = 3
"""The newest version. A plan that needs nothing new says 1, and keeps its fingerprint: version 2 has counts of distinct
rows, or tables elsewhere than on their tower's host, or in rows by modulo, or "dcn" towers of a rank or with outputs
of the whole tower; version 3 is for hosts of several machines."""

_REQUIRED = ("version", "topology", "tables", "features", "groups", "towers", "tower_hosts", "table_lanes")
_OPTIONAL = ("module", "model", "weights", "provenance", "overrides", "table_splits", "table_hosts", "row_shares")
_DIVIDED = ("row_wise", "column_wise")


def read_fields(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a plan.

    Args:
        data: what :meth:`dmt_plugin.plan.tower_plan.TowerPlan.to_dict` gave.

    Raises:
        PlanError: an entry that is missing, unknown, or cannot be; names it.
    """
    whole = Entry(data, "not a tower plan", PlanError)
    version = data.get("version", 1) if isinstance(data, Mapping) else 1
    if isinstance(version, int) and version not in range(1, PLAN_VERSION + 1):
        raise PlanError(f"the plan has version {version}, this release reads 1 to {PLAN_VERSION}.")
    given = whole.section(_REQUIRED, _OPTIONAL)
    given["version"].whole(1, PLAN_VERSION)

    def named(key: str) -> dict[str, Entry]:
        return given[key].named() if key in given else {}

    def text(key: str) -> str:
        return given[key].text(empty=True) if key in given else ""

    counted = given.get("row_shares")
    return {
        "topology": given["topology"].text(),
        "tables": tuple(map(_table, given["tables"].items())),
        "features": tuple(map(_feature, given["features"].items())),
        "groups": tuple(map(_group, given["groups"].items())),
        "towers": tuple(_names(tower) for tower in given["towers"].items()),
        "tower_hosts": tuple(_place(host) for host in given["tower_hosts"].items()),
        "table_lanes": {name: _place(lane) for name, lane in given["table_lanes"].named().items()},
        "module": _module(given["module"]) if "module" in given else TowerModuleSpec(),
        "model": text("model"),
        "weights": text("weights"),
        "provenance": plain_object(given["provenance"]) if "provenance" in given else {},
        "overrides": {_tower(entry, key): _module(entry) for key, entry in named("overrides").items()},
        "table_splits": {name: _split(entry) for name, entry in named("table_splits").items()},
        "table_hosts": {name: _place(host) for name, host in named("table_hosts").items()},
        "row_shares": None if counted is None or counted.value is None else RowShares.from_dict(counted.value),
    }


def plain_object(entry: Entry) -> dict[str, Any]:
    """An object of whatever a JSON file can hold."""
    entry.named()
    try:
        json.dumps(entry.value)
    except (TypeError, ValueError, RecursionError) as error:
        entry.fail(f"found what a JSON file cannot hold ({error}), expected plain data")
    return dict(entry.value)


def _table(entry: Entry) -> TableSpec:
    given = entry.section(("name", "rows", "dim"), ("weight", "first_row", "dtype", "frozen"))
    return TableSpec(
        name=given["name"].text(),
        rows=given["rows"].whole(1),
        dim=given["dim"].whole(1),
        weight=given["weight"].text(empty=True) if "weight" in given else "",
        first_row=given["first_row"].whole() if "first_row" in given else 0,
        dtype=given["dtype"].word(WEIGHT_TYPES) if "dtype" in given else "fp32",  # type: ignore[arg-type]
        frozen="frozen" in given and given["frozen"].flag(),
    )


def _feature(entry: Entry) -> FeatureSpec:
    given = entry.section(("name", "tables"), ("hotness",))
    hotness = given.get("hotness")
    ids = None if hotness is None or hotness.value is None else hotness.whole(1)
    return FeatureSpec(given["name"].text(), _names(given["tables"]), ids)


def _group(entry: Entry) -> GroupSpec:
    given = entry.section(("name", "kind", "width", "features"), ("form", "dim", "parameters"))
    kind = given["kind"].word(GROUP_KINDS)
    return GroupSpec(
        name=given["name"].text(),
        kind=kind,
        width=given["width"].whole(int(kind == "tower")),
        features=_names(given["features"]),
        form=given["form"].word(FORMS) if "form" in given else "native",
        dim=given["dim"].whole(0, WIDEST) if "dim" in given else 0,
        parameters=_names(given["parameters"]) if "parameters" in given else (),
    )


def _module(entry: Entry) -> TowerModuleSpec:
    given = entry.section((), ("kind", "c", "p", "dim", "init", "seed", "rank", "outputs"))
    if "kind" in given and not is_own_module(given["kind"].text()):
        given["kind"].word((*TOWER_MODULES, "pkg.mod:Class"))
    if "init" in given:
        given["init"].word(INITS)
    for key in ("c", "p", "dim", "rank", "outputs"):
        if key in given:
            given[key].whole(0, WIDEST)
    if "seed" in given:
        given["seed"].whole()
    return TowerModuleSpec(**entry.value)


def _split(entry: Entry) -> TableSplit:
    given = entry.section(("kind", "ranges"))
    kind: Any = given["kind"].word(_DIVIDED)
    return TableSplit(kind, tuple(map(_range, given["ranges"].items())))


def _range(entry: Entry) -> TableRange:
    given = entry.section(("lane", "first", "end"), ("step", "host"))
    host = given.get("host")
    return TableRange(
        lane=_place(given["lane"]),
        first=given["first"].whole(),
        end=given["end"].whole(),
        step=given["step"].whole(1) if "step" in given else 1,
        host=None if host is None or host.value is None else _place(host),
    )


def _names(entry: Entry) -> tuple[str, ...]:
    return tuple(item.text() for item in entry.items())


def _place(entry: Entry) -> int:
    """Number of a host or of a lane."""
    return entry.whole(0, MOST_TOWERS - 1)


def _tower(entry: Entry, key: str) -> int:
    if not key.isdecimal() or len(key) > 5 or str(int(key)) != key:
        entry.fail(f'the key "{key}" is no tower; expected the number of one, "0" or above')
    return int(key)
