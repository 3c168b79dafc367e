"""Replaces pass-through towers by compressing tower modules.

1. For each tower of each tower group, build the module that the plan names for
   ``(B, F_t, N)`` and put it in the pass-through module's place.
2. Split its output ``(B, O_t)`` into ``O_t / D`` streams of width ``D``, in the shape that
   the joins expect (``(B, D)`` or ``(B, 1, D)``).
3. In every join, the new streams of all towers, tower by tower, take the place of the old
   ones, starting where the first of them stood.

The nodes behind the joins now see other sizes; ``repair_shapes`` adapts them. Until then
the new streams keep no example value.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from dmt_plugin.nn.graph_ops import split_streams
from dmt_plugin.nn.towers import build_tower_module
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult, StreamGroup
from dmt_plugin.passes.shape_sweep import SEED, SEED_VALUE


class InsertTowerModules(GraphPass):
    """See the module's docstring."""

    name = "insert_tower_modules"
    contract = Contract(
        provides=frozenset({"tower_modules", "open_shapes"}),
        requires=frozenset({"towers"}),
        conflicts_with=frozenset({"tower_modules"}),
    )

    def run(self, ctx: PassContext) -> PassResult:
        """Replaces the modules and re-wires the joins of every tower group."""
        splits = [n for n in ctx.gm.graph.nodes if n.target is split_streams]
        groups = {g.name: g for g in ctx.groups}
        changed = sum(self._replace(ctx, split, groups[split.meta["dmt_group"]]) for split in splits)
        return self.result(len(splits), changed)

    def _replace(self, ctx: PassContext, split: fx.Node, group: StreamGroup) -> int:
        assert ctx.plan is not None
        spec = ctx.plan.module
        graph = ctx.gm.graph
        outputs: list[fx.Node] = list(split.args[0])  # type: ignore[arg-type]
        prefix = tuple(1 for _ in range(group.streams[0].meta["val"].dim() - 2))
        batch = 0
        shapes = []
        for output in outputs:
            pack = output.args[0]
            assert isinstance(pack, fx.Node)
            batch, features, width = pack.meta["val"].shape
            tower = int(str(output.target).rpartition("tower")[2])
            value = pack.meta["val"]
            module: Any = build_tower_module(spec, features, width, tower).to(device=value.device, dtype=value.dtype)
            parent, _, name = str(output.target).rpartition(".")
            setattr(ctx.gm.get_submodule(parent), name, module)
            output.meta["val"] = pack.meta["val"].new_empty(batch, module.out_features)
            shapes.append(tuple((*prefix, spec.dim) for _ in range(int(module.out_features) // spec.dim)))
        old = sorted(split.users, key=lambda n: int(n.args[1]))  # type: ignore[arg-type]
        split.args = (outputs, tuple(shapes))
        count = sum(len(own) for own in shapes)
        new: list[fx.Node] = []
        with graph.inserting_before(min(group.joins, key=list(graph.nodes).index)):
            for i in range(count):
                stream = graph.call_function(operator.getitem, (split, i))
                stream.meta[SEED] = (group.name, len(old), group.width, spec.dim)
                stream.meta[SEED_VALUE] = outputs[0].meta["val"].new_empty(batch, *prefix, spec.dim)
                new.append(stream)
        for join in group.joins:
            _swap(join, old, new)
        for node in old:
            graph.erase_node(node)
        return len(outputs) + len(old) + count


def _swap(join: fx.Node, old: list[fx.Node], new: list[fx.Node]) -> None:
    """Puts ``new`` in the list argument of ``join`` where the first of ``old`` stood."""
    key: Any = 0 if join.args else "tensors"
    entries = list(join.args[0] if join.args else join.kwargs["tensors"])  # type: ignore[arg-type]
    gone = set(old)
    at = min(i for i, entry in enumerate(entries) if entry in gone)
    kept_before = [e for e in entries[:at] if e not in gone]
    kept_after = [e for e in entries[at:] if e not in gone]
    replaced = [*kept_before, *new, *kept_after]
    if key == 0:
        join.args = (replaced, *join.args[1:])
    else:
        join.kwargs = {**join.kwargs, key: replaced}
