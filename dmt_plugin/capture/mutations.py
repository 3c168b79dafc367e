"""Makes operations that change a tensor in place safe to move.

A graph says who reads whose result, not who overwrites it. Passes that move or drop nodes
would run an in-place operation at the wrong time, or never. So:

1. every later use of a changed tensor becomes a use of the operation's result;
2. where somebody else reads the tensor (before the change, so nothing in the graph would
   hold him there), the operation gets a copy of its own;
3. a change that would be seen through another view of the same memory, or that outlives
   the call (an input of the model, a buffer, a parameter), is refused;
4. an assigned item (``x[key] = value``) was recorded as a new tensor: that is right if, from then
   on, nobody reads the old one, or another view of its memory.
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, fx

from dmt_plugin.capture.source_lines import described, module_of, refusal
from dmt_plugin.fxtools.assigned import assigned
from dmt_plugin.fxtools.names import MUTATED

_NEW_TENSOR = "use the operation that returns a new tensor"


def make_mutations_explicit(graph: fx.Graph) -> None:
    """Rewrites ``graph`` as the module's docstring says.

    Raises:
        CaptureError: naming the operation that cannot be made safe, and the module whose result or state it changes.
    """
    for node in [n for n in graph.nodes if n.target is assigned]:
        _require_old_unread(graph, node)
    if not any(MUTATED in node.meta for node in graph.nodes):
        return
    position = {node: i for i, node in enumerate(graph.nodes)}
    copied: dict[int, int] = {}
    for node in list(graph.nodes):
        for changed in node.meta.pop(MUTATED, ()):
            _separate(graph, node, changed, position, copied)


def _require_old_unread(graph: fx.Graph, node: fx.Node) -> None:
    """Refuses an assigned item that somebody would see without knowing of the new tensor."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    memory, nodes = _memory(source), list(graph.nodes)
    now = nodes.index(node)
    _refuse_outliving(node, source, [n for n in nodes[:now] if _memory(n) == memory])
    behind = set(nodes[now + 1 :])
    for alias in (n for n in nodes if n is not node and _memory(n) == memory):
        later = next((user for user in alias.users if user in behind), None)
        if later is not None:
            raise refusal(
                "DMT103", module_of(node),
                f"{described(node)} changes a tensor in place that {described(later)} reads through another view",
                _NEW_TENSOR,
            )  # fmt: skip


def refuse_outliving_changes(graph: fx.Graph, node: fx.Node) -> None:
    """Refuses ``node`` if it changes what outlives the call: a parameter, a buffer, an input.

    Raises:
        CaptureError: DMT103, naming the module it belongs to.
    """
    before = list(itertools.takewhile(lambda other: other is not node, graph.nodes))
    for changed in node.meta.get(MUTATED, ()):
        memory = _memory_of(changed)
        source = next((n for n in node.all_input_nodes if n.meta["val"] is changed), None)
        _refuse_outliving(node, source, [n for n in before if _memory(n) == memory])


def _refuse_outliving(node: fx.Node, source: fx.Node | None, aliases: list[fx.Node]) -> None:
    outliving = [n for n in aliases if n.op in ("placeholder", "get_attr")]
    if outliving or source is None:
        what = ", ".join(str(n.target) for n in outliving) or "one of its arguments"
        if _renormalises(node) and outliving:
            raise refusal(
                "DMT201", _owner(outliving[0]),
                f"max_norm renormalises rows at every lookup: {described(node)}",
                "drop max_norm; clip the table outside the step",
            )  # fmt: skip
        raise refusal(
            "DMT103", _owner(outliving[0]) if outliving else module_of(node),
            f"{described(node)} changes {what} in place, which outlives the call; a graph computes and does not store",
            f"{_NEW_TENSOR}, or do this outside forward",
        )  # fmt: skip


def _separate(
    graph: fx.Graph, node: fx.Node, changed: Tensor, position: dict[fx.Node, int], copied: dict[int, int]
) -> None:
    """Treats one change; ``copied`` says since which position a memory is a copy that earlier nodes do not share."""
    now, memory = position[node], _memory_of(changed)
    source = next((n for n in node.all_input_nodes if n.meta["val"] is changed), None)
    aliases = [n for n, at in position.items() if copied.get(memory, -1) <= at < now and _memory(n) == memory]
    _refuse_outliving(node, source, aliases)
    assert source is not None, "refused above"
    for alias in aliases:
        later = [user for user in alias.users if position.get(user, -1) > now]
        if later and (alias is not source or node.meta["val"] is not changed):
            raise refusal(
                "DMT103", next((str(n.target) for n in aliases if n.op == "call_module"), module_of(node)),
                f"{described(node)} changes a tensor in place that {later[0].name} reads through {alias.name}",
                _NEW_TENSOR,
            )  # fmt: skip
        for user in later:
            user.replace_input_with(alias, node)
    if {user for alias in aliases for user in alias.users} - {node, *aliases}:
        copied[memory] = now
        with graph.inserting_before(node):
            copy = graph.call_method("clone", (source,))
        copy.meta["val"] = changed
        node.replace_input_with(source, copy)


def _renormalises(node: fx.Node) -> bool:
    return node.target in (F.embedding, F.embedding_bag) and node.kwargs.get("max_norm") is not None


def _owner(node: fx.Node) -> str:
    """The module that holds what a ``get_attr`` node reads; the name itself for the model's own, or for an input."""
    target = str(node.target)
    return (target.rpartition(".")[0] or target) if node.op == "get_attr" else target


def _memory(node: fx.Node) -> int | None:
    value = node.meta.get("val")
    return _memory_of(value) if isinstance(value, Tensor) else None


def _memory_of(value: Tensor) -> int:
    return value.untyped_storage()._cdata
