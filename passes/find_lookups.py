"""Finds the lookups of a model and the feature behind each.

1. A lookup is a call of ``nn.EmbeddingBag`` or ``nn.Embedding`` (also through a subclass
   that inherits ``forward``) whose result is one vector per sample.
2. Feature identity is the index input, not the table: two lookups with structurally equal
   index expressions read the same feature (a first-order weight and an embedding, say);
   one table read with two index inputs serves two features.
3. A table that is not read by the samples' ids (one vector per position or per feature)
   is dense: it is left alone.
4. A feature is named after the key of the jagged input it comes from, else after the
   widest table it is looked up in.
5. What the sharded lookup cannot do exactly as the layer does is a finding: it would
   run, and be wrong.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from dmt_plugin.nn.graph_ops import jagged_values
from dmt_plugin.passes.base import Contract, GraphPass, Lookup, PassContext, PassResult


class FindLookups(GraphPass):
    """See the module's docstring."""

    name = "find_lookups"
    contract = Contract(provides=frozenset({"lookups"}), requires=frozenset({"single_lookups"}))

    def run(self, ctx: PassContext) -> PassResult:
        """Fills ``ctx.lookups``."""
        calls = [
            n
            for n in ctx.gm.graph.nodes
            if n.op == "call_module"
            and isinstance(ctx.module(n), (nn.EmbeddingBag, nn.Embedding))
            and _reads_samples(n)
        ]
        found = [lookup for node in calls if (lookup := self._read(ctx, node)) is not None]
        self._check_weights(ctx, found)
        self._report_functional(ctx)
        ctx.lookups = _name_features(found)
        if not calls:
            ctx.find(
                "DMT200",
                "error",
                "",
                "the model has no embedding: no call of nn.EmbeddingBag, nn.Embedding or an EmbeddingBagCollection "
                "was found in its graph",
                "towers are made of embedding tables; check that the model given is the recommender itself",
            )
        return self.result(len(found))

    def _read(self, ctx: PassContext, node: fx.Node) -> Lookup | None:
        layer = ctx.module(node)
        assert isinstance(layer, (nn.EmbeddingBag, nn.Embedding))
        problem = _unsupported(layer, node, ctx.captured.batch_size)
        if problem is not None:
            code, reason, hint = problem
            ctx.find(code, "error", str(node.target), reason, hint)
            return None
        if isinstance(layer, nn.EmbeddingBag):
            ids, hotness, pooling, weighted = _read_bag(layer, node)
        else:
            ids, hotness, pooling, weighted = _read_embedding(layer, node)
        rows, dim = layer.weight.shape
        return Lookup(
            node, str(node.target), rows, dim, pooling, "", _key(ids[1], ids[2]), ids, hotness, weighted
        )

    def _report_functional(self, ctx: PassContext) -> None:
        for node in ctx.gm.graph.nodes:
            if node.target in (F.embedding, F.embedding_bag):
                weight = next((n for n in node.all_input_nodes if n.op == "get_attr"), node)
                ctx.find(
                    "DMT208",
                    "warning",
                    str(weight.target) if weight is not node else node.name,
                    "a table is looked up by a function; it stays on every rank as a dense parameter, and its whole "
                    "gradient is reduced in every step",
                    "look it up through nn.EmbeddingBag or nn.Embedding to have it sharded",
                )

    def _check_weights(self, ctx: PassContext, lookups: list[Lookup]) -> None:
        owners: dict[int, set[str]] = {}
        for path, module in ctx.gm.named_modules(remove_duplicate=False):
            for _, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
                owners.setdefault(id(parameter), set()).add(path)
        read_directly = {str(n.target) for n in ctx.gm.graph.nodes if n.op == "get_attr"}
        for table in dict.fromkeys(lookup.table for lookup in lookups):
            weight = ctx.gm.get_submodule(table).weight
            others = sorted(owners[id(weight)] - {table})
            if others or f"{table}.weight" in read_directly:
                ctx.find(
                    "DMT205",
                    "error",
                    table,
                    f"this table's weight is also used by {others or 'an operation of the graph'}; a sharded table "
                    "lives on one rank and cannot be tied",
                    "give the other use its own parameter",
                )


def _reads_samples(node: fx.Node) -> bool:
    """Whether the ids come from the model's inputs (sizes alone do not count)."""
    pending, seen = list(node.all_input_nodes), set()
    while pending:
        source = pending.pop()
        if source.op == "placeholder":
            return True
        if source not in seen and not isinstance(source.meta.get("val"), (int, torch.Size)):
            seen.add(source)
            pending.extend(source.all_input_nodes)
    return False


def _unsupported(
    layer: nn.EmbeddingBag | nn.Embedding, node: fx.Node, batch_size: int
) -> tuple[str, str, str] | None:
    if layer.max_norm is not None:
        return "DMT201", "max_norm renormalises rows at every lookup", "drop max_norm; clip the table outside the step"
    if layer.scale_grad_by_freq:
        return "DMT202", "scale_grad_by_freq changes the gradient by batch counts", "set scale_grad_by_freq=False"
    if not layer.weight.requires_grad:
        return "DMT203", "the table is frozen; a sharded table is always trained", "unfreeze the table"
    if isinstance(layer, nn.EmbeddingBag) and layer.mode == "max":
        return "DMT204", 'pooling "max" is not available for sharded tables', 'use "sum" or "mean"'
    shape = tuple(node.meta["val"].shape)
    if shape[0] != batch_size or (len(shape) != 2 and not (len(shape) == 3 and shape[1] == 1)):
        return (
            "DMT206",
            f"for {batch_size} samples the lookup gives the shape {shape}, not one vector per sample (a sequence, or a "
            "table shared by columns)",
            "pool the sequence with nn.EmbeddingBag, or look each column up by itself",
        )
    padding = layer.padding_idx
    if isinstance(layer, nn.EmbeddingBag) or padding is None or layer.weight.is_meta:
        return None
    if bool((layer.weight[padding] != 0).any()):
        return (
            "DMT207",
            f"row {padding} is the padding row but not zero; a sharded lookup drops padding ids",
            "zero the row, as nn.Embedding(padding_idx=...) does when it is built",
        )
    return None


Ids = tuple[str, tuple[Any, ...], dict[str, Any]]


def _read_embedding(layer: nn.Embedding, node: fx.Node) -> tuple[Ids, int | None, str, bool]:
    (index,) = [*node.args, *node.kwargs.values()]
    padding = layer.padding_idx
    return ("ids_from_embedding", (index,), {"padding_idx": padding}), None if padding is not None else 1, "sum", False


def _read_bag(layer: nn.EmbeddingBag, node: fx.Node) -> tuple[Ids, int | None, str, bool]:
    call: dict[str, Any] = dict(zip(("input", "offsets", "per_sample_weights"), node.args, strict=False))
    call |= node.kwargs
    index, offsets, weights = call["input"], call.get("offsets"), call.get("per_sample_weights")
    padding = layer.padding_idx
    options: dict[str, Any] = {"weights": weights, "padding_idx": padding}
    if offsets is not None:
        options["include_last_offset"] = layer.include_last_offset
        return ("ids_from_bag_offsets", (index, offsets), options), None, layer.mode, weights is not None
    hotness = None if padding is not None else int(index.meta["val"].shape[1])
    return ("ids_from_bag_2d", (index,), options), hotness, layer.mode, weights is not None


def _key(args: Any, kwargs: Any) -> str:
    """A text that is equal for structurally equal expressions of graph inputs."""
    memo: dict[fx.Node, str] = {}

    def of(value: Any) -> str:
        if isinstance(value, fx.Node):
            if value not in memo:
                memo[value] = (
                    f"%{value.target}" if value.op in ("placeholder", "get_attr")
                    else f"({value.op}:{_target(value.target)} {of(value.args)} {of(dict(value.kwargs))})"
                )
            return memo[value]
        if isinstance(value, (list, tuple)):
            return "[" + ",".join(of(item) for item in value) + "]"
        if isinstance(value, dict):
            return "{" + ",".join(f"{k}={of(v)}" for k, v in sorted(value.items())) + "}"
        return repr(value)

    return of(args) + of(kwargs)


def _target(target: str | Callable[..., Any]) -> str:
    return target if isinstance(target, str) else getattr(target, "__qualname__", repr(target))


def _name_features(lookups: list[Lookup]) -> list[Lookup]:
    by_key: dict[str, list[Lookup]] = {}
    for lookup in lookups:
        by_key.setdefault(lookup.key, []).append(lookup)
    wanted = {key: _jagged_key(group[0]) or max(group, key=lambda x: x.dim).table for key, group in by_key.items()}
    used: Counter[str] = Counter()
    names: dict[str, str] = {}
    for key, name in wanted.items():
        used[name] += 1
        names[key] = name if used[name] == 1 else f"{name}#{used[name]}"
    return [replace(lookup, feature=names[lookup.key]) for lookup in lookups]


def _jagged_key(lookup: Lookup) -> str | None:
    index = lookup.ids[1][0]
    if isinstance(index, fx.Node) and index.target is jagged_values:
        return str(index.args[1])
    if isinstance(index, fx.Node) and index.target is operator.getitem and isinstance(index.args[1], str):
        return index.args[1]
    return None
