"""Reads and removes the markers that a user put into forward.

1. Each call of ``mark_embeddings`` becomes a :class:`~dmt_plugin.passes.base.Mark`. A marked
   ``(B, F, N)`` tensor that is a stack or a concatenation of vectors stands for those
   vectors; any other is one stream that holds all fields.
2. What a mark is about are the embedding calls that feed it: these stay in the graph,
   whatever later passes do to the nodes between.
3. The marker is taken out of the graph: it computes nothing.
4. A stream under two keys or in two groups is an error, not a guess; a stream that no table
   feeds is a warning.

:mod:`dmt_plugin.passes.analysis.marked_names` answers later passes from what was read.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from dmt_plugin.capture.marks import mark_embeddings
from dmt_plugin.passes.analysis.table_calls import read_call
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.facts import Mark

_LISTS = (torch.stack, torch.cat, torch.concat, torch.concatenate)
_WHOLE = slice(None)


class ReadMarks(GraphPass):
    """See the module's docstring."""

    name = "read_marks"
    contract = Contract(provides=frozenset({"marks"}), requires=frozenset({"single_lookups"}))

    def run(self, ctx: PassContext) -> PassResult:
        """Fills ``ctx.marks``."""
        nodes = [n for n in ctx.gm.graph.nodes if n.target is mark_embeddings]
        seen: dict[fx.Node, str] = {}
        for node in nodes:
            name, streams, keys, joint = _read(node)
            mark = Mark(name, keys, tuple(frozenset(_sources(ctx, stream)) for stream in streams), joint)
            for i, stream in enumerate(streams):
                label = f"{name}: {keys[i]}" if keys and not joint else name
                self._check(ctx, stream, mark.sources[i], seen.setdefault(stream, label), label)
            ctx.marks.append(mark)
            _remove(node)  # before the next is read: what is marked may be computed from marked streams
        return self.result(len(nodes), len(nodes), ", ".join(f"{m.name} x{len(m.sources)}" for m in ctx.marks))

    def _check(
        self, ctx: PassContext, stream: fx.Node, sources: frozenset[tuple[fx.Node, int | None]], first: str, label: str
    ) -> None:
        tables = sorted({call.table for node, _ in sources if (call := read_call(ctx.gm, node)) is not None})
        place = tables[0] if len(tables) == 1 else stream.name
        if first != label:
            reason = f"this stream is marked twice: as {first} and as {label}"
            ctx.find("DMT220", "error", place, reason, "mark each stream once", at=stream)
        if not sources:
            reason = f"the stream {stream.name} is marked as {label}, but no embedding table feeds it"
            ctx.find("DMT221", "warning", place, reason, "mark the embeddings themselves", at=stream)


def _read(node: fx.Node) -> tuple[str, list[fx.Node], tuple[str, ...], bool]:
    """Name, streams and keys of a marker, and whether its only stream holds several features."""
    call: dict[str, Any] = dict(zip(("name", "embeddings", "keys"), node.args, strict=False)) | node.kwargs
    marked, keys = call["embeddings"], tuple(str(key) for key in call.get("keys") or ())
    if isinstance(marked, (list, tuple)):
        return str(call["name"]), list(marked), keys, False
    parts = marked.args[0] if marked.target in _LISTS and marked.args else None
    value = marked.meta.get("val")
    fields = value.shape[1] if isinstance(value, Tensor) and value.dim() == 3 else 1
    if isinstance(parts, (list, tuple)) and len(parts) == fields:
        return str(call["name"]), list(parts), keys, False
    return str(call["name"]), [marked], keys, fields > 1


def _sources(ctx: PassContext, stream: fx.Node) -> Iterator[tuple[fx.Node, int | None]]:
    """The embedding calls that ``stream`` is computed from, and the field where one is picked."""
    pending, seen = [stream], set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if read_call(ctx.gm, node) is not None:
            yield node, None
        elif (picked := _picked_field(node)) is not None and read_call(ctx.gm, picked[0]) is not None:
            yield picked
        else:
            pending.extend(node.all_input_nodes)


def _picked_field(node: fx.Node) -> tuple[fx.Node, int] | None:
    """What ``x[:, i]`` picks out of ``(B, F, N)``: ``x`` and ``i``."""
    source = node.args[0] if node.args else None
    value = source.meta.get("val") if isinstance(source, fx.Node) else None
    if not isinstance(source, fx.Node) or not isinstance(value, Tensor) or value.dim() != 3:
        return None
    field: Any = None
    if node.target is operator.getitem and isinstance(index := node.args[1], tuple) and index[:1] == (_WHOLE,):
        field = index[1] if len(index) > 1 and all(i == _WHOLE for i in index[2:]) else None
    elif node.target in ("select", torch.select) and node.args[1:2] == (1,):
        field = node.args[2]
    return (source, field % value.shape[1]) if isinstance(field, int) else None


def _remove(node: fx.Node) -> None:
    marked = node.args[1] if len(node.args) > 1 else node.kwargs["embeddings"]
    graph = node.graph
    if isinstance(marked, (list, tuple)):
        for user in list(node.users):
            assert user.target is operator.getitem, "a marked list is only read by its items"
            user.replace_all_uses_with(marked[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
    else:
        assert isinstance(marked, fx.Node)
        node.replace_all_uses_with(marked)
    graph.erase_node(node)
