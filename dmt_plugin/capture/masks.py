"""Rewrites selections by a constant boolean mask to indexing, whose result has a known size and one row per sample.

How many entries a mask selects depends on its values, unless it is a constant of the model. A dot interaction may pick
its pairs with ``torch.masked_select(gram, self.mask)``. Example values have no entries, so nobody can count what a mask
picks; but a mask that is made of the model's buffers alone is there while the model is captured.

1. An index or mask is constant if it is computed from buffers and constants by operations
   that neither draw random numbers nor read an input; ``expand`` over the batch is looked
   through, since every sample then has the same mask.
2. The example value of such a selection has the size that the real mask gives.
3. After the trace, ``masked_select(x, mask)`` (and ``x[mask]`` with a mask expanded over the
   batch) is spelled ``x[:, ..., mask]``, which picks the same entries in the same order and
   keeps one row per sample; the ``view`` that made rows of the flat result is dropped. The
   passes know that spelling.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from dmt_plugin.fxtools.arguments import arguments
from dmt_plugin.fxtools.attributes import attribute

_PLAIN_FUNCTIONS = {
    operator.getitem, operator.invert, operator.and_, operator.or_, operator.eq, operator.ne, operator.gt,
    operator.ge, operator.lt, operator.le, torch.logical_not, torch.tril, torch.triu, torch.eq, torch.ne, torch.gt,
    torch.lt, torch.unsqueeze, torch.squeeze, torch.reshape, torch.transpose, torch.ones_like,
}  # fmt: skip
_PLAIN_METHODS = {
    "bool", "long", "int", "to", "logical_not", "tril", "triu", "eq", "ne", "gt", "ge", "lt", "le", "unsqueeze",
    "squeeze", "view", "reshape", "t", "transpose", "flatten", "contiguous", "clone", "detach", "__invert__",
}  # fmt: skip
_EXPANDS = {"expand", "expand_as", torch.broadcast_to}
_VIEWS = {"view", "reshape", torch.reshape}


def constant_of(node: Any, root: nn.Module) -> Tensor | None:
    """The real value of an expression over constants of the model, or ``None`` if it is not one (or holds no data)."""
    if not isinstance(node, fx.Node):
        return None
    if node.op == "get_attr":
        value = attribute(root, str(node.target))
        trained = isinstance(value, nn.Parameter) and value.is_floating_point()  # others have no gradient
        plain = isinstance(value, Tensor) and not trained and not value.is_meta
        with unset_fake_temporarily():
            return value.detach() if plain else None
    known = _PLAIN_METHODS if node.op == "call_method" else _PLAIN_FUNCTIONS if node.op == "call_function" else ()
    if node.target not in known:
        return None
    values = {source: constant_of(source, root) for source in node.all_input_nodes}
    if any(value is None for value in values.values()):
        return None
    args = fx.node.map_arg(node.args, values.__getitem__)
    kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
    with unset_fake_temporarily():
        if node.op == "call_method":
            result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            assert callable(node.target)
            result = node.target(*args, **kwargs)
    return result if isinstance(result, Tensor) else None


def indices_of(node: Any, root: nn.Module) -> tuple[Tensor, ...] | None:
    """For a constant boolean mask the indices of its entries, one list per dimension; else ``None``."""
    mask = constant_of(node, root)
    if mask is None or mask.dtype != torch.bool:
        return None
    with unset_fake_temporarily():
        return mask.nonzero(as_tuple=True)


def selection_of(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """``(x, mask)`` if ``node`` picks the entries of ``x`` where ``mask`` is true, as one flat list."""
    if node.target not in (torch.masked_select, "masked_select", operator.getitem):
        return None
    named = arguments(node, "input", "mask")
    x, mask = named.get("input"), named.get("mask")
    if not isinstance(x, fx.Node) or not isinstance(mask, fx.Node):
        return None
    picked, wide = mask.meta.get("val"), x.meta.get("val")
    if not isinstance(picked, Tensor) or picked.dtype != torch.bool or not isinstance(wide, Tensor):
        return None
    whole = node.target is not operator.getitem or picked.dim() == wide.dim()
    return (x, mask) if whole else None


def per_sample(x: fx.Node, mask: fx.Node, root: nn.Module) -> tuple[fx.Node, Tensor, int] | None:
    """What every sample is masked with.

    Returns:
        The node of the mask, its real value, and how many leading dimensions of size one it has beside those of the
        last dimensions of ``x``; ``None`` if the mask is not the same constant for all samples.
    """
    node = mask
    while node.target in _EXPANDS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    value = constant_of(node, root)
    shape = tuple(x.meta["val"].shape)
    if value is None or value.dtype != torch.bool:
        return None
    leading = 0
    while leading < value.dim() and value.shape[leading] == 1 and value.dim() - leading > 1:
        leading += 1
    own = tuple(value.shape[leading:])
    fits = 0 < len(own) < len(shape) and own == shape[len(shape) - len(own) :]
    return (node, value, leading) if fits else None


def selected(node: fx.Node, root: nn.Module) -> Tensor | None:
    """The example value of a selection by a constant mask, or ``None`` if ``node`` is not one."""
    found = selection_of(node)
    masked = per_sample(*found, root) if found is not None else None
    if found is None or masked is None:
        return None
    value, (_, mask, leading) = found[0].meta["val"], masked
    rows = value.shape[: value.dim() - (mask.dim() - leading)].numel()
    with unset_fake_temporarily():
        picked = int(mask.sum())
    return value.new_empty(rows * picked)


def spell_masks_by_row(graph: fx.Graph, root: nn.Module) -> None:
    """Step 3 of the module's docstring, on a recorded graph whose attributes ``root`` holds."""
    for node in list(graph.nodes):
        found = selection_of(node)
        masked = per_sample(*found, root) if found is not None else None
        if found is not None and masked is not None:
            _by_row(graph, node, found[0], *masked)


def _by_row(graph: fx.Graph, node: fx.Node, x: fx.Node, mask: fx.Node, value: Tensor, leading: int) -> None:
    kept = x.meta["val"].dim() - (value.dim() - leading)

    def recorded(target: Any, args: tuple[Any, ...], example: Tensor) -> fx.Node:
        made = graph.call_function(target, args)
        made.meta = {**node.meta, "val": example}
        return made

    with graph.inserting_before(node):
        for _ in range(leading):
            mask = recorded(operator.getitem, (mask, 0), mask.meta["val"][0])
        shape = (*x.meta["val"].shape[:kept], int(value.sum()))
        rows = recorded(operator.getitem, (x, (*[slice(None)] * kept, mask)), x.meta["val"].new_empty(shape))
    for user in list(node.users):
        makes_rows = user.target in _VIEWS and user.args[0] is node and tuple(user.meta["val"].shape) == shape
        if makes_rows:
            user.replace_all_uses_with(rows)
            graph.erase_node(user)
    if node.users:
        with graph.inserting_before(node):
            flat = graph.call_method("reshape", (rows, -1))
        flat.meta = dict(node.meta)
        node.replace_all_uses_with(flat)
    graph.erase_node(node)
    for unused in (n for n in reversed(list(graph.nodes)) if n.target in _EXPANDS and not n.users):
        graph.erase_node(unused)
