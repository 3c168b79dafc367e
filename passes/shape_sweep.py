"""One walk over a rewritten graph that finds out which sizes must change, and how.

Each node gets a :class:`State`: its new example value (shapes only) and the axes its
dimensions carry. A rule per operation (:mod:`dmt_plugin.passes.shape_rules`) derives them.

1. A node none of whose inputs changed keeps its captured value.
2. Otherwise its rule gives the axes; the operation is run on shapes; the two must agree
   with each other and with the old shape in every other dimension (so a batch that
   silently changes size is caught).
3. Where an input has to change that did not (the dense vector beside narrower streams, the
   other factor of a product), :meth:`Sweep.force` walks back to the layer or parameter
   that produces it, notes the new size there, and the walk starts again. Sizes are only
   ever noted once, so this ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate, map_arg

from dmt_plugin.passes.axes import Axes, Axis, Unsupported

SEED = "dmt_stream"
"""Node meta: ``(group, old number of streams, old width, new width)`` of a new stream."""


class Restart(Exception):
    """A size was noted; walk again."""


class UnsupportedAt(Exception):
    """A node that cannot be adapted.

    Args:
        node: the node.
        reason: why.
    """

    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(f"{node.name}: {reason}")
        self.node = node
        self.reason = reason


@dataclass
class State:
    """What a node became.

    Attributes:
        value: new example value; tensors are on the meta device.
        axes: changed dimensions.
        changed: whether anything about it differs from the capture.
    """

    value: Any
    axes: Axes = field(default_factory=dict)
    changed: bool = False


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The captured shape of a node."""
    return tuple(node.meta["val"].shape)


def shapes_only(value: Any) -> Any:
    """Replaces tensors by meta tensors of the same shape."""
    return map_aggregate(
        value, lambda v: torch.empty(v.shape, dtype=v.dtype, device="meta") if isinstance(v, Tensor) else v
    )


Rule = Callable[["Sweep", fx.Node], Axes]


class Sweep:
    """See the module's docstring.

    Args:
        gm: the rewritten graph.
        rule_of: the rule of a node, or ``None`` if its operation is not known.

    Attributes:
        states: state of each node after :meth:`run`.
        forced: sizes imposed on ``(node, dimension)``.
        edits: new arguments of nodes whose literals changed.
        inputs: new input axis of layers, by qualified name.
        constants: new values of index constants, by node.
    """

    def __init__(self, gm: fx.GraphModule, rule_of: Callable[[Sweep, fx.Node], Rule | None]) -> None:
        self.gm = gm
        self._rule_of = rule_of
        self.forced: dict[tuple[fx.Node, int], Axis] = {}
        self._reset()

    def _reset(self) -> None:
        self.states: dict[fx.Node, State] = {}
        self.edits: dict[fx.Node, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.inputs: dict[str, Axis | None] = {}
        self.constants: dict[fx.Node, Tensor] = {}

    def run(self) -> None:
        """Walks until no new size is noted.

        Raises:
            UnsupportedAt: a node that cannot be adapted, with the reason.
        """
        while True:
            self._reset()
            try:
                for node in self.gm.graph.nodes:
                    if node.op != "output":
                        self.states[node] = self._visit(node)
                return
            except Restart:
                continue

    def _visit(self, node: fx.Node) -> State:
        try:
            return self._state(node)
        except Unsupported as error:
            raise UnsupportedAt(node, str(error)) from error

    def _state(self, node: fx.Node) -> State:
        if SEED in node.meta:
            _, _, old, new = node.meta[SEED]
            shape = node.meta["dmt_shape"]
            return State(torch.empty(shape, device="meta"), {len(shape) - 1: Axis.of(old, new)}, True)
        own = {dim: axis for (n, dim), axis in self.forced.items() if n is node}
        if not own and not any(self.states[n].changed for n in node.all_input_nodes):
            return State(shapes_only(node.meta.get("val")))
        if node.op == "get_attr":
            shape_list = list(shape_of(node))
            for dim, axis in own.items():
                shape_list[dim] = axis.new
            return State(torch.empty(shape_list, device="meta"), own, True)
        rule = self._rule_of(self, node)
        if rule is None:
            raise Unsupported(f"{node.op} {_name(node)} is not known to the shape repair")
        axes = rule(self, node)
        value = self.evaluate(node, axes)
        self._check(node, value, axes)
        old = shapes_only(node.meta.get("val"))
        return State(value, axes, bool(axes) or not _same(old, value))

    def evaluate(self, node: fx.Node, axes: Axes) -> Any:
        """The node's new example value."""
        if node.op == "call_module":
            shape = [axes[d].new if d in axes else size for d, size in enumerate(shape_of(node))]
            return torch.empty(shape, device="meta")
        args, kwargs = self.edits.get(node, (node.args, node.kwargs))
        args = map_arg(args, lambda n: self.states[n].value)
        kwargs = map_arg(kwargs, lambda n: self.states[n].value)
        try:
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            assert callable(node.target)
            return node.target(*args, **kwargs)
        except (RuntimeError, IndexError, TypeError) as error:
            raise Unsupported(f"does not work on the new shapes: {error}") from error

    def _check(self, node: fx.Node, value: Any, axes: Axes) -> None:
        if not isinstance(value, Tensor):
            return
        old = shape_of(node)
        wanted = tuple(axes[d].new if d in axes else size for d, size in enumerate(old))
        if tuple(value.shape) != wanted:
            raise Unsupported(f"would have the shape {tuple(value.shape)}, expected {wanted} (before: {old})")
        for dim, axis in axes.items():
            if axis.old != old[dim]:
                raise Unsupported(f"dimension {dim} had {old[dim]} entries, its parts add up to {axis.old}")

    # -- imposing sizes ------------------------------------------------------------------

    def force(self, node: fx.Node, dim: int, axis: Axis) -> None:
        """Makes the producer of ``node`` give ``axis`` in dimension ``dim``; always ends the walk.

        Raises:
            Restart: a size was noted at a layer or a parameter.
            Unsupported: nothing behind the node can be resized.
        """
        dim %= len(shape_of(node))
        last = dim == len(shape_of(node)) - 1
        if node.op == "get_attr" and isinstance(self.attribute(node), nn.Parameter):
            self._note(node, dim, axis)
        if node.op == "call_module":
            module = self.gm.get_submodule(str(node.target))
            if type(module).forward is nn.Linear.forward and last:
                self._note(node, dim, axis)
        for source, source_dim in self._producers(node, dim):
            if source_dim not in self.states[source].axes:
                self.force(source, source_dim, axis)
        raise Unsupported(
            f"needs {axis.new} entries instead of {axis.old} in dimension {dim} of {node.name}, and nothing that "
            "produces it can be resized"
        )

    def _producers(self, node: fx.Node, dim: int) -> list[tuple[fx.Node, int]]:
        from dmt_plugin.passes.shape_rules import producers

        return producers(self, node, dim)

    def _note(self, node: fx.Node, dim: int, axis: Axis) -> None:
        before = self.forced.get((node, dim))
        if before is not None:
            raise Unsupported(f"{node.name} would have to give both {before.new} and {axis.new} entries")
        # What a layer gives is one vector: its parts are not those of the streams beside it.
        self.forced[node, dim] = Axis.of(axis.old, axis.new)
        raise Restart

    def note_input(self, target: str, axis: Axis | None) -> None:
        """Notes the input axis of a layer; all its calls must agree.

        Raises:
            Unsupported: they do not.
        """
        size = axis.new if axis else None
        if target in self.inputs:
            before = self.inputs[target]
            if (before.new if before else None) != size:
                raise Unsupported(f"the layer {target} is called with inputs of different new sizes")
        self.inputs[target] = axis

    def attribute(self, node: fx.Node) -> Any:
        """The object a ``get_attr`` node reads."""
        value: Any = self.gm
        for atom in str(node.target).split("."):
            value = getattr(value, atom)
        return value

    def axes_of(self, node: Any) -> Axes:
        """Axes of an argument (none for anything but a node)."""
        return self.states[node].axes if isinstance(node, fx.Node) else {}


def _name(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", repr(node.target))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b
