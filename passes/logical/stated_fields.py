"""Joint tables whose ids are made unique by the data pipeline: ``dmt.lookup.fields`` says the rows of each field.

``table(x)`` of ids ``(B, F)`` looks like a sequence, however the ids of its columns keep apart. Where the configuration
says how many rows each column has, ``x`` is written as ``(x - first_rows) + first_rows``, which is ``x`` itself: what a
model with fields that are counted from 0 looks like (:mod:`dmt_plugin.passes.logical.split_joint_tables`).

Rows that were stated wrong change no number: ranks refuse an id outside the rows of its field, as of any table.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from dmt_plugin.config.lookup import matches, no_such_table
from dmt_plugin.core.errors import ConfigError
from dmt_plugin.passes.analysis.table_calls import TableCall, read_call, weight_of
from dmt_plugin.passes.base import PassContext


def spell_stated_fields(ctx: PassContext) -> int:
    """Writes out the first rows of the fields of every table that the configuration names.

    Returns:
        The number of lookups that were changed.

    Raises:
        ConfigError: a name is that of no table, or what is said does not fit the table or how it is read.
    """
    stated = ctx.config.lookup.fields
    if not stated:
        return 0
    calls = [call for node in list(ctx.gm.graph.nodes) if (call := read_call(ctx.gm, node)) is not None]
    buffers: dict[tuple[int, ...], str] = {}
    changed = 0
    for name, rows in stated.items():
        own = [call for call in calls if matches(name, call.table, call.weight)]
        if not own:
            raise ConfigError(f"dmt.lookup.fields[{name!r}]: {no_such_table(name, {call.table for call in calls})}")
        for call in own:
            _check(ctx.gm, call, name, rows)
            _spell(ctx.gm, call, (0, *itertools.accumulate(rows[:-1])), buffers)
            changed += 1
    return changed


def _check(gm: fx.GraphModule, call: TableCall, name: str, rows: Sequence[int]) -> None:
    shape = tuple(call.index.meta["val"].shape)
    said = f"dmt.lookup.fields[{name!r}] says the rows of {len(rows)} fields"
    if call.bag or len(shape) != 2:
        raise ConfigError(f"{said}, but {call.table} is not read as an nn.Embedding by ids (B, {len(rows)})")
    if shape[1] != len(rows):
        raise ConfigError(f"{said}, but {call.table} is read by ids (B, {shape[1]})")
    total = weight_of(gm, call.weight).shape[0]
    if sum(rows) != total:
        raise ConfigError(f"{said}, together {sum(rows)}, but {call.table} has {total} rows")


def _spell(gm: fx.GraphModule, call: TableCall, first_rows: tuple[int, ...], buffers: dict[Any, str]) -> None:
    """``buffers`` are those made before: fields with the same rows, of two tables, are the same features."""
    ids = call.index.meta["val"]
    name = buffers.setdefault(first_rows, f"dmt_first_rows_{len(buffers)}")
    if not hasattr(gm, name):
        weight = weight_of(gm, call.weight)
        device = torch.device("cpu") if weight.is_meta else weight.device
        gm.register_buffer(name, torch.tensor(first_rows, device=device), persistent=False)
    with gm.graph.inserting_before(call.node):
        constant = gm.graph.get_attr(name)
        of_field = gm.graph.call_function(operator.sub, (call.index, constant))
        again = gm.graph.call_function(operator.add, (of_field, constant))
    constant.meta["val"] = torch.empty(len(first_rows), dtype=torch.int64, device="meta")
    of_field.meta["val"] = again.meta["val"] = ids.new_empty(ids.shape, dtype=torch.int64)
    call.node.replace_input_with(call.index, again)
