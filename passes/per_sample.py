"""Which operations treat every sample by itself.

Such an operation may run where the rows are, on another set of samples than the rank's own
batch, and give each sample what it would have got. Whatever is not known to do so does not:
statistics over the batch, sums over dimension 0, views that name the batch size.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx, nn

from dmt_plugin.passes.shape_ops import ELEMENTWISE, ELEMENTWISE_MODULES, is_linear, name_of

_REDUCTIONS = {"sum", "mean", "any", "all", "amax", "amin", "norm", "logsumexp", "softmax", "log_softmax", "normalize"}
_COMPARISONS = {"eq", "ne", "gt", "ge", "lt", "le", "logical_not", "logical_and", "logical_or", "invert", "masked_fill"}
_CONVERSIONS = {"long", "int", "bool", "double", "half", "to", "type"}
_SHAPES = {"size", "dim", "getattr"}
_WHOLE = slice(None, None, None)


def is_per_sample(gm: fx.GraphModule, node: fx.Node, batch: int) -> bool:
    """Whether each sample's part of the result depends on that sample's part of the inputs only.

    Args:
        gm: holds the layers.
        node: the operation; its inputs are known to be per sample themselves, or constants.
        batch: batch size of the example values.
    """
    value = node.meta.get("val")
    name = name_of(node)
    if not isinstance(value, Tensor):
        source = node.args[0] if node.args else None
        return name in _SHAPES or (node.target is operator.getitem and not _is_tensor(source))
    inputs = [n for n in node.all_input_nodes if _is_tensor(n) and n.op != "get_attr"]
    if value.dim() < 1 or value.shape[0] != batch or any(n.meta["val"].shape[:1] != (batch,) for n in inputs):
        return False
    if node.op == "call_module":
        return _layer(gm.get_submodule(str(node.target)), value.dim())
    rank = inputs[0].meta["val"].dim() if inputs else 0
    if name in ("to", "type"):
        return not any(isinstance(a, fx.Node) for a in [*node.args[1:], *node.kwargs.values()])
    if name == "softmax" or name in _REDUCTIONS:
        return _reduces_behind_batch(node, name, rank)
    if name in ELEMENTWISE or name in _COMPARISONS or name in _CONVERSIONS:
        return all(n.meta["val"].dim() == value.dim() for n in inputs)
    if name in ("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand", "expand_as", "repeat"):
        return _keeps_batch(node, name, rank)
    if name in ("transpose", "permute", "swapaxes"):
        return 0 not in _moved(node, name, rank)
    if name in ("cat", "concat", "stack"):
        dim = _dim(node, 1, 0)
        out = value.dim()
        return isinstance(dim, int) and dim % out != 0
    if node.target is operator.getitem:
        index = node.args[1]
        return isinstance(index, tuple) and index[:1] == (_WHOLE,) and not any(isinstance(i, fx.Node) for i in index)
    return False


def _is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)


def _layer(layer: nn.Module, rank: int) -> bool:
    if isinstance(layer, nn.Softmax):
        return isinstance(layer.dim, int) and layer.dim % rank != 0
    if isinstance(layer, nn.LayerNorm):
        return len(layer.normalized_shape) < rank
    return isinstance(layer, ELEMENTWISE_MODULES) or is_linear(layer)


def _dim(node: fx.Node, position: int, default: Any) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get("dim", node.kwargs.get("axis", default))


def _reduces_behind_batch(node: fx.Node, name: str, rank: int) -> bool:
    default = 1 if name == "normalize" else None
    dims = _dim(node, 2 if name in ("norm", "normalize") else 1, default)
    wanted = dims if isinstance(dims, (list, tuple)) else [dims]
    return bool(wanted) and all(isinstance(d, int) and not isinstance(d, bool) and d % rank != 0 for d in wanted)


def _keeps_batch(node: fx.Node, name: str, rank: int) -> bool:
    if name in ("squeeze", "unsqueeze", "flatten", "unflatten"):
        first = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("start_dim"))
        size = rank + 1 if name == "unsqueeze" else rank
        return isinstance(first, int) and first % size != 0
    if name == "repeat":
        times: Any = node.args[1] if isinstance(node.args[1], (list, tuple)) else node.args[1:]
        return isinstance(times[0], int) and times[0] == 1 and len(times) == rank
    return True  # the result has the batch in front (checked on the example), and no size may name another batch


def _moved(node: fx.Node, name: str, rank: int) -> set[int]:
    given: list[Any] = [*node.args[1:], *node.kwargs.values()]
    if name == "permute":
        order = given[0] if isinstance(given[0], (list, tuple)) else given
        return {d for d, source in enumerate(order) if int(source) % rank != d}
    return {int(d) % rank for d in given}


