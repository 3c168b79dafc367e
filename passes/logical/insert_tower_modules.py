"""Replaces pass-through towers by tower modules.

1. For each tower of each tower group, build the module that the plan names for
   ``(B, F_t, N)`` and put it in the pass-through module's place; its output is ``(B, O_t)``.
2. Native form: split the outputs into ``O_t / D`` streams of width ``D``, in the shape that
   the joins expect (``(B, D)`` or ``(B, 1, D)``), which take the place of the old ones in
   every join (:class:`dmt_plugin.passes.facts.NativeStreams`).
3. Decoder form: a linear layer ``(B, O_t) -> (B, F_t*N)`` behind each tower gives the old
   streams back. It is a layer of the dense part, trained with it; the group's finding says
   what it costs, and it is listed among the parameters that start from new values.
4. Form that preserves: the output *is* ``(B, F_t*N)``, and nothing else changes.

In the native form the nodes behind the joins now see other sizes; ``repair_shapes`` adapts
them. Until then the new streams keep no example value.
"""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from dmt_plugin.fxtools.names import GROUP, SEED, SEED_VALUE, decoder_path, tower_number
from dmt_plugin.nn.decoders import build_decoder
from dmt_plugin.nn.graph_ops import split_streams
from dmt_plugin.nn.lookup.rounding import TORCH_TYPES
from dmt_plugin.nn.towers import build_tower_module, keep_type
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.facts import Change, StreamGroup
from dmt_plugin.plan.tower_plan import GroupSpec


class InsertTowerModules(GraphPass):
    """See the module's docstring."""

    name = "insert_tower_modules"
    contract = Contract(
        provides=frozenset({"tower_modules", "open_shapes"}),
        requires=frozenset({"towers"}),
        conflicts_with=frozenset({"tower_modules"}),
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Replaces the modules of every tower group, and re-wires the joins of the native ones."""
        assert ctx.plan is not None
        splits = [n for n in ctx.gm.graph.nodes if n.target is split_streams]
        position = {node: i for i, node in enumerate(ctx.gm.graph.nodes)}
        dense = _dense_layers(ctx)
        groups = {g.name: g for g in ctx.facts.groups}
        specs = {g.name: g for g in ctx.plan.groups}
        changed = 0
        for split in splits:
            group = groups[split.meta[GROUP]]
            # Where the tables are, which need not be where the example batch is (weights without data).
            like = ctx.gm.get_parameter(group.lookups[0].weight)
            made = self._replace(ctx, split, specs[group.name], like, dense)
            changed += len(made)
            if group.form == "native":
                changed += self._rewire(ctx, split, group, min(group.joins, key=position.__getitem__))
                continue
            decoders = self._decode(ctx, split, specs[group.name], like, made, dense) if group.form == "decoder" else []
            changed += len(decoders)
            if ctx.plan.module.kind != "preserve":
                _report(ctx, group, made, decoders)
        ctx.native.wire()
        return self.result(len(splits), changed)

    def _replace(
        self, ctx: PassContext, split: fx.Node, spec: GroupSpec, like: Tensor, dense: list[Tensor]
    ) -> list[nn.Module]:
        """Builds the tower modules of a group; they are returned where they were built, on the CPU."""
        assert ctx.plan is not None
        built: list[nn.Module] = []
        for output in split.args[0]:  # type: ignore[union-attr]
            assert isinstance(output, fx.Node)
            value = _packed(output).meta["val"]
            batch, features, width = value.shape
            tower = tower_number(str(output.target))
            assert tower is not None
            module = build_tower_module(ctx.plan.module_of(spec, tower), features, width, tower)
            answers = _put(ctx, str(output.target), module, like, value.dtype, dense)
            output.meta["val"] = value.new_empty(batch, _width(module), dtype=answers)
            built.append(module)
        return built

    def _decode(
        self,
        ctx: PassContext,
        split: fx.Node,
        spec: GroupSpec,
        like: Tensor,
        modules: list[nn.Module],
        dense: list[Tensor],
    ) -> list[nn.Linear]:
        """Puts a decoder between each tower and the split, which stays as it is."""
        assert ctx.plan is not None
        decoded: list[fx.Node] = []
        built: list[nn.Linear] = []
        for output, module in zip(split.args[0], modules, strict=True):  # type: ignore[arg-type]
            assert isinstance(output, fx.Node)
            value = _packed(output).meta["val"]
            batch, features, width = value.shape
            tower = tower_number(str(output.target))
            assert tower is not None
            decoder, start = build_decoder(module, ctx.plan.module_of(spec, tower), features, width, tower)
            path = decoder_path(spec.name, tower)
            answers = _put(ctx, path, decoder, like, value.dtype, dense)
            with ctx.gm.graph.inserting_before(split):
                node = ctx.gm.graph.call_module(path, (output,))
            node.meta["val"] = value.new_empty(batch, features * width, dtype=answers)
            ctx.facts.changes.append(Change(path, f"new: {decoder.in_features} -> {decoder.out_features}", start))
            decoded.append(node)
            built.append(decoder)
        split.args = (decoded, *split.args[1:])
        return built

    def _rewire(self, ctx: PassContext, split: fx.Node, group: StreamGroup, first: fx.Node) -> int:
        """Splits the outputs into streams of the new width, for the joins."""
        assert ctx.plan is not None
        graph = ctx.gm.graph
        outputs: list[fx.Node] = list(split.args[0])  # type: ignore[arg-type]
        prefix = tuple(1 for _ in range(group.streams[0].meta["val"].dim() - 2))
        dim = ctx.plan.module_of(next(g for g in ctx.plan.groups if g.name == group.name), 0).dim
        shapes = tuple(tuple((*prefix, dim) for _ in range(int(n.meta["val"].shape[1]) // dim)) for n in outputs)
        old = sorted(split.users, key=lambda n: int(n.args[1]))  # type: ignore[arg-type]
        split.args = (outputs, shapes)
        example = outputs[0].meta["val"]
        new: list[fx.Node] = []
        with graph.inserting_before(first):
            for i in range(sum(len(own) for own in shapes)):
                stream = graph.call_function(operator.getitem, (split, i))
                stream.meta[SEED] = (group.name, len(old), group.width, dim)
                stream.meta[SEED_VALUE] = example.new_empty(example.shape[0], *prefix, dim)
                new.append(stream)
        ctx.native.add(group, old, new)
        return len(old) + len(new)


def _packed(output: fx.Node) -> fx.Node:
    """What a tower reads: ``(B, F_t, N)``."""
    pack = output.args[0]
    assert isinstance(pack, fx.Node)
    return pack


def _width(module: nn.Module) -> int:
    """``O_t`` of a tower module."""
    width: Any = module.out_features
    return int(width)


def _dense_layers(ctx: PassContext) -> list[Tensor]:
    """Parameters and buffers that are no tables."""
    tables = {id(ctx.gm.get_parameter(lookup.weight)) for lookup in ctx.facts.lookups}
    return [p for p in [*ctx.gm.parameters(), *ctx.gm.buffers()] if id(p) not in tables]


def _put(
    ctx: PassContext, path: str, module: nn.Module, like: Tensor, takes: torch.dtype, dense: list[Tensor]
) -> torch.dtype:
    """Registers a copy of ``module`` where ``like``, a table, is; beside the dense layers if that is on meta.

    It has the table's type; the dense layers' where none of them has that: what an optimizer trains should not be kept
    in 16 bits because tables are. ``takes`` is the type of its input; that of its output is returned.
    """
    assert ctx.plan is not None
    device = like.device
    if like.is_meta:
        places = [p.device for p in dense]
        device = next((d for d in places if d.type != "meta"), places[0] if places else torch.device("cpu"))
    types = [p.dtype for p in dense if isinstance(p, nn.Parameter) and p.is_floating_point()]
    dtype = like.dtype if like.dtype in types or not types else types[0]
    own = copy.deepcopy(module).to(device=device, dtype=dtype)
    answers = TORCH_TYPES[ctx.plan.row_dtype] if dtype != takes else dtype
    if dtype != takes:
        keep_type(own, answers)
    parent, _, name = path.rpartition(".")
    setattr(ctx.gm.get_submodule(parent), name, own)
    return answers


def _report(ctx: PassContext, group: StreamGroup, modules: list[nn.Module], decoders: list[nn.Linear]) -> None:
    looked_up = len(group.streams) * group.width
    sent = sum(_width(m) for m in modules)
    text = f"{group.name} ({len(group.streams)} features of width {group.width}) keeps its shapes: {group.reason}. "
    if group.form == "preserve":
        text += f"Its tower modules give {sent} entries a sample for {looked_up}, so fewer bytes are not to be had"
    else:
        weights = sum(p.numel() for d in decoders for p in d.parameters())
        flops = sum(2 * d.in_features * d.out_features for d in decoders)
        text += (
            f"{sent} entries a sample cross hosts instead of {looked_up}; the decoders behind the exchange add "
            f"{weights} parameters and {flops} FLOPs a sample (forward; twice that backward)"
        )
    ctx.find(
        "DMT307", "warning", group.lookups[0].table,
        text,
        "a native form needs neither: join the features with one torch.cat or torch.stack, and use operations on them "
        "that follow their number and width",
        at=group.joins,
    )  # fmt: skip
