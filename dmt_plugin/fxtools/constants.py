"""Values that a graph computes the same way in every call.

A constant is a buffer, a number, or an operation of torch or Python on constants only, that draws no random numbers,
leaves no entries as they come, and writes into none of its inputs. ``x.new_tensor(values)`` counts as well: of ``x`` it
takes the device and the type, not the data, and so does ``torch.arange(n, device=x.device)``. Parameters do not count,
since training changes them; those of whole numbers or booleans do, which have no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode

from dmt_plugin.fxtools.attributes import attribute

#: Methods of which only the arguments matter, not the tensor they are called on.
_MADE_FROM_ARGUMENTS = {"new_tensor"}
#: Attributes that say where a tensor is, whatever it holds.
_PLACES = {"device"}
#: Methods that change the type or place of a tensor; their arguments may depend on the batch's device.
_CONVERSIONS = {"to", "type_as", "cpu", "cuda", "contiguous", "clone", "detach"}


class _NotConstant(Exception):
    pass


class _SameEveryTime(TorchDispatchMode):
    """Refuses what draws random numbers, leaves memory as it comes, or writes into its inputs, before it is done."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        unset = func.overloadpacket.__name__.startswith(("empty", "new_empty"))
        if unset or torch.Tag.nondeterministic_seeded in func.tags or func._schema.is_mutable:
            raise _NotConstant
        return func(*args, **(kwargs or {}))


def constant_of(gm: fx.GraphModule, value: Any) -> Tensor | None:
    """The value of ``value`` if it is the same in every call, else ``None``.

    Args:
        gm: the graph module that holds the buffers.
        value: a node, a tensor, a number or a list of numbers.

    Returns:
        A tensor on the CPU; ``None`` also for a buffer on the meta device, which holds no data.
    """
    try:
        with _SameEveryTime():
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
        found = attribute(gm, str(node.target))
        if not isinstance(found, Tensor) or (isinstance(found, nn.Parameter) and found.is_floating_point()):
            raise _NotConstant
        return found.detach().cpu()
    if node.target is getattr and node.args[1] in _PLACES:
        return torch.device("cpu")
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
    if (getattr(node.target, "__module__", "") or "torch").split(".")[0] not in ("torch", "_operator", "builtins"):
        raise _NotConstant  # a function of the user's may do anything
    return node.target(*args, **kwargs)


def _arguments(gm: fx.GraphModule, value: Any, memo: dict[fx.Node, Any]) -> Any:
    return map_arg(value, lambda node: _evaluate(gm, node, memo))
