"""Rewrites dot interactions to a form whose backward pass is one batched product instead of two.

``bmm(x, x^T)[:, i, j]`` becomes :func:`dmt_plugin.nn.pair_products.pair_products`. Outputs stay the same bit for bit;
gradients are added up in another order, so this is for the graph of a rank, never for the logical graph.

1. A candidate picks entries, the same for every sample, from the last two dimensions of ``(B, V, V)``: by two index
   vectors, or by one mask.
2. What it picks from must be the product of ``(B, V, N)`` with its own transpose, by ``bmm``, ``matmul`` or ``einsum``,
   and nothing else may read it: transpositions are followed to a common source.
3. Indices must be known: constants of the graph that no state can replace later, in range, none counted from the end.
   They become buffers of the graph that are not saved.

What fits no step stays as it is. ``dmt.transform.faster_dot`` switches the pass off.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from dmt_plugin.capture.masks import constant_of
from dmt_plugin.fxtools.attributes import attribute
from dmt_plugin.fxtools.order import drop_unused
from dmt_plugin.nn.pair_products import pair_of, pair_products
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.ops.axes import Unsupported
from dmt_plugin.passes.ops.names import shape_of
from dmt_plugin.passes.ops.queries import dims_of, has_trait
from dmt_plugin.passes.ops.transposes import order_of

BUFFERS = "dmt_pairs"
"""Names of the index buffers begin so."""

_FACTORS = {"input", "other", "mat2"}
"""Keywords under which a product may get its factors."""


class FasterDot(GraphPass):
    """See the module's docstring."""

    name = "faster_dot"
    contract = Contract(
        provides=frozenset({"faster_dot"}), requires=frozenset({"placed"}), conflicts_with=frozenset({"scheduled"})
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Rewrites every dot interaction of ``ctx.gm`` that is proven to be one."""
        if not ctx.config.transform.faster_dot:
            return self.result(0, 0, "switched off")
        candidates = [node for node in ctx.gm.graph.nodes if _picks_pairs(node)]
        rewritten = sum(_rewrite(ctx.gm, node) for node in candidates)
        drop_unused(ctx.gm.graph)
        return self.result(len(candidates), rewritten, f"{rewritten} dot interaction(s) with one product in backward")


def _picks_pairs(node: fx.Node) -> bool:
    """Step 1, as far as the spelling goes."""
    if node.target is not operator.getitem or not isinstance(node.args[1], tuple):
        return False
    source, (head, *picks) = node.args[0], node.args[1]
    value = source.meta.get("val") if isinstance(source, fx.Node) else None
    square = isinstance(value, Tensor) and value.dim() == 3 and value.shape[1] == value.shape[2]
    return square and head == slice(None) and len(picks) in (1, 2) and not any(isinstance(p, slice) for p in picks)


def _rewrite(gm: fx.GraphModule, node: fx.Node) -> bool:
    product: Any = node.args[0]
    vectors = multiplied_by_itself(gm, product)
    if vectors is None or len(product.users) != 1:
        return False
    size = int(product.meta["val"].shape[1])
    pairs = _pairs(gm, node.args[1][1:], size)  # type: ignore[index]
    if pairs is None:
        return False
    # Where the product stood: what changes x later does not change what was picked from the product.
    with gm.graph.inserting_before(product):
        first, second = (_buffer(gm, values) for values in pairs)
        source = pair_of(*pairs, size)
        places = (_buffer(gm, source),) if source is not None else ()
        made = gm.graph.call_function(pair_products, (vectors, first, second, size, *places))
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    gm.graph.erase_node(node)
    return True


def multiplied_by_itself(gm: fx.GraphModule, node: Any) -> fx.Node | None:
    """Step 2: the node ``x`` ``(B, V, N)`` if ``node`` is ``x @ x^T``, else ``None``."""
    if not isinstance(node, fx.Node) or not has_trait(node, "multiplies") or set(node.kwargs) - _FACTORS:
        return None
    try:
        product = dims_of(gm, node)
    except Unsupported:
        return None
    if product is None or len(product.terms) != 2 or any(len(shape_of(factor)) != 3 for factor, _ in product.terms):
        return None
    (left, one), (right, two) = product.terms
    batch, row, summed = one
    if not left.meta["val"].is_floating_point() or len({batch, row, summed}) != 3 or len(product.result) != 3:
        return None
    column = product.result[2]
    if product.result != (batch, row, column) or column in one or summed in product.result:
        return None
    renamed = tuple(row if token == column else token for token in two)
    return left if _untransposed(left, one) == _untransposed(right, renamed) else None


def _untransposed(node: fx.Node, tokens: tuple[Any, ...]) -> tuple[fx.Node, tuple[Any, ...]]:
    """The tensor that ``node`` is a transposition of, and the tokens of its dimensions."""
    while (order := order_of(node)) is not None:
        source: Any = node.args[0] if node.args else node.kwargs["input"]
        node, tokens = source, tuple(token for _, token in sorted(zip(order, tokens, strict=True)))
    return node, tokens


def _pairs(gm: fx.GraphModule, picks: Any, vectors: int) -> tuple[Tensor, Tensor] | None:
    """Step 3: both index vectors ``(P,)``, int64 and in range, or ``None``."""
    values = [_constant(gm, pick) for pick in picks]
    if any(value is None for value in values):
        return None
    if len(values) == 1:
        (mask,) = values
        assert mask is not None
        if mask.dtype != torch.bool or tuple(mask.shape) != (vectors, vectors):
            return None
        values = list(mask.nonzero(as_tuple=True))
    first, second = values
    assert first is not None and second is not None
    for half in (first, second):
        if half.dtype not in (torch.int64, torch.int32) or half.dim() != 1 or not half.numel():
            return None
        if int(half.min()) < 0 or int(half.max()) >= vectors:
            return None
    return (first.long(), second.long()) if first.shape == second.shape else None


def _constant(gm: fx.GraphModule, value: Any) -> Tensor | None:
    """A list of integers, or a value made of tensors that no state dictionary holds."""
    if isinstance(value, (list, tuple)):
        return torch.tensor(list(value)) if value and all(type(item) is int for item in value) else None
    if not isinstance(value, fx.Node):
        return None
    pending, seen = [value], set()
    while pending:
        node = pending.pop()
        seen.add(node)
        if node.op == "get_attr" and _is_saved(gm, str(node.target)):
            return None
        pending.extend(source for source in node.all_input_nodes if source not in seen)
    return constant_of(value, gm)


def _is_saved(gm: fx.GraphModule, path: str) -> bool:
    """Whether a state dictionary has the tensor, so that loading one would change it."""
    owner, _, name = path.rpartition(".")
    module = gm.get_submodule(owner)
    if isinstance(attribute(gm, path), nn.Parameter):
        return True
    return name in module._buffers and name not in module._non_persistent_buffers_set


def _buffer(gm: fx.GraphModule, values: Tensor) -> fx.Node:
    """A node that reads ``values``; equal ones (the blocks of a batch pick the same pairs) share a buffer."""
    own = [name for name in gm._buffers if name.startswith(BUFFERS)]
    name = next((n for n in own if torch.equal(gm.get_buffer(n), values)), f"{BUFFERS}_{len(own)}")
    if name not in own:
        gm.register_buffer(name, values, persistent=False)
    read = gm.graph.get_attr(name)
    read.meta["val"] = torch.empty(values.shape, dtype=values.dtype, device="meta")
    return read
