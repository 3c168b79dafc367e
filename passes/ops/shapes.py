"""Numbers that a model reads from shapes (``x.size(1)``): which of them follow the size of the batch.

A batch cut in parts, or another rank's, has another size: an operation that divides by it, or
cuts by it, gives another result. All other sizes are the same for any batch.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx

from dmt_plugin.fxtools.arguments import argument
from dmt_plugin.passes.ops.axes import Axes
from dmt_plugin.passes.ops.names import name_of
from dmt_plugin.passes.ops.registry import op_by_rules
from dmt_plugin.passes.ops.walk import Walk

_OF_THE_KIND = ("dtype", "device", "ndim", "layout", "is_cuda", "requires_grad")
_ARITHMETIC = ("add", "sub", "mul", "floordiv", "neg")


def evaluated_again(walk: Walk, node: fx.Node) -> Axes:
    """The rule for sizes, and Python arithmetic on them: they follow by themselves."""
    return {}


op_by_rules("size", "dim", "ndimension", "numel", forward=evaluated_again, traits=("gives_sizes",))


def is_size(node: fx.Node) -> bool:
    """Whether a node is the shape of a tensor, made of its entries, or says of what kind a tensor is."""
    if _is_arithmetic(node):
        return all(map(is_size, node.all_input_nodes))
    if node.target is operator.getitem:
        source = node.args[0]
        return isinstance(source, fx.Node) and _shape_source(source) is not None
    name = name_of(node)
    return _of_tensor(node) is not None and (
        name in ("size", "dim", "ndimension") or (name == "getattr" and node.args[1] in ("shape", *_OF_THE_KIND))
    )


def free_of_batch(node: fx.Node) -> bool:
    """Whether a node that is no tensor is the same number (or type, device) for a batch of any size."""
    name, source = name_of(node), _of_tensor(node)
    if source is not None and name in ("dim", "ndimension"):
        return True
    if source is not None and name == "getattr" and node.args[1] in _OF_THE_KIND:
        return True
    if _is_arithmetic(node):
        return all(map(free_of_batch, node.all_input_nodes))
    entry = _entry(node)
    if entry is None:
        return False
    tensor, index = entry
    if tensor.op == "get_attr":
        return True
    if isinstance(index, slice):
        return index.step is None and isinstance(index.start, int) and index.start > 0
    return isinstance(index, int) and index % tensor.meta["val"].dim() != 0


def names_batch(node: fx.Node, batch: int) -> bool:
    """Whether a node is the size of the batch, or a whole shape with it in front."""
    source = _shape_source(node)
    if source is None:
        entry = _entry(node)
        if entry is None or not isinstance(entry[1], int) or entry[1] % entry[0].meta["val"].dim() != 0:
            return False
        source = entry[0]
    return source.op != "get_attr" and tuple(source.meta["val"].shape[:1]) == (batch,)


def _is_arithmetic(node: fx.Node) -> bool:
    plain = isinstance(node.meta.get("val"), int) and node.op == "call_function"
    return plain and name_of(node) in _ARITHMETIC and bool(node.all_input_nodes)


def _of_tensor(node: fx.Node) -> fx.Node | None:
    source = node.args[0] if node.args else None
    return source if isinstance(source, fx.Node) and isinstance(source.meta.get("val"), Tensor) else None


def _shape_source(node: fx.Node) -> fx.Node | None:
    """The tensor of which a node is the whole shape."""
    name = name_of(node)
    whole = (name == "getattr" and node.args[1] == "shape") or (name == "size" and len(node.args) == 1)
    return _of_tensor(node) if whole and not (name == "size" and node.kwargs) else None


def _entry(node: fx.Node) -> tuple[fx.Node, Any] | None:
    """A tensor, and which entry (or part) of its shape a node is."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        source = _shape_source(node.args[0])
        return None if source is None else (source, node.args[1])
    source = _of_tensor(node)
    if name_of(node) != "size" or source is None:
        return None
    index = argument(node, 1, "dim")
    return (source, index) if isinstance(index, int) else None
