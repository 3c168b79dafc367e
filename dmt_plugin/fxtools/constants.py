"""Values that a graph computes the same way in every call.

A constant is a buffer, a number, or an operation on constants only. ``x.new_tensor(values)``
counts as well: of ``x`` it takes the device and the type, not the data. Parameters never
count, since training changes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

#: Methods of which only the arguments matter, not the tensor they are called on.
_MADE_FROM_ARGUMENTS = {"new_tensor"}
#: Methods that change the type or place of a tensor; their arguments may depend on the batch's device.
_CONVERSIONS = {"to", "type_as", "cpu", "cuda", "contiguous", "clone", "detach"}


class _NotConstant(Exception):
    pass


def constant_of(gm: fx.GraphModule, value: Any) -> Tensor | None:
    """The value of ``value`` if it is the same in every call, else ``None``.

    Args:
        gm: the graph module that holds the buffers.
        value: a node, a tensor, a number or a list of numbers.

    Returns:
        A tensor on the CPU; ``None`` also for a buffer on the meta device, which holds no data.
    """
    try:
        found = _evaluate(gm, value, {})
    except _NotConstant:
        return None
    return found if isinstance(found, Tensor) and not found.is_meta else None


def _evaluate(gm: fx.GraphModule, value: Any, memo: dict[fx.Node, Any]) -> Any:
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, fx.Node):
        return torch.as_tensor(value) if isinstance(value, (int, list, tuple)) else value
    if value not in memo:
        memo[value] = _evaluate_node(gm, value, memo)
    return memo[value]


def _evaluate_node(gm: fx.GraphModule, node: fx.Node, memo: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        path, _, name = str(node.target).rpartition(".")
        found = getattr(gm.get_submodule(path), name)
        if not isinstance(found, Tensor) or isinstance(found, nn.Parameter):
            raise _NotConstant
        return found.detach().cpu()
    if node.op == "call_method" and node.target in _MADE_FROM_ARGUMENTS:
        return torch.as_tensor(_arguments(gm, node.args[1], memo))
    if node.op == "call_method" and node.target in _CONVERSIONS:
        return _evaluate(gm, node.args[0], memo)
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        raise _NotConstant
    args, kwargs = _arguments(gm, node.args, memo), _arguments(gm, node.kwargs, memo)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _arguments(gm: fx.GraphModule, value: Any, memo: dict[fx.Node, Any]) -> Any:
    return map_arg(value, lambda node: _evaluate(gm, node, memo))
