"""Takes a joint table apart: one stream per field, where fields share a table by offsets.

Many models keep one table for all fields and read it with ``table(x + offsets)``: ``x`` is
``(B, F)``, and field ``i`` has the rows from ``offsets[i]`` on. Each field is a feature of its
own, with its own range of rows.

1. Find calls without pooling whose index is a matrix plus a constant, where the constant
   starts at 0, strictly increases, and lies inside the table. ``(B, F)`` ids without such a
   constant are a sequence, not fields.
   Where the data pipeline has made ids unique, the configuration says the constant
   (:mod:`dmt_plugin.passes.logical.stated_fields`).
2. Cut the result ``(B, F, N)`` into ``F`` streams ``(B, N)`` by one node, which keeps the first
   row of each field among its arguments.
3. A use that picks a field (``rows[:, 3]``) gets its stream; all other uses get the streams
   stacked again, so that they look like any other join. Where fields are picked besides, every
   one of several such uses has a stack of its own: autograd then adds up the gradients of a
   field in the order in which it added those of the table's result, and so rounds alike.

Rows are only moved: values and gradients stay what they were, bit for bit. The table stays
one parameter of the logical model; only the ranks' shares of it are cut.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from dmt_plugin.fxtools.constants import constant_of
from dmt_plugin.nn.graph_ops import field_streams
from dmt_plugin.passes.analysis.table_calls import TableCall, read_call, tells_no_values, weight_of
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.logical.stated_fields import spell_stated_fields

_ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_WHOLE = slice(None, None, None)


class SplitJointTables(GraphPass):
    """See the module's docstring."""

    name = "split_joint_tables"
    contract = Contract(
        provides=frozenset({"joint_tables_split"}),
        requires=frozenset({"single_lookups", "marks"}),
        conflicts_with=frozenset({"towers"}),
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Splits every joint table of ``ctx.gm``."""
        matched, changed = 0, spell_stated_fields(ctx)
        for node in list(ctx.gm.graph.nodes):
            call = read_call(ctx.gm, node)
            if call is None or any(user.target is field_streams for user in node.users):
                continue
            found = joint_fields(ctx.gm, call)
            if found is not None:
                matched += 1
                changed += _split(ctx.gm.graph, node, found[1])
        return self.result(matched, changed)


def joint_fields(gm: fx.GraphModule, call: TableCall) -> tuple[fx.Node, tuple[int, ...]] | None:
    """The raw ids ``(B, F)`` and the first row of each field, if a call reads a joint table."""
    value = call.node.meta["val"]
    if call.bag or not isinstance(value, torch.Tensor) or value.dim() != 3 or value.shape[1] < 2:
        return None
    index = call.index
    if index.target not in _ADDITIONS or len(index.args) != 2 or index.kwargs:
        return None
    for raw, added in (index.args, index.args[::-1]):
        constant = constant_of(gm, added)
        if not isinstance(raw, fx.Node) or constant is None or constant.numel() != value.shape[1]:
            continue
        if constant.shape[-1] != value.shape[1] or constant.is_floating_point():
            continue
        first_rows = tuple(int(v) for v in constant.flatten().tolist())
        rising = all(a < b for a, b in itertools.pairwise(first_rows))
        same_shape = tuple(raw.meta["val"].shape) == tuple(value.shape[:2])
        if same_shape and first_rows[0] == 0 and rising and first_rows[-1] < weight_of(gm, call.weight).shape[0]:
            return raw, first_rows
    return None


def _split(graph: fx.Graph, node: fx.Node, first_rows: tuple[int, ...]) -> int:
    value = node.meta["val"]
    users = list(node.users)
    anchor = node.next
    with graph.inserting_before(anchor):
        cut = graph.call_function(field_streams, (node, first_rows))
        cut.meta["val"] = tuple(value.new_empty(value.shape[0], value.shape[2]) for _ in first_rows)
        streams = [graph.call_function(operator.getitem, (cut, i)) for i in range(len(first_rows))]
        for stream in streams:
            stream.meta["val"] = cut.meta["val"][0]
    rest: list[fx.Node] = []
    for user in users:
        field = _picked_field(user, node)
        if field is None:
            rest.append(user)
        else:
            user.replace_all_uses_with(streams[field])
            graph.erase_node(user)
    order = {n: at for at, n in enumerate(graph.nodes)}
    readers = sorted((user for user in rest if not tells_no_values(user)), key=order.__getitem__)
    apart = len(rest) < len(users) and sum(_uses(user, node) for user in readers) > 1

    def joined() -> fx.Node:
        made = graph.call_function(torch.stack, (streams,), {"dim": 1})
        made.meta["val"] = value
        return made

    for user in reversed(readers[1:] if apart else ()):
        with graph.inserting_before(user):
            _give_each(user, node, joined)
    if rest:
        with graph.inserting_before(anchor):
            whole = joined()
            if apart:
                _give_each(readers[0], node, joined, whole)
        for user in rest:
            user.replace_input_with(node, whole)
    return len(streams) + len(users) + 1


_MADE_OF_SEVERAL = {torch.functional.einsum, torch.einsum, torch.matmul, operator.matmul, "matmul"}
"""Operations that give each of their inputs an operation of its own first, in turn; backward meets the last first."""


def _uses(user: fx.Node, node: fx.Node) -> int:
    """How often ``node`` is among the arguments of ``user``."""
    found: list[fx.Node] = []
    fx.node.map_arg((user.args, user.kwargs), lambda n: found.append(n) if n is node else None)
    return len(found)


def _give_each(user: fx.Node, node: fx.Node, made: Callable[[], fx.Node], *first: fx.Node) -> None:
    """Gives every use of ``node`` in the arguments of ``user`` a node of its own, in the order that backward needs.

    A layer gets one for all: attention asks whether its inputs are the same.

    Args:
        user: the operation.
        node: what it reads.
        made: makes a node.
        first: those that there are already.
    """
    count = 1 if user.op == "call_module" else _uses(user, node)
    own = [*first, *(made() for _ in range(count - len(first)))]
    if user.target not in _MADE_OF_SEVERAL:
        own.reverse()
    given = iter(own if len(own) > 1 else own * _uses(user, node))
    user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), lambda n: next(given) if n is node else n)


def _picked_field(user: fx.Node, node: fx.Node) -> int | None:
    """The field that ``user`` picks out of ``(B, F, N)``, if it does just that."""
    fields = node.meta["val"].shape[1]
    field: Any = None
    if user.target is operator.getitem and user.args[0] is node:
        index = user.args[1]
        if isinstance(index, tuple) and index[:1] == (_WHOLE,) and all(i == _WHOLE for i in index[2:]):
            field = index[1] if len(index) > 1 else None
    elif user.target in ("select", torch.select) and user.args[:2] == (node, 1) and len(user.args) == 3:
        field = user.args[2]
    return field % fields if isinstance(field, int) and -fields <= field < fields else None
