"""Which operations treat every sample by itself.

Such an operation may run where the rows are, on other samples than the rank's own batch, or on a part of the batch, and
gives each sample what it would have got. Most is answered by the registry of operations
(:func:`dmt_plugin.passes.ops.queries.samples_stay_apart`); here is what holds for all of them:

1. Dimension 0 of every input and of the result is the batch. What has none (constants only) is no sample's.
2. Numbers read from a shape may be used, unless they are the batch's own size: that one may only stand where a view
   says how many samples there are.
3. What writes into its input is refused, unless that is the new result of a linear layer or a product: a part of a
   batch, and rows that an exchange brought, are often views of which autograd allows no change. So are layers with
   hooks or parametrizations, which may do anything, and random values other than those of dropout.

Behind an exchange (:func:`is_by_rows`) what was computed from parameters and buffers counts as constant too, operations
that cut each sample alike into several results are known, and those that placement put in move columns only.
"""

from __future__ import annotations

import operator
from collections.abc import Set
from typing import Any

from torch import Tensor, fx

from dmt_plugin.nn.graph_ops import (
    add_row_ranges,
    join_column_ranges,
    join_vectors,
    side_by_side,
    split_columns,
    split_streams,
)
from dmt_plugin.passes.ops import products
from dmt_plugin.passes.ops.axes import Unsupported
from dmt_plugin.passes.ops.dims import is_samples, is_tensor
from dmt_plugin.passes.ops.names import is_linear, name_of
from dmt_plugin.passes.ops.queries import entry_of, samples_stay_apart
from dmt_plugin.passes.ops.shapes import free_of_batch, is_size, names_batch
from dmt_plugin.passes.ops.sizes import sizes_of
from dmt_plugin.passes.ops.splits import cut_of, is_several

_PLUMBING = (
    split_columns, operator.getitem, getattr, add_row_ranges, join_column_ranges, join_vectors, side_by_side,
)  # fmt: skip


def is_per_sample(gm: fx.GraphModule, node: fx.Node, batch: int, constants: Set[fx.Node] = frozenset()) -> bool:
    """Whether each sample's part of the result depends on that sample's part of the inputs only.

    A node that is no tensor is so if it is a shape or a size (it does not say what becomes of it: that is judged
    where it is used). Dropout counts as per sample: every entry has a draw of its own, though not the same one.

    Args:
        gm: holds the layers.
        node: the operation; its inputs are known to be per sample themselves, or constants (``get_attr``).
        batch: batch size of the example values.
        constants: nodes besides those that depend on no input of the model.
    """
    if not is_tensor(node):
        return is_size(node)
    if any(n in constants and n.op != "get_attr" for n in node.all_input_nodes):
        node = _with_constants(node, constants)
    inputs = [n for n in node.all_input_nodes if is_samples(n)]
    if not inputs or not all(_in_front(n, batch) for n in (node, *inputs)):
        return False
    if node.op not in ("call_module", "call_function", "call_method") or node.kwargs.get("out") is not None:
        return False
    if _writes_result(gm, node) and not _is_new(gm, inputs[0]):
        return False
    if node.op == "call_module" and (len(inputs) < len(node.all_input_nodes) or _may_do_anything(gm, node)):
        return False
    if node.op == "call_method" and not is_tensor(node.args[0] if node.args else None):
        return False  # a method of something that is no tensor may be called anything
    return samples_stay_apart(gm, node, batch)


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
        return all(_in_front(n, batch) for n in others)
    try:
        cut = cut_of(node)
    except Unsupported:
        return False
    if cut is not None:
        return others == [cut.source] and _in_front(cut.source, batch) and cut.dim != 0
    if node.target is operator.getitem and others and is_several(others[0].meta.get("val")):
        return type(node.args[1]) is int  # one of several results, which were asked about themselves
    return is_per_sample(gm, node, batch, constants)


_FILLED = ("zeros", "ones", "full", "new_zeros", "new_ones", "new_full")


def filled_alike(node: fx.Node, batch: int) -> str:
    """Whether a tensor is filled with one number: ``"samples"`` with the batch in front, ``"constant"`` without it.

    Empty for any other node.

    Args:
        node: the operation.
        batch: batch size of the example values.
    """
    name = name_of(node)
    if name not in _FILLED or not is_tensor(node):
        return ""
    sizes = sizes_of(node)
    nodes = [size for size in sizes.given if isinstance(size, fx.Node)]
    others = [n for n in node.all_input_nodes if n not in nodes and not (is_tensor(n) and name.startswith("new"))]
    if sizes.whole is not None or not all(map(free_of_batch, others)):
        return ""
    if all(map(free_of_batch, nodes)):
        return "constant"
    front, *rest = sizes.given
    behind = all(not isinstance(size, fx.Node) or free_of_batch(size) for size in rest)
    return "samples" if behind and isinstance(front, fx.Node) and names_batch(front, batch) else ""


def is_plumbing(node: fx.Node) -> bool:
    """Whether a node without an example value only cuts, or puts together, what an exchange brought for the model."""
    if node.target in _PLUMBING:
        return True
    shaped = node.op == "call_method" and node.target == "unflatten"
    return shaped and isinstance(node.args[1], int) and node.args[1] > 0


def open_view(node: fx.Node) -> tuple[fx.Node, list[Any]] | None:
    """What a view is of, and its sizes, where one behind the batch is left open.

    From a block without samples torch cannot tell such a size (see :func:`dmt_plugin.nn.block_ops.view_rows`).
    """
    if name_of(node) not in ("view", "reshape"):
        return None
    source, sizes = node.args[0], list(sizes_of(node).given)
    return (source, sizes) if isinstance(source, fx.Node) and -1 in sizes[1:] else None


# -- what writes -----------------------------------------------------------------------------


def writes_input(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an operation changes its input in place."""
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    operators = target.startswith("i") and getattr(operator, target, None) is node.target and target != "invert"
    return _writes_result(gm, node) or operators or "out" in node.kwargs


def _writes_result(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an operation writes its result into its input."""
    if node.op == "call_module":
        return bool(getattr(gm.get_submodule(str(node.target)), "inplace", False))
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    marked = name.endswith("_") and not name.endswith("__") and getattr(target, "__module__", "") != "_operator"
    return marked or bool(node.kwargs.get("inplace"))


def _is_new(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a value has memory of its own that only one operation reads."""
    if len(node.users) > 1:
        return False
    if node.op == "call_module":
        return is_linear(gm.get_submodule(str(node.target)))
    entry = entry_of(gm, node)
    described = getattr(entry.dims, "__module__", "") if entry is not None else ""
    return described == products.__name__ and name_of(node) != "einsum"  # which, of one tensor, is a view


def _may_do_anything(gm: fx.GraphModule, node: fx.Node) -> bool:
    layer = gm.get_submodule(str(node.target))
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return any(hooks) or any(True for _ in layer.children())


# -- inputs ----------------------------------------------------------------------------------


def _in_front(node: fx.Node, batch: int) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.shape[:1] == (batch,)


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
