"""Flattens joins of joins: what is stacked first and joined with more afterwards is joined at once.

``torch.cat([torch.stack(rows, dim=1), other], dim=1)`` with ``other`` of ``(B, 1, N)`` is one join of all vectors,
spelled in two steps: a joint table beside other lookups, say. Only as one join its vectors can form one group:

1. an inner join lays vectors side by side behind the batch: ``(B, n, N)``;
2. all that uses it is outer joins along the same dimension, each of which holds other parts besides;
3. its parts take its place in them, as ``(B, 1, N)`` where they were stacked.

Vectors are only moved: values and gradients stay what they were, bit for bit.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from dmt_plugin.fxtools.arguments import argument
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.ops.dims import is_tensor
from dmt_plugin.passes.ops.joins import CONCATENATIONS, JOINS, STACKS, joined_dim, joined_parts
from dmt_plugin.passes.ops.names import name_of, shape_of


class FlattenJoins(GraphPass):
    """See the module's docstring."""

    name = "flatten_joins"
    contract = Contract(
        provides=frozenset({"flat_joins"}),
        requires=frozenset({"cuts_undone", "joint_tables_split"}),
        conflicts_with=frozenset({"lookups"}),
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Flattens every join of joins in ``ctx.gm``."""
        graph = ctx.gm.graph
        inner = [node for node in graph.nodes if _lies_inside(node)]
        for node in inner:
            _flatten(graph, node)
        return self.result(len(inner), len(inner))


def _lies_inside(node: fx.Node) -> bool:
    if not _is_join(node, JOINS) or not node.users:
        return False
    outer = list(node.users)
    return all(_is_join(user, CONCATENATIONS) and joined_parts(user).count(node) == 1 for user in outer) and all(
        len(joined_parts(user)) > 1 for user in outer
    )


def _is_join(node: fx.Node, names: tuple[str, ...]) -> bool:
    """Whether a node joins a list of tensors to ``(B, n, N)``, along the dimension behind the batch."""
    if node.op != "call_function" or name_of(node) not in names or not is_tensor(node) or len(shape_of(node)) != 3:
        return False
    parts = joined_parts(node)
    return (
        bool(parts)
        and all(map(is_tensor, parts))
        and isinstance(argument(node, 1, "dim|axis", 0), int)
        and (joined_dim(node) == 1)
    )


def _flatten(graph: fx.Graph, node: fx.Node) -> None:
    parts: list[Any] = joined_parts(node)
    if name_of(node) in STACKS:
        with graph.inserting_before(node):
            parts = [_one_row(graph, part) for part in parts]
    for outer in list(node.users):
        entries = [new for entry in joined_parts(outer) for new in (parts if entry is node else [entry])]
        if outer.args:
            outer.args = (entries, *outer.args[1:])
        else:
            outer.kwargs = {**outer.kwargs, "tensors": entries}
    graph.erase_node(node)


def _one_row(graph: fx.Graph, part: fx.Node) -> fx.Node:
    row = graph.call_method("unsqueeze", (part, 1))
    row.meta["val"] = part.meta["val"].unsqueeze(1)
    return row
