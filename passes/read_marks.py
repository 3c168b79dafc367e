"""Reads and removes the markers that a user put into forward.

1. Each call of ``mark_embeddings`` becomes a :class:`~dmt_plugin.passes.base.Mark`: a name, the streams and their
   keys. A marked ``(B, F, N)`` tensor that is a stack or a concatenation of vectors stands
   for those vectors; any other is one stream that holds all fields.
2. The marker is taken out of the graph: it computes nothing.
3. A stream under two keys or in two groups is an error, not a guess; a stream that no table
   feeds is a warning.

:func:`feature_name` and :func:`group_name` answer later passes from what was read.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dmt_plugin.capture.marks import mark_embeddings
from dmt_plugin.passes.base import Contract, GraphPass, Mark, PassContext, PassResult

_LISTS = (torch.stack, torch.cat, torch.concat, torch.concatenate)
_FUNCTIONS = (F.embedding, F.embedding_bag)


class ReadMarks(GraphPass):
    """See the module's docstring."""

    name = "read_marks"
    contract = Contract(provides=frozenset({"marks"}), requires=frozenset({"single_lookups"}))

    def run(self, ctx: PassContext) -> PassResult:
        """Fills ``ctx.marks``."""
        nodes = [n for n in ctx.gm.graph.nodes if n.target is mark_embeddings]
        for node in nodes:
            ctx.marks.append(_read(node))
            _remove(node)
        self._check(ctx)
        return self.result(len(nodes), len(nodes), ", ".join(f"{m.name} x{len(m.streams)}" for m in ctx.marks))

    def _check(self, ctx: PassContext) -> None:
        seen: dict[fx.Node, tuple[str, str]] = {}
        for mark in ctx.marks:
            for i, stream in enumerate(mark.streams):
                label = (mark.name, mark.keys[i] if mark.keys and not mark.joint else "")
                other = seen.setdefault(stream, label)
                if other != label:
                    ctx.find(
                        "DMT220",
                        "error",
                        _place(ctx, stream),
                        f"this stream is marked twice: as {_shown(other)} and as {_shown(label)}",
                        "mark each stream once",
                    )
                if not any(_reads_table(ctx, node) for node in (stream, *_behind(stream))):
                    ctx.find(
                        "DMT220",
                        "warning",
                        _place(ctx, stream),
                        f"the stream {stream.name} is marked as {_shown(label)}, but no embedding table feeds it",
                        "mark the embeddings themselves",
                    )


def feature_name(ctx: PassContext, lookup: fx.Node, field: int | None = None) -> str | None:
    """What the user's markers call the feature that ``lookup`` reads.

    Args:
        ctx: after :class:`ReadMarks`.
        lookup: the node of an embedding call.
        field: which field, for a call that reads several columns into ``(B, F, N)``.

    Returns:
        The key, or ``None`` if no marked stream with a key, or more than one key, is computed from the lookup.
    """
    found = {name for mark, i in _fed_by(ctx, lookup) if (name := _key(mark, i, field)) is not None}
    return found.pop() if len(found) == 1 else None


def group_name(ctx: PassContext, lookup: fx.Node) -> str | None:
    """The name of the marked group that ``lookup`` feeds; ``None`` if it feeds none or several."""
    found = {mark.name for mark, _ in _fed_by(ctx, lookup)}
    return found.pop() if len(found) == 1 else None


def _key(mark: Mark, stream: int, field: int | None) -> str | None:
    if not mark.keys:
        return None
    if mark.joint:
        return mark.keys[field] if field is not None and field < len(mark.keys) else None
    return mark.keys[stream]


def _fed_by(ctx: PassContext, lookup: fx.Node) -> Iterator[tuple[Mark, int]]:
    for mark in ctx.marks:
        for i, stream in enumerate(mark.streams):
            if lookup is stream or lookup in _behind(stream):
                yield mark, i


def _behind(node: fx.Node) -> set[fx.Node]:
    """Everything that ``node`` is computed from."""
    found: set[fx.Node] = set()
    pending = list(node.all_input_nodes)
    while pending:
        source = pending.pop()
        if source not in found:
            found.add(source)
            pending.extend(source.all_input_nodes)
    return found


def _read(node: fx.Node) -> Mark:
    call: dict[str, Any] = dict(zip(("name", "embeddings", "keys"), node.args, strict=False)) | node.kwargs
    marked, keys = call["embeddings"], tuple(str(key) for key in call.get("keys") or ())
    if isinstance(marked, (list, tuple)):
        return Mark(str(call["name"]), tuple(marked), keys)
    parts = marked.args[0] if marked.target in _LISTS and marked.args else None
    value = marked.meta.get("val")
    fields = value.shape[1] if isinstance(value, Tensor) and value.dim() == 3 else 1
    whole = isinstance(parts, (list, tuple)) and len(parts) == fields and all(isinstance(p, fx.Node) for p in parts)
    return Mark(str(call["name"]), tuple(parts) if whole else (marked,), keys)  # type: ignore[arg-type]


def _remove(node: fx.Node) -> None:
    marked = node.args[1] if len(node.args) > 1 else node.kwargs["embeddings"]
    graph = node.graph
    if isinstance(marked, (list, tuple)):
        for user in list(node.users):
            assert user.target is operator.getitem, "a marked list is only read by its items"
            user.replace_all_uses_with(marked[user.args[1]])  # type: ignore[index, arg-type]
            graph.erase_node(user)
    else:
        assert isinstance(marked, fx.Node)
        node.replace_all_uses_with(marked)
    graph.erase_node(node)


def _reads_table(ctx: PassContext, node: fx.Node) -> bool:
    layer = ctx.module(node) if node.op == "call_module" else None
    return isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) or node.target in _FUNCTIONS


def _place(ctx: PassContext, stream: fx.Node) -> str:
    tables = [n for n in (stream, *_behind(stream)) if n.op == "call_module" and _reads_table(ctx, n)]
    return str(tables[0].target) if len(tables) == 1 else stream.name


def _shown(label: tuple[str, str]) -> str:
    return f"{label[0]}: {label[1]}" if label[1] else label[0]
