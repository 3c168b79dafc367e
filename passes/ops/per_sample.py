"""Which operations treat every sample by itself.

Such an operation may run where the rows are, on other samples than the rank's own batch, or on
a part of the batch, and gives each sample what it would have got. All that is known is listed
here; what is not, is refused.

1. Dimension 0 of every input and of the result is the batch. What has none (constants only) is
   no sample's.
2. An entry made of the entries at the same place is per sample if all inputs are aligned with
   the batch, and a constant does not reach along it.
3. A sum, a softmax, a join, a transposition or an index is, if it leaves dimension 0 alone; a
   view, if it keeps the batch in front whatever its size.
4. A product is, if in letters the batch is the same letter in all inputs, the first of the
   result, and no constant's (:mod:`dmt_plugin.passes.ops.products`).
5. Numbers read from a shape may be used, unless they are the batch's own size: that one may
   only stand where a view says how many samples there are.
6. What writes into its input is refused, unless that is the new result of a linear layer or a
   product: a part of a batch, and rows that an exchange brought, are often views of which
   autograd allows no change. So are layers with hooks or parametrizations, which may do
   anything, and random values other than those of dropout.
"""

from __future__ import annotations

from torch import Tensor, fx, nn

from dmt_plugin.passes.ops.names import POINTWISE_MODULES, is_linear, name_of
from dmt_plugin.passes.ops.per_sample_rules import RULES, behind_batch, is_resized_alone, is_tensor
from dmt_plugin.passes.ops.per_sample_sizes import free_of_batch, is_size
from dmt_plugin.passes.ops.products import PRODUCTS

_RANK_OF_ONE = {nn.PReLU: 1, nn.GroupNorm: 1, nn.Bilinear: 1, nn.Conv1d: 2, nn.Conv2d: 3}
"""Layers that treat each sample alike, and the fewest dimensions a sample has."""
_SOFTMAX_MODULES = (nn.Softmax, nn.LogSoftmax, nn.Softmin)


def is_per_sample(gm: fx.GraphModule, node: fx.Node, batch: int) -> bool:
    """Whether each sample's part of the result depends on that sample's part of the inputs only.

    A node that is no tensor is so if it is a shape or a size (it does not say what becomes of it: that is judged
    where it is used). Dropout counts as per sample: every entry has a draw of its own, though not the same one.

    Args:
        gm: holds the layers.
        node: the operation; its inputs are known to be per sample themselves, or constants (``get_attr``).
        batch: batch size of the example values.
    """
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        return is_size(node)
    inputs = [n for n in node.all_input_nodes if is_tensor(n) and n.op != "get_attr"]
    if not inputs or any(n.meta["val"].shape[:1] != (batch,) for n in (node, *inputs)):
        return False
    if node.op not in ("call_module", "call_function", "call_method") or node.kwargs.get("out") is not None:
        return False
    if _writes(gm, node) and not _is_new(gm, inputs[0]):
        return False
    if node.op == "call_module":
        only_samples = len(inputs) == len(node.all_input_nodes)
        return only_samples and _layer(gm.get_submodule(str(node.target)), inputs[0].meta["val"].dim())
    if node.op == "call_method" and not is_tensor(node.args[0] if node.args else None):
        return False  # a method of something that is no tensor may be called anything
    name = name_of(node)
    if name in ("view", "reshape", "expand"):
        return is_resized_alone(node, batch)
    if not all(is_tensor(n) or free_of_batch(n) for n in node.all_input_nodes):
        return False
    rule = RULES.get(name)
    return rule is not None and rule(node)


def _writes(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether an operation writes its result into its input."""
    if node.op == "call_module":
        return bool(getattr(gm.get_submodule(str(node.target)), "inplace", False))
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    marked = name.endswith("_") and not name.startswith("__") and getattr(target, "__module__", "") != "_operator"
    return marked or bool(node.kwargs.get("inplace"))


def _is_new(gm: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a value has memory of its own that only one operation reads."""
    if len(node.users) > 1:
        return False
    if node.op == "call_module":
        return is_linear(gm.get_submodule(str(node.target)))
    return name_of(node) in PRODUCTS - {"einsum"}  # which, of one tensor, is a view


def _layer(layer: nn.Module, rank: int) -> bool:
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    if any(hooks) or any(True for _ in layer.children()):
        return False
    if is_linear(layer):
        return rank > 1
    kind = type(layer)  # not a class derived from it, which may compute something else
    if kind in _SOFTMAX_MODULES:
        return behind_batch(layer.dim, rank)
    if kind in (nn.LayerNorm, nn.RMSNorm):
        return len(layer.normalized_shape) < rank  # type: ignore[arg-type]
    if kind is nn.Flatten:
        return behind_batch(layer.start_dim, rank)
    if kind in _RANK_OF_ONE:
        return rank > _RANK_OF_ONE[kind]
    return kind in POINTWISE_MODULES
