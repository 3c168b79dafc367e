"""Plain names of operations, shapes of nodes, and lists of numbers among arguments."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn


def name_of(node: fx.Node) -> str:
    """An operation's plain name, the same for its method, function and in-place forms; empty for what has none."""
    if node.op not in ("call_function", "call_method"):
        return ""  # names of modules, parameters and inputs are the user's
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if not isinstance(target, str):
        origin = getattr(target, "__module__", "") or ""
        known = origin.split(".")[0] in ("torch", "_operator", "operator", "builtins", "") or origin == "torch._C._nn"
        if not known:
            return f"{origin}.{name}"
    return name.strip("_") if name not in ("__getitem__",) else "getitem"


def is_linear(module: nn.Module) -> bool:
    """Whether a layer computes what ``nn.Linear`` computes."""
    return type(module).forward is nn.Linear.forward


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The captured shape of a node."""
    return tuple(node.meta["val"].shape)


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """The inputs that are one tensor each."""
    return [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]


def is_index_list(item: Any) -> bool:
    """Whether an argument is a list or tuple of numbers, or of such lists, by which a tensor can be indexed."""
    if not isinstance(item, (list, tuple)) or not item:
        return False
    return all(isinstance(i, int) or is_index_list(i) for i in item)
