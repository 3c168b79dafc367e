"""What a plan depends on of its model: its features, and its tables with their places in the model's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from dmt_plugin.plan.file import short_hash
from dmt_plugin.plan.specs import FeatureSpec
from dmt_plugin.plan.tables import TableSpec


def model_fingerprint(tables: Sequence[TableSpec], features: Iterable[FeatureSpec]) -> str:
    """A short hash of features and table shapes."""
    return short_hash(
        {
            "tables": sorted([t.name, t.rows, t.dim] for t in tables),
            "features": sorted([f.name, list(f.tables)] for f in features),
        }
    )


def weights_fingerprint(tables: Iterable[TableSpec]) -> str:
    """A short hash of where tables are in the model's parameters."""
    return short_hash(sorted([t.name, t.parameter, t.first_row] for t in tables))


def unlike(
    planned_tables: Iterable[TableSpec],
    planned_features: Iterable[FeatureSpec],
    tables: Iterable[TableSpec],
    features: Iterable[FeatureSpec],
) -> list[str]:
    """How the tables and features of a plan differ from a model's, in words; their types do not count.

    Args:
        planned_tables: the plan's.
        planned_features: the plan's.
        tables: the model's.
        features: the model's.
    """
    return [
        *_differences("table", {t.name: _table(t) for t in planned_tables}, {t.name: _table(t) for t in tables}),
        *_differences(
            "feature", {f.name: _feature(f) for f in planned_features}, {f.name: _feature(f) for f in features}
        ),
    ]


def _differences(what: str, planned: dict[str, str], here: dict[str, str]) -> Iterator[str]:
    for name in sorted(planned.keys() | here.keys()):
        if name not in here:
            yield f"the model has no {what} {name!r}"
        elif name not in planned:
            yield f"the plan has no {what} {name!r}"
        elif planned[name] != here[name]:
            yield f"{what} {name!r} {planned[name]} in the plan, and {here[name]} in the model"


def _table(table: TableSpec) -> str:
    return f"has {table.rows} rows of width {table.dim} in {table.parameter}, from row {table.first_row} on"


def _feature(feature: FeatureSpec) -> str:
    return f"reads {list(feature.tables)}"
