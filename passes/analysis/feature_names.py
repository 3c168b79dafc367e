"""Names of features: what plans, partition files and reports call them.

1. The key that a marker in the user's code gives it (:func:`dmt_plugin.mark_embeddings`).
2. The key of the jagged input that it comes from, or the column of the id matrix.
3. The widest table that it is looked up in.

Names are made once, in the captured graph, and kept with the lookups: the plan is written in them.
"""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import replace

from torch import fx

from dmt_plugin.passes.analysis.jagged_ids import jagged_key
from dmt_plugin.passes.analysis.marked_names import feature_name
from dmt_plugin.passes.base import PassContext
from dmt_plugin.passes.facts import Lookup


def named(ctx: PassContext, lookups: list[Lookup]) -> list[Lookup]:
    """The same lookups with names of their features."""
    by_key: dict[str, list[Lookup]] = {}
    for lookup in lookups:
        by_key.setdefault(lookup.key, []).append(lookup)
    wanted = {
        key: _marked_name(ctx, group) or _input_name(group[0]) or max(group, key=lambda x: x.dim).table
        for key, group in by_key.items()
    }
    used: Counter[str] = Counter()
    names: dict[str, str] = {}
    for key, name in wanted.items():
        used[name] += 1
        names[key] = name if used[name] == 1 else f"{name}#{used[name]}"
    return [replace(lookup, feature=names[lookup.key]) for lookup in lookups]


def _marked_name(ctx: PassContext, lookups: list[Lookup]) -> str | None:
    """What the user's markers call the feature, where they agree."""
    names = {name for lookup in lookups if (name := feature_name(ctx, lookup.node)) is not None}
    return names.pop() if len(names) == 1 else None


def _input_name(lookup: Lookup) -> str | None:
    """What the model's input calls the feature, where it has a name for it."""
    index = lookup.ids[1][0]
    if not isinstance(index, fx.Node):
        return None
    if lookup.ids[0] == "ids_from_column":
        return f"{index.target}[{lookup.ids[1][1]}]" if index.op == "placeholder" else None
    if (key := jagged_key(index)) is not None:
        return key
    if index.target is operator.getitem and isinstance(index.args[1], str):
        return index.args[1]
    return None
