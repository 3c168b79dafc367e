"""Finds tables shared by several fields that are looked up one by one, and the range of rows of each field.

``table(x[:, i] + offsets[i])``, in a loop over the fields, is a joint table as much as
``table(x + offsets)`` is. It is recognised by the constants, one number per call:

1. every lookup of the table adds one constant to its ids (or none, which is 0), and gives one
   vector per sample;
2. the constants begin at 0, at least three differ (two may be a shift), and all lie inside the
   table.

Then a field has the rows from its constant to the next one.
"""

from __future__ import annotations

import itertools
import operator
from dataclasses import replace

import torch
from torch import fx

from dmt_plugin.fxtools.constants import constant_of
from dmt_plugin.passes.analysis.id_keys import key_of, origin_of
from dmt_plugin.passes.analysis.table_calls import weight_of
from dmt_plugin.passes.facts import Ids, Lookup

_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}


FEWEST = 3
"""Different constants below which they may mean something else."""


def ranges_of_columns(gm: fx.GraphModule, lookups: list[Lookup]) -> list[Lookup]:
    """The same lookups, each with its own range of rows where fields share a table one by one."""
    by_weight: dict[str, list[Lookup]] = {}
    for lookup in lookups:
        by_weight.setdefault(lookup.weight, []).append(lookup)
    changed: dict[fx.Node, Lookup] = {}
    for weight, own in by_weight.items():
        read = [_raw_and_offset(gm, lookup) for lookup in own]
        firsts = sorted({offset for _, offset in read if offset is not None})
        total = weight_of(gm, weight).shape[0]
        if any(offset is None for _, offset in read) or len(firsts) < FEWEST or firsts[0] != 0 or firsts[-1] >= total:
            continue
        ends = dict(itertools.pairwise([*firsts, total]))
        for lookup, (raw, offset) in zip(own, read, strict=True):
            assert raw is not None and offset is not None
            changed[lookup.node] = _range(lookup, raw, offset, ends[offset])
    return [changed.get(lookup.node, lookup) for lookup in lookups]


def _raw_and_offset(gm: fx.GraphModule, lookup: Lookup) -> tuple[fx.Node | None, int | None]:
    """The ids before a constant was added, and the constant; ``None`` if they are not of that kind."""
    reader, args, _ = lookup.ids
    index = args[0]
    if reader != "ids_from_embedding" or lookup.pooling != "sum" or not isinstance(index, fx.Node):
        return None, None
    if index.target not in _ADDITIONS or len(index.args) != 2 or index.kwargs:
        return index, 0
    for raw, added in (index.args, index.args[::-1]):
        constant = constant_of(gm, added)
        if isinstance(raw, fx.Node) and constant is not None and constant.numel() == 1:
            if constant.is_floating_point() or raw.meta["val"].shape != index.meta["val"].shape:
                return None, None
            return raw, int(constant)
    return None, None


def _range(lookup: Lookup, raw: fx.Node, first: int, end: int) -> Lookup:
    padding = lookup.ids[2]["padding_idx"]
    local = padding - first if padding is not None and first <= padding < end else None
    ids: Ids = ("ids_from_embedding", (raw,), {"padding_idx": local})
    return replace(
        lookup, table=f"{lookup.table}[{first}:{end}]", rows=end - first, first_row=first, ids=ids,
        key=key_of(ids[1], ids[2]), hotness=None if local is not None else 1, origin=origin_of(raw),
    )  # fmt: skip
