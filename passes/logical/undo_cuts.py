"""Replaces what is cut out of a concatenation, at the borders of its parts, by these parts.

``x = torch.cat([*user, *item], 1)`` followed by ``x.split([24, 24], 1)`` or ``x[:, :24]`` says which features are the
user's by their places, which mean nothing once towers gave them other places. Said by the vectors themselves, it is
two joins:

1. For every piece that ``split``, ``chunk``, ``narrow`` or a slice cuts out of a concatenation along its dimension,
   find the parts that it consists of, through concatenations of concatenations and pieces of pieces.
2. Fields that are cut out one by one, beside other uses of their concatenation, stay: they are used one by one.
3. Where the piece begins and ends at borders of parts, it becomes the part, or a concatenation of the parts. Pieces
   with the same parts become one.
4. A concatenation of a single part is that part.

Any other piece stays. Values are the same bit for bit; the gradient of a vector may be added up in another order, so
this is done only where tower modules change the model anyway.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from dmt_plugin.fxtools.arguments import argument, arguments
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.ops.axes import Unsupported
from dmt_plugin.passes.ops.joins import CONCATENATIONS, joined_parts
from dmt_plugin.passes.ops.names import name_of, shape_of
from dmt_plugin.passes.ops.splits import cut_of

_CUTS = ("split", "split_with_sizes", "chunk", "tensor_split", "narrow", "getitem")
_WHOLE = slice(None)


class UndoCuts(GraphPass):
    """See the module's docstring."""

    name = "undo_cuts"
    contract = Contract(
        provides=frozenset({"cuts_undone"}),
        requires=frozenset({"regroups_spelled"}),
        conflicts_with=frozenset({"towers"}),
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Replaces every such piece of the graph."""
        if ctx.config.towers.module in ("none", "preserve"):
            return self.result(0)
        made: dict[tuple[Any, ...], fx.Node] = {}
        changed = 0
        for node in list(ctx.gm.graph.nodes):
            if _concatenated(node) is not None and len(joined_parts(node)) == 1:
                node.replace_all_uses_with(joined_parts(node)[0])
                changed += 1
            elif (place := _taken(node)) is not None:
                source, dim, start, end = place
                parts = _parts(source, dim, start, end)
                if parts:
                    node.replace_all_uses_with(_join(node, parts, dim, made))
                    changed += 1
            else:
                changed += _pieces(node, made)
        if changed:
            ctx.other_layout = True
            _drop(ctx.gm.graph)
        return self.result(changed, changed)


# -- what a node cuts ------------------------------------------------------------------


def _concatenated(node: fx.Node) -> int | None:
    """The dimension that a node concatenates along, behind the batch; ``None`` if it does not."""
    if name_of(node) not in CONCATENATIONS or not isinstance(node.meta.get("val"), Tensor):
        return None
    parts, dim = joined_parts(node), argument(node, 1, "dim|axis", 0)
    if not parts or not all(isinstance(p, fx.Node) and isinstance(p.meta.get("val"), Tensor) for p in parts):
        return None
    if type(dim) is not int or any(len(shape_of(part)) != len(shape_of(node)) for part in parts):
        return None
    return dim % len(shape_of(node)) or None


def _taken(node: fx.Node) -> tuple[fx.Node, int, int, int] | None:
    """``(source, dimension, start, end)`` of one piece behind the batch; ``None`` for any other node."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return None
    shape = shape_of(source)
    if name_of(node) == "narrow":
        given = arguments(node, "input", "dim", "start", "length")
        place: list[Any] = [given.get(name) for name in ("dim", "start", "length")]
        if not all(type(value) is int for value in place):
            return None
        dim, start, length = place
        dim, start = dim % len(shape), start % shape[dim] if start < 0 else start
        return (source, dim, start, start + length) if dim else None
    if node.target is not operator.getitem:
        return None
    index: tuple[Any, ...] = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if any(item is Ellipsis for item in index):
        at = next(i for i, item in enumerate(index) if item is Ellipsis)
        index = (*index[:at], *[_WHOLE] * (len(shape) - len(index) + 1), *index[at + 1 :])
    if not all(isinstance(item, slice) for item in index):
        return None
    cut = [d for d, item in enumerate(index) if item != _WHOLE]
    bounds = [v for d in cut for v in (index[d].start, index[d].stop)]
    if len(cut) != 1 or not cut[0] or index[cut[0]].step not in (None, 1):
        return None
    if not all(value is None or type(value) is int for value in bounds):
        return None
    start, end, _ = index[cut[0]].indices(shape[cut[0]])
    return source, cut[0], start, end


def _pieces(node: fx.Node, made: dict[tuple[Any, ...], fx.Node]) -> int:
    """Replaces the pieces of a node that cuts a tensor into several; says how many."""
    try:
        cut = cut_of(node)
    except Unsupported:
        return 0
    if cut is None or cut.gone or not cut.dim:
        return 0
    start, found = 0, []
    for size in cut.sizes:
        found.append(_parts(cut.source, cut.dim, start, start + size))
        start += size
    if all(parts and len(parts) == 1 for parts in found) and len(cut.source.users) > 1:
        return 0
    changed = 0
    for user in list(node.users):
        index = user.args[1] if user.target is operator.getitem and len(user.args) == 2 else None
        if isinstance(index, int) and user.args[0] is node:
            if parts := found[index]:
                user.replace_all_uses_with(_join(node, parts, cut.dim, made))
                changed += 1
        elif all(found) and user.op != "output" and user.args and user.args[0] is node and index is None:
            pieces = [_join(node, parts, cut.dim, made) for parts in found if parts]
            user.args = (pieces, *user.args[1:])
            changed += 1
    return changed


# -- what pieces are made of -----------------------------------------------------------


def _parts(node: fx.Node, dim: int, start: int, end: int) -> list[fx.Node] | None:
    """The tensors that lie from ``start`` to ``end`` of a node, side by side; ``None`` if a border cuts one."""
    if (start, end) == (0, shape_of(node)[dim]):
        return [node]
    inner = _taken(node)
    if inner is not None and inner[1] == dim:
        return _parts(inner[0], dim, inner[2] + start, inner[2] + end)
    if _concatenated(node) != dim:
        return None
    found: list[fx.Node] = []
    first = 0
    for part in joined_parts(node):
        size = shape_of(part)[dim]
        own = max(start, first) - first, min(end, first + size) - first
        if own[0] < own[1]:
            inside = _parts(part, dim, *own)
            if inside is None:
                return None
            found += inside
        first += size
    return found


def _join(before: fx.Node, parts: list[fx.Node], dim: int, made: dict[tuple[Any, ...], fx.Node]) -> fx.Node:
    """The parts as one node; the same parts give the same node."""
    if len(parts) == 1:
        return parts[0]
    key = (dim, *parts)
    if key not in made:
        with before.graph.inserting_before(before):
            joined = before.graph.call_function(torch.cat, (list(parts), dim))
        shape = list(shape_of(parts[0]))
        shape[dim] = sum(shape_of(part)[dim] for part in parts)
        joined.meta = dict(before.meta)
        joined.meta["val"] = parts[0].meta["val"].new_empty(shape)
        made[key] = joined
    return made[key]


def _drop(graph: fx.Graph) -> None:
    """Takes out cuts and concatenations that nothing uses any more."""
    for node in reversed(list(graph.nodes)):
        if not node.users and name_of(node) in (*CONCATENATIONS, *_CUTS):
            graph.erase_node(node)
