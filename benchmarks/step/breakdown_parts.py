"""Parts of a training step, and which part each node of a placed graph belongs to.

1. Exchanges, the lookup and tower modules are identified by the path of their module. What an exchange is called begins
   with what it carries, so that several of one kind (a batch in blocks) are one part.
2. Every other node is identified by what it stands between: which exchanges its inputs have come through, and which is
   the next that its value goes to.
3. What only moves what an exchange has brought (cuts it up, puts pieces together) belongs to that exchange, and so does
   what only puts in order what it is to send.
4. A module under the exchanges' path whose name begins with no known kind belongs to ``rest``, under its own name.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import NamedTuple

from torch import fx

from dmt_plugin.fxtools.names import DISTINCT as ROWS
from dmt_plugin.fxtools.names import EXCHANGES, LOOKUP, tower_number
from dmt_plugin.nn.graph_ops import pack_streams

INDEX, LOOK_UP, INTRA, TOWER, PEER, GLOBAL = "index", "lookup", "intra", "tower", "peer", "global"
DISTINCT, DENSE, ALL_REDUCE, OPTIMIZER = "distinct", "dense", "all-reduce", "optimizer"
IDLE, REST = "idle", "rest"

PARTS = {
    INDEX: "ids: read, checked, sent to the owners of their tables",
    LOOK_UP: "rows read and pooled; in the backward pass the tables' update",
    INTRA: "exchange inside the host, both directions: packing, posting, unpacking",
    TOWER: "tower modules and what shapes their input",
    PEER: "exchange between peers, both directions: packing, posting, unpacking",
    GLOBAL: "exchange between all ranks (flat route), both directions: packing, posting, unpacking",
    DISTINCT: "rows that travel once: spread to lanes, expanded to samples, and the sums of their gradients",
    DENSE: "the model's own layers behind the lookups, and the loss",
    ALL_REDUCE: "gradients of dense layers and towers: packing, posting, unpacking",
    OPTIMIZER: "optimizer of dense layers and towers, and of tables that PyTorch holds",
    IDLE: "blocked until an exchange or a reduction has arrived",
    REST: "everything else: Python around the graph, the autograd engine, the DeepSpeed engine",
}
"""Parts of a step, in the order of a bar, and what is counted there."""

WAITED_FOR = (INDEX, INTRA, PEER, GLOBAL, ALL_REDUCE)
"""What idle time can be waiting for."""

_MOVES = ("dmt_plugin.nn.graph_ops", "dmt_plugin.nn.block_ops")
"""Modules whose functions only move values, but for those that have a rule of their own."""

_KINDS = {"index": INDEX, "requests": INDEX, "lanes": INTRA, "peers": PEER, "world": GLOBAL}
_OF_ROWS = {"lanes": INTRA, "peers": PEER, "world": GLOBAL, "spread": DISTINCT, "expand": DISTINCT}
"""Of exchanges of distinct rows, such as ``rows0.peers``, and what is done with these rows, by the second word."""


class Where(NamedTuple):
    """Where time goes.

    Attributes:
        part: one of ``PARTS``.
        detail: what inside it: of ``idle`` what is waited for, otherwise words for people.
    """

    part: str
    detail: str


def exchange_kind(name: str) -> str | None:
    """The part of an exchange by its name, or None."""
    if name.startswith(ROWS):
        return _OF_ROWS.get(name.partition(".")[2])
    return next((part for prefix, part in _KINDS.items() if name.startswith(prefix)), None)


def where_in_graph(graph: fx.Graph) -> dict[fx.Node, Where]:
    """Part of every node of a placed graph."""
    nodes = list(graph.nodes)
    came: dict[fx.Node, frozenset[str]] = {}
    for node in nodes:
        through = _union(came[n] for n in node.all_input_nodes)
        came[node] = through | {f"{_exchange_of(node)}"} if _is(node, "wait") else through
    goes: dict[fx.Node, frozenset[str]] = {}
    for node in reversed(nodes):
        to = _union(goes[user] for user in node.users)
        goes[node] = to | {f"{_exchange_of(node)}"} if _is(node, "start") else to
    found: dict[fx.Node, Where] = {}
    for node in nodes:
        found[node] = _where(node, came[node], goes[node], found)
    return found


def _where(node: fx.Node, came: frozenset[str], goes: frozenset[str], found: dict[fx.Node, Where]) -> Where:
    target = str(node.target)
    if node.op == "call_module" and target.startswith(f"{EXCHANGES}."):
        kind = exchange_kind(_name_in(target))
        action = target.rpartition(".")[2]
        return Where(kind, action) if kind else Where(REST, target)
    if node.op == "call_module" and target.startswith(LOOKUP):
        return Where(LOOK_UP, "lookup")
    if node.op == "call_module" and tower_number(target) is not None:
        return Where(TOWER, "module")
    if node.op == "call_function" and node.target is pack_streams:
        return Where(TOWER, "input")
    above = found.get(node.all_input_nodes[0]) if node.all_input_nodes else None
    moves = node.target is operator.getitem or getattr(node.target, "__module__", "") in _MOVES
    if (
        node.op == "call_function"
        and moves
        and above is not None
        and above.detail in ("wait", "cut")
        and above.part in WAITED_FOR
    ):
        return Where(above.part, "cut")
    if INDEX in goes:
        return Where(INDEX, "ids")
    if node.op == "call_function" and (kind := _packed_for(node)) is not None:
        return Where(kind, "join")
    if PEER in came or GLOBAL in came:
        return Where(DENSE, "forward")
    if INTRA in came and PEER in goes:
        return Where(TOWER, "between exchanges")
    if INDEX in came and goes & {INTRA, GLOBAL, PEER}:
        return Where(LOOK_UP, "at the owner")
    return Where(DENSE, "forward")


def _packed_for(node: fx.Node) -> str | None:
    """The exchange that sends a value, if nobody else has a use for it."""
    starts: set[str | None] = set()
    for user in node.users:
        picked = user.op == "call_function" and user.target is operator.getitem
        starts |= {_packed_for(user)} if picked else {_exchange_of(user) if _is(user, "start") else None}
    return starts.pop() if len(starts) == 1 else None


def _exchange_of(node: fx.Node) -> str | None:
    return exchange_kind(_name_in(str(node.target)))


def _name_in(target: str) -> str:
    """Name of an exchange in the path of one of its ends; of distinct rows also what is done with them."""
    path = target.split(".")[1:]
    return ".".join(path[:2]) if path[0].startswith(ROWS) else path[0]


def _is(node: fx.Node, action: str) -> bool:
    target = str(node.target)
    path = target.split(".")
    named = node.op == "call_module" and path[0] == EXCHANGES and len(path) > 2
    return named and path[-1].startswith(action)


def _union(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*sets)
