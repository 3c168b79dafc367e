"""Infers the new shapes behind the towers, and which layers, parameters and arguments must change for them.

The graph is walked once from the towers on, and again for every new size that is found. Each node gets a
:class:`State`: its new example value (shapes only) and the axes its dimensions carry. A rule per operation
(:mod:`dmt_plugin.passes.ops.queries`) derives them.

1. A node none of whose inputs changed keeps its captured value.
2. Otherwise its rule gives the axes; the operation is run on shapes; the two must agree
   with each other and with the old shape in every other dimension (so a batch that
   silently changes size is caught).
3. Where an input has to change that did not (the dense vector beside narrower streams, the
   other factor of a product), :meth:`Sweep.impose` walks back to the layer or parameter
   that produces it, notes the new size there, and the walk starts again. No size is
   noted twice, so this ends.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from dmt_plugin.fxtools.attributes import attribute
from dmt_plugin.fxtools.names import SEED, SEED_VALUE
from dmt_plugin.passes.ops.axes import Axes, Axis, Unsupported
from dmt_plugin.passes.ops.names import shape_of
from dmt_plugin.passes.ops.queries import own_dims, producers, rule_of, why_fixed
from dmt_plugin.passes.ops.walk import State
from dmt_plugin.passes.resize.resizable import check_resizable
from dmt_plugin.passes.resize.state import check_value, resized_value, same_shapes, shapes_only


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


class Sweep:
    """See the module's docstring.

    Args:
        gm: the rewritten graph.
        values: captured values without data by node, shared by walks over one graph; filled as needed.

    Attributes:
        states: state of each node after :meth:`run`.
        forced: sizes imposed on ``(node, dimension)``.
        edits: new arguments of nodes whose literals changed.
        inputs: new input axes of layers, by qualified name; ``None`` for one that did not change.
        noted: calls of layers whose input was noted.
    """

    def __init__(self, gm: fx.GraphModule, values: dict[fx.Node, Any] | None = None) -> None:
        self.gm = gm
        self._values = {} if values is None else values
        self.forced: dict[tuple[fx.Node, int], Axis] = {}
        self._noted: set[tuple[fx.Node, int, Axis]] = set()
        self._reset()

    def _reset(self) -> None:
        self.states: dict[fx.Node, State] = {}
        self.edits: dict[fx.Node, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.inputs: dict[str, tuple[Axis | None, ...]] = {}
        self.noted: set[fx.Node] = set()

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
                self._check_calls()
                return
            except Restart:
                continue

    def _check_calls(self) -> None:
        """What the walk cannot see at one node: results of the model, layers called more than once."""
        sizes: dict[str, set[int | None]] = {}
        for node in self.gm.graph.nodes:
            if node.op == "output":
                changed = [n.name for n in node.all_input_nodes if self.states[n].changed]
                if changed:
                    raise UnsupportedAt(node, f"the model returns {', '.join(changed)}, which would have another shape")
            if node.op != "call_module":
                continue
            target = str(node.target)
            if any(self.inputs.get(target, ())) and node not in self.noted:
                raise UnsupportedAt(node, f"the layer {target} is also called on an input that did not change")
            given = [axis.new for (n, _), axis in self.forced.items() if n is node]
            sizes.setdefault(target, set()).add(given[0] if given else None)
            if len(sizes[target]) > 1:
                raise UnsupportedAt(node, f"the layer {target} would have to give several sizes")

    def _visit(self, node: fx.Node) -> State:
        try:
            return self._state(node)
        except Unsupported as error:
            raise UnsupportedAt(node, str(error)) from error

    def _state(self, node: fx.Node) -> State:
        if SEED in node.meta:
            _, _, old, new = node.meta[SEED]
            value = shapes_only(node.meta[SEED_VALUE])
            return State(value, {value.dim() - 1: Axis.of(old, new)}, True)
        own = {dim: axis for (n, dim), axis in self.forced.items() if n is node} if self.forced else {}
        kept = node.target is getattr and node.args[1] in ("dtype", "device", "layout")  # no size, so no change
        if not own and (kept or not any(self.states[n].changed for n in node.all_input_nodes)):
            return State(self._captured(node))
        if node.op == "get_attr":
            shape_list = list(shape_of(node))
            for dim, axis in own.items():
                shape_list[dim] = axis.new
            return State(_empty(shape_list, node), own, True)
        rule = rule_of(self, node)
        if rule is None:
            raise Unsupported(f"{node.op} {_name(node)} is not known to the shape repair")
        found = rule(self, node)
        axes, parts = ({}, found) if isinstance(found, tuple) else (found, ())
        value = self.evaluate(node, axes, parts)
        old = self._captured(node)
        if isinstance(old, (tuple, list)) and any(isinstance(v, Tensor) for v in old) and not parts:
            raise Unsupported("gives several tensors, which its rule does not tell apart")
        if parts:
            if len(value) != len(parts) or len(old) != len(parts):
                raise Unsupported(f"would give {len(value)} tensors, not {len(old)}")
            for before, after, own_axes in zip(old, value, parts, strict=True):
                if isinstance(before, Tensor):
                    check_value(tuple(before.shape), after, own_axes)
        elif isinstance(value, Tensor):
            check_value(shape_of(node), value, axes)
        return State(value, axes, bool(axes) or any(parts) or not same_shapes(old, value), parts)

    def _captured(self, node: fx.Node) -> Any:
        """The node's captured example value, without data."""
        if node not in self._values:
            self._values[node] = shapes_only(node.meta.get("val"))
        return self._values[node]

    def evaluate(self, node: fx.Node, axes: Axes, parts: tuple[Axes, ...] = ()) -> Any:
        """The node's new example value."""
        if node.op == "call_module":
            val = node.meta["val"]
            if parts:
                return tuple(resized_value(v, own) for v, own in zip(val, parts, strict=True))
            return resized_value(val, axes)
        args, kwargs = self.edits.get(node, (node.args, node.kwargs))
        args = map_arg(shapes_only(args), self._shape_of)
        kwargs = map_arg(shapes_only(kwargs), self._shape_of)
        try:
            if node.op == "call_method":
                result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                assert callable(node.target)
                result = node.target(*args, **kwargs)
            return shapes_only(result) if isinstance(result, Tensor) else result
        except (RuntimeError, IndexError, TypeError) as error:
            raise Unsupported(f"does not work on the new shapes: {error}") from error

    def _shape_of(self, node: fx.Node) -> Any:
        """The example value of an argument; shapes are on the meta device, whichever the model asks for."""
        value = self.states[node].value
        return torch.device("meta") if isinstance(value, torch.device) else value

    # -- imposing sizes ------------------------------------------------------------------

    def force(self, node: fx.Node, dim: int, axis: Axis) -> None:
        """Makes the producer of ``node`` give ``axis`` in dimension ``dim``; see :meth:`impose`."""
        self.impose(node, {dim % len(shape_of(node)): axis})

    def impose(self, node: fx.Node, wanted: Axes) -> None:
        """Makes the producers of ``node`` give all of ``wanted`` at once; always ends the walk.

        Both dimensions of a view of a layer's output are wanted together, as they are one
        dimension of the layer.

        Raises:
            Restart: a size was noted at a layer or a parameter.
            Unsupported: nothing behind the node can be resized.
        """
        if node.op == "get_attr" and isinstance(self.attribute(node), nn.Parameter):
            self._note(node, wanted)
        own = own_dims(self.gm, node)
        if decided := {d: axis for d, axis in wanted.items() if d in own}:
            self._note(node, decided)
        for source, axes in producers(self, node, self.states[node].axes | wanted):
            if missing := self.states[source].lacks(axes):
                self.impose(source, missing)
        dim, axis = next(iter(wanted.items()))
        what = (
            f"other entries in dimension {dim} of {node.name} (still {axis.new})"
            if axis.old == axis.new
            else f"{axis.new} entries instead of {axis.old} in dimension {dim} of {node.name}"
        )
        raise Unsupported(f"needs {what}, and {why_fixed(self.gm, node, axis.new)}")

    def _note(self, node: fx.Node, wanted: Axes) -> None:
        if node.op in ("get_attr", "call_module"):
            check_resizable(self.gm, node)
        # A parameter has one size wherever it is read; calls of a layer are compared at the end.
        reads = [n for n in self.gm.graph.nodes if n.op == "get_attr" and n.target == node.target]
        for place in reads if node.op == "get_attr" else [node]:
            for dim, axis in wanted.items():
                before = self.forced.get((place, dim))
                # What was asked for first may be widened once: from other vectors' widths to other vectors.
                if before is not None and (before.new != axis.new or not axis.satisfies(before)):
                    raise Unsupported(f"{node.name} would have to give both {before.new} and {axis.new} entries")
                if (place, dim, axis) in self._noted:  # asked for before, in vain: the walk would never end
                    raise Unsupported(f"needs {axis.new} entries in dimension {dim} of {node.name}, which has others")
                self._noted.add((place, dim, axis))
                self.forced[place, dim] = axis.anew()
        raise Restart

    def note_input(self, node: fx.Node, *axes: Axis | None) -> None:
        """Notes the input axes of the layer that ``node`` calls, mostly one; all its calls must agree.

        Raises:
            Unsupported: they do not, or the layer cannot be replaced.
        """
        target = str(node.target)
        self.noted.add(node)
        if any(axes):
            check_resizable(self.gm, node)
        before = self.inputs.setdefault(target, axes)
        if [a and a.new for a in before] != [a and a.new for a in axes]:
            raise Unsupported(f"the layer {target} is called with inputs of different new sizes")

    def attribute(self, node: fx.Node) -> Any:
        """The object a ``get_attr`` node reads."""
        return attribute(self.gm, str(node.target))


def _empty(shape: list[int], node: fx.Node) -> Tensor:
    return torch.empty(shape, dtype=node.meta["val"].dtype, device="meta")


def _name(node: fx.Node) -> str:
    return str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", repr(node.target))
