"""Finds the lookups of a model and the feature behind each.

1. A lookup reads rows of a table by the samples' ids (see :mod:`dmt_plugin.passes.analysis.table_calls`)
   and gives one vector per sample, or one per position of a sequence of fixed length. A
   field of a joint table is a lookup of its own range of rows. Where ids lie one behind the other, any number of
   them per sample, or in any other shape, it gives a row for each (by id). So it does where the weights of a bag's ids
   are trained: weights and their gradients stay where the samples are, and the bag is pooled there.
2. Feature identity is the index input, not the table: two lookups with structurally equal
   index expressions read the same feature (a first-order weight and an embedding, say);
   one table read with two index inputs serves two features.
3. A table that is not read by the samples' ids (one vector per position or per feature)
   is dense: it is left alone.
4. A feature is named as the user's markers say, else after the key of the jagged input it
   comes from, or the column of the id matrix, else after the widest table it is looked up in.
5. What the sharded lookup cannot do exactly as the layer does is a finding: it would
   run, and be wrong.
"""

from __future__ import annotations

import itertools
import operator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dmt_plugin.core.update_rule import WeightType
from dmt_plugin.nn.graph_ops import field_streams
from dmt_plugin.nn.lookup.rounding import type_of
from dmt_plugin.passes.analysis.feature_names import named
from dmt_plugin.passes.analysis.id_keys import column_key, key_of, origin_of
from dmt_plugin.passes.analysis.jagged_ids import of_jagged
from dmt_plugin.passes.analysis.joint_columns import ranges_of_columns
from dmt_plugin.passes.analysis.table_calls import (
    TableCall,
    independent_calls,
    read_call,
    reads_samples,
    trained_behind,
    weight_of,
)
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.facts import Bags, Ids, Lookup
from dmt_plugin.passes.logical.split_joint_tables import joint_fields
from dmt_plugin.tables.recording import rule_of


class FindLookups(GraphPass):
    """See the module's docstring."""

    name = "find_lookups"
    contract = Contract(
        provides=frozenset({"lookups"}), requires=frozenset({"single_lookups", "joint_tables_split", "used_lookups"})
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Fills ``ctx.facts.lookups``."""
        found_calls = [call for n in ctx.gm.graph.nodes if (call := read_call(ctx.gm, n)) is not None]
        calls, dependent = independent_calls(found_calls)
        names = _one_name_per_weight(ctx.gm, calls)
        batch = ctx.captured.batch_size
        found: list[Lookup] = []
        for call in calls:
            problem = _unsupported(ctx, call)
            if problem is None:
                found.extend(_lookups_of(ctx.gm, replace(call, weight=names[call.weight]), batch))
            else:
                code, reason, hint = problem
                ctx.find(code, "error", call.table, reason, hint, at=call.node)
        found = _whole_where_ranges_overlap(ctx.gm, ranges_of_columns(ctx.gm, found))
        found = [replace(x, frozen=not weight_of(ctx.gm, x.weight).requires_grad) for x in found]
        _check_weights(ctx, calls, found)
        _check_by_id(ctx, found)
        _say_frozen(ctx, found)
        _report_unread(ctx, [*calls, *dependent])
        for call in dependent:
            ctx.find(
                "DMT209", "warning", call.table,
                f"the ids or weights of {call.node.name} are computed from rows of other tables, so they are not there "
                "when ids are sent to the tables' owners: this table stays on every rank as a dense parameter",
                "nothing, if it is small; else compute the ids outside the model",
                at=call.node,
            )  # fmt: skip
        ctx.facts.lookups = named(ctx, found)
        if not calls:
            ctx.find(
                "DMT200", "error", "",
                "the model has no embedding: no call of nn.EmbeddingBag, nn.Embedding, their functional forms or an "
                "EmbeddingBagCollection was found in its graph",
                "towers are made of embedding tables; check that the model given is the recommender itself",
            )  # fmt: skip
        return self.result(len(found))


# -- from calls to lookups -------------------------------------------------------------


def _lookups_of(gm: fx.GraphModule, call: TableCall, batch: int) -> list[Lookup]:
    rows, dim = weight_of(gm, call.weight).shape
    cut = next((user for user in call.node.users if user.target is field_streams), None)
    if cut is not None:
        return _fields(gm, call, cut, rows, dim)
    ids, hotness, pooling = _read_bag(call) if call.bag else _read_rows(call, batch)
    bags = None
    if call.weights is not None and trained_behind(gm, call.weights):  # their gradient is made where they are
        ids, hotness, pooling = _by_themselves(call), None, "none"
        bags = Bags(call.offsets, call.weights, call.include_last_offset)
    return [
        Lookup(
            node=call.node, table=call.table, rows=rows, dim=dim, pooling=pooling, feature="",
            key=key_of(ids[1], ids[2]), ids=ids, hotness=hotness, weighted=call.weights is not None and bags is None,
            weight=call.weight, origin=origin_of(call.index), padding=call.padding_idx if pooling == "none" else None,
            dtype=_type(gm, call), bags=bags,
        )
    ]  # fmt: skip


def _by_themselves(call: TableCall) -> Ids:
    return "ids_by_themselves", (call.index,), {}


def _read_rows(call: TableCall, batch: int) -> tuple[Ids, int | None, str]:
    shape = tuple(call.node.meta["val"].shape)
    if shape[0] != batch or len(shape) not in (2, 3) or (len(shape) == 2 and of_jagged(call.index)):
        return _by_themselves(call), None, "none"
    if len(shape) == 3 and shape[1] > 1:
        return ("ids_from_bag_2d", (call.index,), {}), shape[1], "none"
    padding = call.padding_idx
    return ("ids_from_embedding", (call.index,), {"padding_idx": padding}), None if padding is not None else 1, "sum"


def _read_bag(call: TableCall) -> tuple[Ids, int | None, str]:
    options: dict[str, Any] = {"weights": call.weights, "padding_idx": call.padding_idx}
    if call.offsets is not None:
        options["include_last_offset"] = call.include_last_offset
        return ("ids_from_bag_offsets", (call.index, call.offsets), options), None, call.mode
    hotness = None if call.padding_idx is not None else int(call.index.meta["val"].shape[1])
    return ("ids_from_bag_2d", (call.index,), options), hotness, call.mode


def _fields(gm: fx.GraphModule, call: TableCall, cut: fx.Node, rows: int, dim: int) -> list[Lookup]:
    """One lookup per field of a joint table."""
    found = joint_fields(gm, call)
    assert found is not None, "streams of a table that is not joint"
    raw, first_rows = found
    lookups = []
    for stream in sorted(cut.users, key=lambda n: int(n.args[1])):  # type: ignore[arg-type]
        i = int(stream.args[1])  # type: ignore[arg-type]
        end = first_rows[i + 1] if i + 1 < len(first_rows) else rows
        padding = call.padding_idx
        local = padding - first_rows[i] if padding is not None and first_rows[i] <= padding < end else None
        lookups.append(
            Lookup(
                node=stream, table=f"{call.table}[{first_rows[i]}:{end}]", rows=end - first_rows[i], dim=dim,
                pooling="sum", feature="", key=_column_key(raw, i, local),
                ids=("ids_from_column", (raw, i), {"padding_idx": local}), hotness=1 if local is None else None,
                weighted=False, weight=call.weight, first_row=first_rows[i], origin=column_key(raw, i),
                dtype=_type(gm, call),
            )
        )  # fmt: skip
    return lookups


def _type(gm: fx.GraphModule, call: TableCall) -> WeightType:
    """Of a table; others than those that can be sharded count as fp32, until somebody wants to shard them."""
    return type_of(weight_of(gm, call.weight).dtype) or "fp32"


def _column_key(matrix: fx.Node, column: int, padding: int | None) -> str:
    """The key of a lookup of ``matrix[:, column]`` by itself."""
    return f"[{column_key(matrix, column)}]{key_of({'padding_idx': padding})}"


def _whole_where_ranges_overlap(gm: fx.GraphModule, lookups: list[Lookup]) -> list[Lookup]:
    """Fields read the whole table where its ranges are not the same, or apart, in all its lookups."""
    ranges: dict[str, set[tuple[int, int]]] = {}
    for lookup in lookups:
        ranges.setdefault(lookup.weight, set()).add((lookup.first_row, lookup.first_row + lookup.rows))
    overlapping = set()
    for weight, own in ranges.items():
        ordered = sorted(own)
        if any(b[0] < a[1] for a, b in itertools.pairwise(ordered)):
            overlapping.add(weight)
    return [_on_whole_table(gm, x) if x.weight in overlapping and x.ids[0] == "ids_from_column" else x for x in lookups]


def _on_whole_table(gm: fx.GraphModule, field: Lookup) -> Lookup:
    call = read_call(gm, field.node.args[0].args[0])  # type: ignore[union-attr, arg-type]
    assert call is not None
    column = int(field.ids[1][1])
    ids: Ids = ("ids_from_column", (call.index, column), {"padding_idx": call.padding_idx})
    return replace(
        field, table=field.weight.removesuffix(".weight"), rows=weight_of(gm, field.weight).shape[0], first_row=0,
        ids=ids, key=_column_key(call.index, column, call.padding_idx),
        hotness=1 if call.padding_idx is None else None,
    )  # fmt: skip


# -- what cannot be done ---------------------------------------------------------------


def _unsupported(ctx: PassContext, call: TableCall) -> tuple[str, str, str] | None:
    gm, batch_size = ctx.gm, ctx.captured.batch_size
    weight = weight_of(gm, call.weight)
    if call.max_norm is not None:
        return "DMT201", "max_norm renormalises rows at every lookup", "drop max_norm; clip the table outside the step"
    if call.scale_grad_by_freq:
        return "DMT202", "scale_grad_by_freq changes the gradient by batch counts", "set scale_grad_by_freq=False"
    if call.mode == "max" and ctx.config.lookup.backend == "fbgemm":
        return (
            "DMT204",
            'the table is pooled by maximum, which FBGEMM does not have, and dmt.lookup.backend is "fbgemm"',
            'set dmt.lookup.backend to "auto", which looks this table up on PyTorch',
        )
    shape = tuple(call.node.meta["val"].shape)
    if call.bag and (shape[0] != batch_size or len(shape) != 2):
        return (
            "DMT206",
            f"for {batch_size} samples the lookup gives the shape {shape}, which is not one vector per sample",
            "give it a bag per sample: offsets (B,), or ids (B, L)",
        )
    padding = call.padding_idx
    if call.bag or padding is None:
        return None
    if not _starts_from_zero(gm, call.weight, weight, padding):
        return (
            "DMT207",
            f"row {padding} is the padding row but not zero; a sharded lookup drops padding ids",
            "zero the row, as nn.Embedding(padding_idx=...) does when it is built",
        )
    return None


def _starts_from_zero(gm: fx.GraphModule, name: str, weight: Tensor, row: int) -> bool:
    """Whether a row of a table is zero; of one on meta by its rule, and that of its layer has a zero padding row."""
    if not weight.is_meta:
        return not bool((weight[row] != 0).any())
    owners = dict(gm.named_modules())
    rule = rule_of(weight, owners.get(name.rpartition(".")[0]), name)
    if rule is None:
        return True
    values = torch.empty(1, rule.dim)
    rule.write(0, name, range(row, row + 1), range(rule.dim), values)
    return not bool((values != 0).any())


def _one_name_per_weight(gm: fx.GraphModule, calls: list[TableCall]) -> dict[str, str]:
    """Two names of one parameter are one table, under the name that is read first."""
    first: dict[int, str] = {}
    return {call.weight: first.setdefault(id(weight_of(gm, call.weight)), call.weight) for call in calls}


def _check_by_id(ctx: PassContext, lookups: list[Lookup]) -> None:
    """Rows by id are asked for at the tables' owners, who pool nothing; a maximum is made there."""
    by_id = {x.table for x in lookups if x.by_id}
    for lookup in lookups:
        if lookup.table in by_id and lookup.pooling == "max":
            ctx.find(
                "DMT212", "error", lookup.table,
                "the table is pooled by maximum here, and its rows are read by id elsewhere; what travels for one of "
                "these is not what travels for the other",
                "take the maximum in the model, over rows that are looked up without pooling; or give one of the two a "
                "table of its own",
                at=lookup.node,
            )  # fmt: skip


def _check_weights(ctx: PassContext, calls: list[TableCall], lookups: list[Lookup]) -> None:
    """A table may only be read by lookups: anything else would need all of it on every rank."""
    tables = {id(weight_of(ctx.gm, x.weight)): x.weight for x in lookups}
    reading = {call.node for call in calls}
    uses: dict[str, dict[str, str]] = {}  # by table: what else uses it, and the parameter's name in that layer
    for node in ctx.gm.graph.nodes:
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            weight = tables.get(id(getattr(ctx.gm.get_submodule(path), name)))
            others = {user.name: "" for user in node.users if user not in reading}
        elif node.op == "call_module" and node not in reading:
            weight = next((tables[id(p)] for p in ctx.module(node).parameters() if id(p) in tables), None)
            others = {str(node.target): _name_in(ctx.module(node), weight, tables)}
        else:
            continue
        if weight is not None and others:
            uses.setdefault(weight, {}).update(others)
    for weight, others in uses.items():
        ctx.find(
            "DMT205", "error", weight.removesuffix(".weight"),
            f"this table's weight is also used by {sorted(others)}; a sharded table lives on one rank and cannot be "
            "tied",
            _untied(weight, others),
        )  # fmt: skip


def _say_frozen(ctx: PassContext, lookups: list[Lookup]) -> None:
    for weight in dict.fromkeys(x.weight for x in lookups if x.frozen):
        ctx.find(
            "DMT203", "info", weight.removesuffix(".weight"),
            "the table is frozen: its rows stay as they are, nothing is kept for an optimizer, and no gradients are "
            "sent for it",
        )  # fmt: skip


def _name_in(layer: nn.Module, weight: str | None, tables: dict[int, str]) -> str:
    return next((name for name, p in layer.named_parameters() if weight and tables.get(id(p)) == weight), "")


def _untied(weight: str, uses: dict[str, str]) -> str:
    """What to write in place of a weight that is a table and something else, in the user's names.

    Args:
        weight: the parameter.
        uses: what else uses it: layers with their name of the parameter, or values that are computed from it.
    """
    own, table = _python(weight), weight.removesuffix(".weight")
    layers = [f"model.{_python(f'{path}.{name}')}" for path, name in sorted(uses.items()) if name]
    ways = []
    if layers:
        ways.append(f"before initialize untie {' and '.join(layers)} = nn.Parameter(model.{own}.detach().clone())")
    if len(layers) < len(uses):
        copy = f"{table.replace('.', '_')}_out"
        ways.append(f"make self.{copy} = nn.Parameter(self.{own}.detach().clone()) and read that where it is no lookup")
    candidates = f"self.{_python(table)}(candidates)" if weight != table else f"F.embedding(candidates, self.{own})"
    return f"{'; '.join(ways)}; or score candidates by their rows, {candidates}, which is a lookup"


def _python(path: str) -> str:
    """A qualified name as Python: ``tables.1.weight`` is ``tables[1].weight``."""
    first, *rest = path.split(".")
    return first + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in rest)


def _report_unread(ctx: PassContext, calls: list[TableCall]) -> None:
    """Reads of a dense tensor by the samples' ids: right, but nothing that can be sharded."""
    reading = {call.node for call in calls}
    for node in ctx.gm.graph.nodes:
        source = node.args[0] if node.args else None
        picked = node.target is operator.getitem and isinstance(source, fx.Node) and source.op == "get_attr"
        if node in reading or not (picked or node.target in (F.embedding, F.embedding_bag)) or not reads_samples(node):
            continue
        weight = next((n for n in node.all_input_nodes if n.op == "get_attr"), node)
        if weight is not node and not isinstance(weight_of(ctx.gm, str(weight.target)), nn.Parameter):
            continue
        ctx.find(
            "DMT208", "warning", str(weight.target) if weight is not node else node.name,
            "rows of this tensor are read by the samples' ids, but not as a table: it stays on every rank as a dense "
            "parameter, and its whole gradient is reduced in every step",
            "look it up through nn.EmbeddingBag, nn.Embedding or F.embedding on a parameter to have it sharded",
            at=node,
        )  # fmt: skip
