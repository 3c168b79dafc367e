"""Orders a placed graph so that exchanges run while something else is computed.

The stage of a node is the number of exchanges that must have arrived before it can run.

1. Nodes that lead to the start of an exchange run as early as their stage allows: starts
   move up.
2. All others run as late as their users allow, but before the wait that those users need:
   dense work that is only met behind the last exchange (a bottom MLP) fills the time of
   that exchange, forward and, since autograd goes backwards through the same order, in
   the backward pass.
3. Waits come last in their stage: they move down.

Without overlap every exchange is waited for where it starts.
"""

from __future__ import annotations

from torch import fx

from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.placement import EXCHANGE_META


class Schedule(GraphPass):
    """See the module's docstring."""

    name = "schedule"
    contract = Contract(provides=frozenset({"scheduled"}), requires=frozenset({"placed"}))

    def run(self, ctx: PassContext) -> PassResult:
        """Re-orders the nodes of ``ctx.gm``."""
        graph = ctx.gm.graph
        nodes = list(graph.nodes)
        order = _overlapped(nodes) if ctx.config.comm.overlap else _serial(nodes)
        moved = sum(a is not b for a, b in zip(nodes, order, strict=True))
        for node in order:
            nodes[-1].prepend(node) if node is not nodes[-1] else None
        return self.result(sum(_is_start(n) for n in nodes), moved)


def _is_start(node: fx.Node) -> bool:
    return EXCHANGE_META in node.meta and str(node.target).endswith(".start")


def _is_wait(node: fx.Node) -> bool:
    return EXCHANGE_META in node.meta and str(node.target).endswith(".wait")


def _overlapped(nodes: list[fx.Node]) -> list[fx.Node]:
    stage: dict[fx.Node, int] = {}
    for node in nodes:
        arrived = max((stage[n] for n in node.all_input_nodes), default=0)
        stage[node] = arrived + (1 if _is_wait(node) else 0)
    last = max(stage.values())
    leads: set[fx.Node] = set()
    late: dict[fx.Node, int] = {}
    for node in reversed(nodes):
        if _is_start(node) or any(user in leads for user in node.users):
            leads.add(node)
        late[node] = min((late[user] for user in node.users), default=last)
    position = {node: i for i, node in enumerate(nodes)}

    def key(node: fx.Node) -> tuple[int, int, int]:
        if node.op == "placeholder":
            return (-1, 0, position[node])
        if node.op == "output":
            return (last + 1, 0, position[node])
        if node in leads or _is_wait(node):
            return (stage[node], 0, position[node])
        at = max(stage[node], late[node] - 1)
        return (at, 1, position[node])

    order = sorted(nodes, key=key)
    done: set[fx.Node] = set()
    for node in order:
        assert all(n in done for n in node.all_input_nodes), f"{node.name} would run before its inputs"
        done.add(node)
    return order


def _serial(nodes: list[fx.Node]) -> list[fx.Node]:
    order: list[fx.Node] = []
    for node in nodes:
        if _is_wait(node):
            start = node.all_input_nodes[0]
            order.insert(order.index(start) + 1, node)
        else:
            order.append(node)
    return order
