"""The interface between an operation's rules and the walk that infers new shapes: states of nodes, and requests.

The walk itself is :class:`dmt_plugin.passes.resize.sweep.Sweep`. A rule takes it and a node, and returns what became of
the dimensions of the node's result; it may read the states of the node's inputs, replace arguments, or ask for another
size elsewhere, which ends this walk and starts the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import fx

from dmt_plugin.passes.ops.axes import Axes, Axis, Unsupported


@dataclass
class State:
    """What a node became.

    Attributes:
        value: new example value; tensors are on the meta device.
        axes: changed dimensions.
        changed: whether anything about it differs from the capture.
        parts: for an operation with several results (a split, say), the changed dimensions of each.
    """

    value: Any
    axes: Axes = field(default_factory=dict)
    changed: bool = False
    parts: tuple[Axes, ...] = ()

    def lacks(self, wanted: Axes) -> Axes:
        """What of ``wanted`` it does not have yet."""
        return {d: axis for d, axis in wanted.items() if d not in self.axes or not self.axes[d].satisfies(axis)}

    def part(self, index: Any) -> Axes | tuple[Axes, ...]:
        """Changed dimensions of an element, or of several."""
        if not self.parts:
            return {}
        if not isinstance(index, (int, slice)):
            raise Unsupported("takes a computed one of several tensors")
        return self.parts[index]


class Walk(Protocol):
    """What rules see of a walk.

    Attributes:
        gm: the rewritten graph.
        states: state of each node before the one that is asked about.
        forced: sizes imposed on ``(node, dimension)``.
        edits: new arguments of nodes whose literals changed.
        inputs: new input axes of layers, by qualified name; ``None`` for one that did not change.
    """

    gm: fx.GraphModule
    states: dict[fx.Node, State]
    forced: dict[tuple[fx.Node, int], Axis]
    edits: dict[fx.Node, tuple[tuple[Any, ...], dict[str, Any]]]
    inputs: dict[str, tuple[Axis | None, ...]]

    def force(self, node: fx.Node, dim: int, axis: Axis) -> None:
        """Makes the producer of ``node`` give ``axis`` in dimension ``dim``; ends the walk."""

    def impose(self, node: fx.Node, wanted: Axes) -> None:
        """Makes the producers of ``node`` give all of ``wanted`` at once; ends the walk."""

    def note_input(self, node: fx.Node, *axes: Axis | None) -> None:
        """Notes the input axes of the layer that ``node`` calls."""

    def attribute(self, node: fx.Node) -> Any:
        """The object that a ``get_attr`` node reads."""


Rule = Callable[[Walk, fx.Node], Axes | tuple[Axes, ...]]
