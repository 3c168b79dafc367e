"""Compares two traces of one model, node by node.

Two traces at different batch sizes, in different modes, must be the same graph. What
differs was baked in: a number that was the batch size, a path that was taken because of
``self.training``.

1. Nodes that only answered a question while tracing are dropped from both.
2. Nodes are compared in order: operation, target, and arguments, where a node is known by
   its place and a tensor by its values.
3. The first node with another operation ends the comparison: behind it nothing can be
   paired.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from dmt_plugin.capture.tracer import Trace


@dataclass(frozen=True)
class Difference:
    """A node that is not the same in two traces.

    Attributes:
        node: in the first trace.
        twin: at its place in the second.
        found: what the first has there.
        instead: what the second has.
    """

    node: fx.Node
    twin: fx.Node
    found: str
    instead: str

    @property
    def same_operation(self) -> bool:
        """True where only the arguments differ."""
        return _operation(self.node) == _operation(self.twin)


def drop_answers(graph: fx.Graph) -> None:
    """Removes what only answered a question while tracing, such as the sizes in an ``assert`` on shapes."""
    for node in reversed(list(graph.nodes)):
        plain = isinstance(node.meta.get("val"), (bool, int, float, torch.Size, torch.dtype, torch.device))
        if plain and not node.users and node.op in ("call_function", "call_method"):
            graph.erase_node(node)


def differences(first: Trace, second: Trace) -> list[Difference]:
    """Where two traces differ, in the order of the first; see the module's docstring."""
    nodes, twins = list(first.graph.nodes), list(second.graph.nodes)
    order, other_order = ({node: i for i, node in enumerate(some)} for some in (nodes, twins))
    found: list[Difference] = []
    for node, twin in zip(nodes, twins, strict=False):
        if node.op == twin.op == "placeholder":
            continue
        if _operation(node) != _operation(twin):
            counts = [f"{_name(n)}, one of {len(some)} operations" for n, some in ((node, nodes), (twin, twins))]
            found.append(Difference(node, twin, *counts))
            break
        mine = _arguments(node, order, first.constants)
        theirs = _arguments(twin, other_order, second.constants)
        if mine != theirs:
            found.append(Difference(node, twin, _differing(mine, theirs), _differing(theirs, mine)))
    return found


def _operation(node: fx.Node) -> tuple[str, Any]:
    return node.op, node.target


def _name(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{node.op.removeprefix('call_')} {target}"


def _differing(values: tuple[Any, ...], others: tuple[Any, ...]) -> str:
    found = [value for value, other in zip(values, others, strict=False) if value != other]
    return ", ".join(str(value)[:80] for value in found) if found else f"{len(values)} arguments"


def _arguments(node: fx.Node, order: Mapping[fx.Node, int], constants: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """What a node reads, comparable between two traces: nodes by their place, tensors by their values."""

    def comparable(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return f"operation {order[value]}"
        if isinstance(value, torch.Tensor):
            values = [] if value.is_meta else value.flatten().tolist()
            return ("tensor", tuple(value.shape), tuple(comparable(v) for v in values))
        if isinstance(value, float):
            return repr(value)  # not a number is equal to itself here
        return value

    flat: list[Any] = []

    def collect(value: Any) -> None:
        if isinstance(value, (list, tuple)):
            flat.append(len(value))
            for item in value:
                collect(item)
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                flat.append(key)
                collect(value[key])
        elif isinstance(value, slice):
            collect((value.start, value.stop, value.step))
        else:
            flat.append(comparable(value))

    collect(node.args)
    collect(node.kwargs)
    if node.op == "get_attr" and node.target in constants:
        collect(constants[str(node.target)])
    return tuple(flat)
