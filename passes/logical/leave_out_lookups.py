"""Leaves out lookups whose rows the model does not use, or of which it only reads the shape.

Such a lookup would be sharded, and its ids and rows sent between ranks, for nothing:

1. From the model's results walk back to what their values are computed from; what is read for its shape, type or device
   only does not count.
2. A lookup that is not reached is replaced by a tensor of its shape that holds no rows, or dropped if nothing reads
   even that. The table stays in the model's state, and gets no gradient, as in the model itself.
3. A table that a given plan has, and no other lookup reads, stays one: plans of before have such tables.
"""

from __future__ import annotations

from torch import fx

from dmt_plugin.capture import graph_module_over
from dmt_plugin.nn.graph_ops import without_rows
from dmt_plugin.passes.analysis.table_calls import TableCall, read_call, tells_no_values, weight_of
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult


class LeaveOutLookups(GraphPass):
    """See the module's docstring."""

    name = "leave_out_lookups"
    contract = Contract(
        provides=frozenset({"used_lookups"}),
        requires=frozenset({"flat_joins"}),
        conflicts_with=frozenset({"towers", "lookups"}),
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Replaces or drops every such lookup."""
        used = _used(ctx.gm.graph)
        every = [call for n in ctx.gm.graph.nodes if (call := read_call(ctx.gm, n)) is not None]
        kept = _planned(ctx) - {call.weight for call in every if call.node in used}
        calls = [call for call in every if call.node not in used and call.weight not in kept]
        for call in calls:
            how = "reads only the shape of its rows" if call.node.users else "does not use its rows"
            ctx.find(
                "DMT211", "info", call.table,
                f"the model {how}, so this lookup is left out: no ids and no rows travel for it, and it gives the "
                "table no gradient, as before",
                at=call.node,
            )  # fmt: skip
        for call in reversed(calls):
            _replace(ctx.gm, call)
        if calls:  # their tables are no part of the graph
            ctx.captured.graph_module = graph_module_over(ctx.gm, ctx.gm.graph)
        return self.result(len(calls), len(calls))


def _planned(ctx: PassContext) -> set[str]:
    """The parameters that hold tables of the plan that was given."""
    if ctx.given is None or not ctx.given.is_plan:
        return set()
    return {table.parameter for table in ctx.given.plan.tables}


def _used(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose values the model's results are computed from."""
    pending = [node for node in graph.nodes if node.op == "output"]
    used = set(pending)
    while pending:
        node = pending.pop()
        for source in () if tells_no_values(node) else node.all_input_nodes:
            if source not in used:
                used.add(source)
                pending.append(source)
    return used


def _replace(gm: fx.GraphModule, call: TableCall) -> None:
    node, graph = call.node, gm.graph
    if node.users:
        weight = weight_of(gm, call.weight)
        ends = call.offsets if call.offsets is not None else call.index
        more = 1 if call.offsets is not None and call.include_last_offset else 0
        pooled = call.bag and call.offsets is None
        with graph.inserting_before(node):
            shape = graph.call_function(without_rows, (ends, weight.shape[1], weight.dtype, more, pooled))
        shape.meta = dict(node.meta)
        node.replace_all_uses_with(shape)
    sources = [source for source in node.all_input_nodes if source.op == "get_attr"]
    graph.erase_node(node)
    for source in sources:
        if not source.users:
            graph.erase_node(source)
