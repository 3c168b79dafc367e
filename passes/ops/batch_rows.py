"""Which operations give half a batch what they give that half within the whole batch.

Values of several kinds meet behind an exchange: *rows* have the batch in front; *constants* depend on no input of the
model (a parameter, a buffer, what is made of them); *sizes* are made of shapes.

1. Most is answered by :func:`dmt_plugin.passes.ops.per_sample.is_per_sample`, which says what "by itself" means. It
   takes parameters and buffers for constants; here what was computed from them is shown to it in their place.
2. It is asked about operations with one result. Added here are those that cut each sample alike into several results.
3. Operations that placement put in are known to move columns only.
"""

from __future__ import annotations

import operator
from collections.abc import Set
from typing import Any

from torch import Tensor, fx

from dmt_plugin.nn.graph_ops import add_row_ranges, join_column_ranges, split_columns, split_streams
from dmt_plugin.passes.ops.names import name_of
from dmt_plugin.passes.ops.per_sample import is_per_sample

_CUTS = {"chunk": 2, "split": 2, "tensor_split": 2, "split_with_sizes": 2, "unbind": 1}
"""Operations with several results, and which of their arguments is the dimension along which they cut."""


def is_by_rows(gm: fx.GraphModule, node: fx.Node, batch: int, constants: Set[fx.Node]) -> bool:
    """Whether the operation's result for some samples follows from its inputs for those samples.

    A size is so if it says how many samples there are, or something that is the same for any batch: what reads it is
    asked about itself.

    Args:
        gm: holds the layers.
        node: the operation, with values of an example in the meta of itself and its inputs.
        batch: batch size of the example.
        constants: nodes that depend on no input of the model.
    """
    others = [n for n in node.all_input_nodes if n not in constants]
    if node.target is split_streams:
        return all(_in_front(n.meta.get("val"), batch) for n in others)
    if name_of(node) in _CUTS:
        return len(others) == 1 and _in_front(others[0].meta.get("val"), batch) and _cuts_samples(node)
    if node.target is operator.getitem and others and _is_several(others[0].meta.get("val")):
        return type(node.args[1]) is int  # one of several results, which were asked about themselves
    computed = any(n in constants and n.op != "get_attr" for n in node.all_input_nodes)
    return is_per_sample(gm, _with_constants(node, constants) if computed else node, batch)


def is_plumbing(node: fx.Node) -> bool:
    """Whether a node without an example value only cuts, or puts together, what an exchange brought for the model."""
    if node.target in (split_columns, operator.getitem, add_row_ranges, join_column_ranges):
        return True
    shaped = node.op == "call_method" and node.target == "unflatten"
    return shaped and isinstance(node.args[1], int) and node.args[1] > 0


def writes_input(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an operation changes its input in place."""
    if node.op == "call_module":
        return bool(getattr(gm.get_submodule(str(node.target)), "inplace", False))
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    written = target.endswith("_") and not target.endswith("__")
    inplace_operators = target.startswith("i") and getattr(operator, target, None) is node.target and target != "invert"
    return written or inplace_operators or bool(node.kwargs.get("inplace")) or "out" in node.kwargs


def open_view(node: fx.Node) -> tuple[fx.Node, list[Any]] | None:
    """What a view is of, and its sizes, where one behind the batch is left open.

    From a block without samples torch cannot tell such a size (see :func:`dmt_plugin.nn.block_ops.view_rows`).
    """
    if name_of(node) not in ("view", "reshape"):
        return None
    sizes: Any = [*node.args[1:], *(v for k, v in node.kwargs.items() if k in ("size", "shape"))]
    sizes = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)) else sizes
    source = node.args[0]
    return (source, sizes) if isinstance(source, fx.Node) and -1 in sizes[1:] else None


def _in_front(value: Any, batch: int) -> bool:
    return isinstance(value, Tensor) and value.shape[:1] == (batch,)


def _is_several(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and any(isinstance(item, Tensor) for item in value)


def _cuts_samples(node: fx.Node) -> bool:
    """Whether a tensor is cut along a dimension that is given, and is not the batch."""
    source, place = node.all_input_nodes[0], _CUTS[name_of(node)]
    dim = node.args[place] if len(node.args) > place else node.kwargs.get("dim", 0)
    first = node.args[0] if node.args else None
    return first is source and type(dim) is int and dim % source.meta["val"].dim() != 0


def _with_constants(node: fx.Node, constants: Set[fx.Node]) -> fx.Node:
    """The operation in a graph of its own, where what was computed from parameters and buffers is read like them."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}

    def copied(value: fx.Node) -> fx.Node:
        if value not in copies:
            example = value.meta.get("val")
            if value in constants:
                copy = graph.create_node("get_attr", f"constant_{len(copies)}")
            elif isinstance(example, Tensor):
                copy = graph.placeholder(f"rows_{len(copies)}")
            else:  # how a size was come by tells which it is
                copy = graph.node_copy(value, copied)
            copy.meta["val"] = example
            copies[value] = copy
        return copies[value]

    return graph.node_copy(node, copied)
