"""Writes FBGEMM's permutations of pooled embeddings as ``narrow`` and ``cat``.

torchrec regroups pooled embeddings by one operation over wide tensors (``KeyedTensor.regroup``, ``regroup_as_dict``),
which later passes could not look into:

1. ``permute_pooled_embs`` and its relatives put the blocks of one tensor in another order, as index tensors say that
   are the same in every call;
2. ``permute_multi_embedding`` and ``regroup_keyed_tensor`` pick blocks of several tensors into several others, as
   index tensors say, or names.

Each result becomes the blocks, cut out and joined again: the same values, bit for bit. The next pass
(:mod:`dmt_plugin.passes.logical.undo_cuts`) then finds the tables' own vectors in them. An operation whose index
tensors are not constants is left alone. So is everything where the transform keeps the model's numbers: there it need
not be looked into.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from dmt_plugin.capture.graph_state import LIBRARY_OPERATIONS
from dmt_plugin.fxtools.arguments import arguments
from dmt_plugin.fxtools.constants import constant_of
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.ops.names import shape_of

_PERMUTATIONS = {
    f"fbgemm.permute_{duplicate}pooled_embs{gradient}{split}"
    for duplicate in ("", "duplicate_")
    for gradient in ("", "_auto_grad")
    for split in ("", "_split")
}
_OF_SEVERAL = {"fbgemm.permute_multi_embedding", "fbgemm.permute_multi_embedding_function"}
_BY_NAME = "fbgemm.regroup_keyed_tensor"
_ARGUMENTS = "fbgemm.kt_regroup_arguments"

#: A block of a result: the tensor that it is cut from, its first column, its width.
Block = tuple[fx.Node, int, int]


class SpellRegroups(GraphPass):
    """See the module's docstring."""

    name = "spell_regroups"
    contract = Contract(
        provides=frozenset({"regroups_spelled"}),
        requires=frozenset({"joint_tables_split"}),
        conflicts_with=frozenset({"towers"}),
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Writes out every operation of the graph whose places are known."""
        if ctx.config.towers.module in ("none", "preserve"):
            return self.result(0)
        matched = changed = 0
        for node in list(ctx.gm.graph.nodes):
            operation = operation_of(node)
            if operation in _PERMUTATIONS:
                results = [_permuted(ctx.gm, node)]
            elif operation in _OF_SEVERAL:
                results = _picked(ctx.gm, node)
            elif operation == _BY_NAME:
                results = _named(*node.args)
            else:
                continue
            matched += 1
            if results and all(results):
                changed, ctx.other_layout = changed + 1, True
                made = [_joined(node, blocks) for blocks in results]
                _replace(node, made[0] if operation in _PERMUTATIONS else made)
        _drop_places(ctx.gm.graph)
        return self.result(matched, changed)


def operation_of(node: fx.Node) -> str:
    """``library.name`` of an operation of a library; empty for any other node."""
    return ".".join(str(node.target).split(".")[:2]) if isinstance(node.target, LIBRARY_OPERATIONS) else ""


def _permuted(gm: fx.GraphModule, node: fx.Node) -> list[Block]:
    given = arguments(node, "pooled_embs", "offset_dim_list", "permute_list", "inv_offset_dim_list", "inv_permute_list")
    source = given["pooled_embs"]
    offsets, order = constant_of(gm, given["offset_dim_list"]), constant_of(gm, given["permute_list"])
    if offsets is None or order is None or not isinstance(source, fx.Node):
        return []
    starts = offsets.tolist()
    return [(source, starts[i], starts[i + 1] - starts[i]) for i in order.tolist()]


def _picked(gm: fx.GraphModule, node: fx.Node) -> list[list[Block]]:
    given = arguments(node, "pooled_embs", "permutes", "in_shapes", "out_shapes", "out_lengths", "reverse")
    sources = given["pooled_embs"]
    permutes = _places(gm, given["permutes"])
    if permutes is None or given.get("reverse") or not isinstance(sources, (list, tuple)):
        return []
    count = len(node.meta["val"])
    results: list[list[tuple[int, Block]]] = [[] for _ in range(count)]
    for source, result, start, place, width, _ in permutes.tolist():
        results[result].append((place, (sources[source], start, width)))
    return [[block for _, block in sorted(own, key=lambda entry: entry[0])] for own in results]


def _places(gm: fx.GraphModule, value: Any) -> Tensor | None:
    """The index tensor of a permutation: a constant, or what FBGEMM computes from names."""
    if not isinstance(value, fx.Node) or not value.args:
        return constant_of(gm, value)
    source = value.args[0]
    if isinstance(source, fx.Node) and operation_of(source) == _ARGUMENTS:
        named = arguments(source, "embs", "keys", "lengths", "groups")
        assert callable(source.target)
        found: Tensor = source.target(torch.empty(1, 1), named["keys"], named["lengths"], named["groups"])[0]
        return found
    return constant_of(gm, value)


def _named(sources: Any, keys: Any, lengths: Any, groups: Any) -> list[list[Block]]:
    place: dict[str, Block] = {}
    for source, own_keys, own_lengths in zip(sources, keys, lengths, strict=True):
        starts = [0, *accumulate(own_lengths)]
        place |= {key: (source, start, n) for key, start, n in zip(own_keys, starts, own_lengths, strict=False)}
    return [[place[key] for key in group] for group in groups]


def _joined(before: fx.Node, blocks: list[Block]) -> fx.Node:
    graph = before.graph
    parts = []
    with graph.inserting_before(before):
        for source, start, width in blocks:
            part = source
            if (start, width) != (0, shape_of(source)[1]):
                part = graph.call_function(torch.narrow, (source, 1, start, width))
                value = source.meta["val"]
                part.meta["val"] = value.new_empty(value.shape[0], width)
            parts.append(part)
        joined = graph.call_function(torch.cat, (parts, 1))
    value = parts[0].meta["val"]
    joined.meta = dict(before.meta)
    joined.meta["val"] = value.new_empty(value.shape[0], sum(shape_of(part)[1] for part in parts))
    return joined


def _drop_places(graph: fx.Graph) -> None:
    """Takes out what computed places from names, where nothing reads it any more."""
    for node in [n for n in graph.nodes if operation_of(n) == _ARGUMENTS]:
        for user in [user for user in node.users if not user.users]:
            graph.erase_node(user)
        if not node.users:
            graph.erase_node(node)


def _replace(node: fx.Node, by: fx.Node | list[fx.Node]) -> None:
    """Uses of a node become uses of one other, or each use of one of its results that of one of several."""
    if isinstance(by, fx.Node):
        node.replace_all_uses_with(by)
    else:
        several = by
        for user in list(node.users):
            index = user.args[1] if len(user.args) == 2 else None
            if user.args[0] is node and isinstance(index, int):
                user.replace_all_uses_with(several[index])
                user.graph.erase_node(user)
            else:
                user.args = map_arg(user.args, lambda n: several if n is node else n)
                user.kwargs = map_arg(user.kwargs, lambda n: several if n is node else n)
    node.graph.erase_node(node)
