"""Orders a placed graph so that exchanges run while something else is computed.

The waits have an order. Exchanges inside a host come first, by exchange, and for each exchange by micro-block. From the
first exchange between hosts on, which is the slow one, they come by block, and for each block by exchange: distinct
rows go on inside the host from there. The stage of a node is the last wait that must be over before it can run.

1. Nodes that lead to the start of an exchange run as early as their stage allows: starts
   move up.
2. All others run as late as their users allow, but before the wait that those users need,
   which is that for a slow exchange if there is one: dense work that is only met behind the last
   exchange (a bottom MLP) fills the time of a slow one, and what one block computes fills the
   time of the next one's; forward and, since autograd goes backwards through the same order, in
   the backward pass.
3. Waits come last in their stage: they move down.
4. A block enters a fast exchange that leads to a slow one when the block before has come out of
   it and has started the slow one, which must not be held up by a race for the fast one. What
   the block computes for that exchange alone waits as well. In the backward pass it then
   runs while the rows of the block before are still on their way. A block enters a slow exchange
   when the block before has entered all of its own: the rows of one connection arrive in the order
   in which they were started.

Without overlap every exchange is waited for where it starts.
"""

from __future__ import annotations

from torch import fx

from dmt_plugin.fxtools.names import BLOCK_META, EXCHANGE_META, crosses_hosts, is_start, is_wait
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
    slow = _behind_slow(nodes)
    turn = _turns(nodes, slow)
    after = _held_back(nodes, {**_queues(nodes, slow), **_behind_the_block_before(nodes, turn)})
    crossing = sorted(turn[n] for n in turn if crosses_hosts(n))
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
            late = min((_before(at[u], crossing) if at[u] == stage[u] else at[u] for u in node.users), default=last)
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


def _before(stage: int, crossing: list[int]) -> int:
    """The stage before the last slow wait that is over in this one; this one, if there is none."""
    return max((turn for turn in crossing if turn <= stage), default=stage + 1) - 1


def _behind_slow(nodes: list[fx.Node]) -> set[fx.Node]:
    """The waits for slow exchanges, and all that needs one of them."""
    found: set[fx.Node] = set()
    for node in nodes:
        if (crosses_hosts(node) and is_wait(node)) or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def _turns(nodes: list[fx.Node], slow: set[fx.Node]) -> dict[fx.Node, int]:
    """The waits, numbered from 1 in the order in which they come."""
    depth: dict[fx.Node, int] = {}
    for node in nodes:
        depth[node] = max((depth[n] for n in node.all_input_nodes), default=0) + is_wait(node)

    def key(wait: fx.Node) -> tuple[bool, int, int]:
        block = wait.meta.get(BLOCK_META, 0)
        return (True, block, depth[wait]) if wait in slow else (False, depth[wait], block)

    return {node: number for number, node in enumerate(sorted(filter(is_wait, nodes), key=key), 1)}


def _queues(nodes: list[fx.Node], slow: set[fx.Node]) -> dict[fx.Node, fx.Node]:
    """For the start of a block's fast exchange before a slow one the wait of the block before in the same exchange."""
    waits = {(n.meta[EXCHANGE_META], n.meta[BLOCK_META]): n for n in nodes if is_wait(n) and BLOCK_META in n.meta}
    starts = [n for n in nodes if is_start(n) and n.meta.get(BLOCK_META, 0) > 0]
    fast = [n for n in starts if not crosses_hosts(n) and n not in slow]
    return {n: waits[n.meta[EXCHANGE_META], n.meta[BLOCK_META] - 1] for n in fast}


def _behind_the_block_before(nodes: list[fx.Node], turn: dict[fx.Node, int]) -> dict[fx.Node, fx.Node]:
    """For the start of a block's slow exchange the last wait that one of the block before needs to start."""
    needs: dict[fx.Node, fx.Node | None] = {}
    for node in nodes:
        own = [wait for n in node.all_input_nodes if (wait := needs[n]) is not None] + [node] * is_wait(node)
        needs[node] = max(own, key=turn.__getitem__, default=None)
    last: dict[int, fx.Node] = {}
    starts = [n for n in nodes if is_start(n) and crosses_hosts(n) and BLOCK_META in n.meta]
    for start in starts:
        block, wait = start.meta[BLOCK_META], needs[start]
        if wait is not None and (block not in last or turn[wait] > turn[last[block]]):
            last[block] = wait
    return {n: last[n.meta[BLOCK_META] - 1] for n in starts if n.meta[BLOCK_META] - 1 in last}


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
