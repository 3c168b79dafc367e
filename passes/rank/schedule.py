"""Orders a placed graph so that exchanges run while something else is computed.

The waits have an order: by exchange, and for each exchange by micro-block. The stage of a
node is the last wait that must be over before it can run.

1. Nodes that lead to the start of an exchange run as early as their stage allows: starts
   move up.
2. All others run as late as their users allow, but before the wait that those users need:
   dense work that is only met behind the last exchange (a bottom MLP) fills the time of
   that exchange, and what one block computes fills the time of the next one's; forward
   and, since autograd goes backwards through the same order, in the backward pass.
3. Waits come last in their stage: they move down.
4. A block enters an exchange when the block before has come out of it and has started its
   last one: that is the slow one, and must not be held up by a race for the fast one. What
   the block computes for that exchange alone waits as well. In the backward pass it then
   runs while the rows of the block before are still on their way.

Without overlap every exchange is waited for where it starts.
"""

from __future__ import annotations

from torch import fx

from dmt_plugin.fxtools.names import BLOCK_META, EXCHANGE_META, is_start, is_wait
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult


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
        return self.result(sum(is_start(n) for n in nodes), moved)


def _overlapped(nodes: list[fx.Node]) -> list[fx.Node]:
    turn = _turns(nodes)
    after = _held_back(nodes, _queues(nodes))
    stage: dict[fx.Node, int] = {}
    for node in nodes:
        earliest = turn[after[node]] if node in after else turn.get(node, 0)
        stage[node] = max([stage[n] for n in node.all_input_nodes] + [earliest])
    last = max(stage.values())
    leads: set[fx.Node] = set()
    at: dict[fx.Node, int] = {}
    for node in reversed(nodes):
        if is_start(node) or any(user in leads for user in node.users):
            leads.add(node)
        if node.op == "output" or node in leads or node in turn:
            at[node] = stage[node] if node.op != "output" else last
        else:
            # A user that runs as soon as a wait is over would have this node run behind that wait.
            late = min((at[u] - (at[u] == stage[u]) for u in node.users), default=last)
            at[node] = max(stage[node], late)
    position = {node: i for i, node in enumerate(nodes)}

    def key(node: fx.Node) -> tuple[int, int, int, int]:
        if node.op == "placeholder":
            return (-1, 0, 0, position[node])
        if node.op == "output":
            return (last + 1, 0, 0, position[node])
        late = node not in leads and node not in turn
        return (at[node], late, 0 if late else node.meta.get(BLOCK_META, 0), position[node])

    order = sorted(nodes, key=key)
    done: set[fx.Node] = set()
    for node in order:
        assert all(n in done for n in node.all_input_nodes), f"{node.name} would run before its inputs"
        done.add(node)
    return order


def _turns(nodes: list[fx.Node]) -> dict[fx.Node, int]:
    """The waits, numbered from 1 in the order in which they come: by exchange, then by micro-block."""
    depth: dict[fx.Node, int] = {}
    for node in nodes:
        depth[node] = max((depth[n] for n in node.all_input_nodes), default=0) + is_wait(node)
    waits = sorted((n for n in nodes if is_wait(n)), key=lambda n: (depth[n], n.meta.get(BLOCK_META, 0)))
    return {node: number for number, node in enumerate(waits, 1)}


def _queues(nodes: list[fx.Node]) -> dict[fx.Node, fx.Node]:
    """For the start of a block's exchange the wait of the block before in the same exchange, which it comes behind.

    Not for the last exchange: nothing of the block before could start during it.
    """
    waits = {(n.meta[EXCHANGE_META], n.meta[BLOCK_META]): n for n in nodes if is_wait(n) and BLOCK_META in n.meta}
    turns = _turns(nodes)
    last = max(turns, key=turns.__getitem__).meta[EXCHANGE_META] if turns else ""
    starts = [n for n in nodes if is_start(n) and n.meta[EXCHANGE_META] != last and n.meta.get(BLOCK_META, 0) > 0]
    return {n: waits[n.meta[EXCHANGE_META], n.meta[BLOCK_META] - 1] for n in starts}


def _held_back(nodes: list[fx.Node], after: dict[fx.Node, fx.Node]) -> dict[fx.Node, fx.Node]:
    """The same, with the nodes of a block that nothing but such a start has a use for."""
    held = dict(after)
    for node in reversed(nodes):
        waits = {held.get(user) for user in node.users}
        if node not in held and BLOCK_META in node.meta and len(waits) == 1 and not is_wait(node):
            (wait,) = waits
            if wait is not None:
                held[node] = wait
    return held


def _serial(nodes: list[fx.Node]) -> list[fx.Node]:
    order: list[fx.Node] = []
    for node in nodes:
        if is_wait(node):
            start = node.all_input_nodes[0]
            order.insert(order.index(start) + 1, node)
        else:
            order.append(node)
    return order
