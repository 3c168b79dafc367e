"""Adapts the model behind the towers to fewer or narrower streams.

1. Walk the graph (:class:`dmt_plugin.passes.resize.sweep.Sweep`) and find every size that
   must change: the first layer behind a flat join, a cross layer's matrices, the dense
   vector in a dot interaction, the list of feature pairs.
2. If any operation cannot be adapted with certainty, refuse with a finding that names it,
   the reason and the ways out; where ``transform.on_unsupported`` names one, say which groups must
   take it (:mod:`dmt_plugin.passes.logical.refusals`). Nothing has been changed by then.
3. Otherwise rebuild: layers and parameters get new sizes and are re-initialized, with mean and
   spread of the old values, scaled to the new number of inputs; literals and index lists
   are replaced. Every change is recorded, with what stays the same in the state.

A layer whose size happens to stay but whose inputs mean something else is re-initialized too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from dmt_plugin.capture import graph_module_over
from dmt_plugin.passes.base import WAYS_OUT, Contract, GraphPass, PassContext, PassResult
from dmt_plugin.passes.facts import Change
from dmt_plugin.passes.logical.refusals import Trials
from dmt_plugin.passes.ops.names import shape_of
from dmt_plugin.passes.resize.layers import LIKE_BEFORE, anew, resized
from dmt_plugin.passes.resize.literals import kept_numbers
from dmt_plugin.passes.resize.sweep import Sweep


class RepairShapes(GraphPass):
    """See the module's docstring."""

    name = "repair_shapes"
    contract = Contract(provides=frozenset({"shapes"}), requires=frozenset({"open_shapes"}))

    def run(self, ctx: PassContext) -> PassResult:
        """Fills ``ctx.facts.changes`` and changes layers, parameters and literals; or fills ``ctx.refused``."""
        trials = Trials(ctx.gm, ctx.native)
        sweep, refusal = trials.around_refusals() if ctx.unsupported != "error" else trials.walk()
        if refusal is not None:
            ctx.find(
                "DMT401", "error", refusal.node,
                refusal.reason,
                f"{WAYS_OUT}; or choose c, p and dim so that streams keep their number and width",
                at=[n for n in ctx.gm.graph.nodes if n.name == refusal.node],
            )  # fmt: skip
            return self.result(1)
        if trials.blocked:
            ctx.refused = trials.blocked
            return self.result(len(trials.blocked))
        known = len(ctx.facts.changes)  # decoders are listed already
        for kept in kept_numbers(sweep):
            ctx.find(
                "DMT403", "warning", kept.node.name,
                f"multiplies or divides by {kept.number:g}, which is {kept.form}, and {kept.old} entries became "
                f"{kept.new}: the number stays as it is",
                "if it stands for that size, read the size off a tensor in forward (x.shape[1]), so that it follows",
                at=kept.node,
            )  # fmt: skip
        self._layers(ctx, sweep)
        self._parameters(ctx, sweep)
        for count, (node, (args, kwargs)) in enumerate(sweep.edits.items()):
            node.args, node.kwargs = _with_buffers(ctx.gm, node, (args, kwargs), count)
        for node, state in sweep.states.items():
            if state.changed:
                node.meta["val"] = state.value
        lookups = {lookup.node for lookup in ctx.facts.lookups}
        ctx.gm.graph.eliminate_dead_code(is_impure_node=lambda n: n.is_impure() or n in lookups)
        ctx.captured.graph_module = graph_module_over(ctx.gm, ctx.gm.graph)
        count = len(ctx.facts.changes) - known + len(sweep.edits)
        return self.result(count, count)

    def _layers(self, ctx: PassContext, sweep: Sweep) -> None:
        outputs = {str(n.target): a.new for (n, _), a in sweep.forced.items() if n.op == "call_module"}
        inputs = {t: tuple(a.new if a else None for a in axes) for t, axes in sweep.inputs.items() if any(axes)}
        for target in dict.fromkeys([*inputs, *outputs]):
            old = ctx.gm.get_submodule(target)
            new, what, init, kept = resized(old, inputs.get(target, ()), outputs.get(target), target)
            new.train(old.training)
            parent, _, name = target.rpartition(".")
            setattr(ctx.gm.get_submodule(parent), name, new)
            ctx.facts.changes.append(Change(target, what, init, kept))

    def _parameters(self, ctx: PassContext, sweep: Sweep) -> None:
        sizes: dict[str, dict[int, int]] = {}
        olds: dict[str, tuple[int, ...]] = {}
        for (node, dim), axis in sweep.forced.items():
            if node.op == "get_attr":
                sizes.setdefault(str(node.target), {})[dim] = axis.new
                olds[str(node.target)] = shape_of(node)
        for target, changes in sizes.items():
            shape = [changes.get(d, size) for d, size in enumerate(olds[target])]
            parent, _, name = target.rpartition(".")
            owner = ctx.gm.get_submodule(parent)
            old = getattr(owner, name)
            new = nn.Parameter(anew(old, shape, old.shape[-1], shape[-1], target), old.requires_grad)
            setattr(owner, name, new)
            ctx.facts.changes.append(Change(target, f"{tuple(old.shape)} -> {tuple(shape)}", LIKE_BEFORE))


def _with_buffers(gm: fx.GraphModule, node: fx.Node, arguments: Any, count: int) -> Any:
    """Tensors among new arguments become buffers that are not saved (they follow from the plan)."""
    made: list[str] = []

    def place(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        name = f"dmt_index_{count}_{len(made)}"
        made.append(name)
        gm.register_buffer(name, value, persistent=False)
        with gm.graph.inserting_before(node):
            read = gm.graph.get_attr(name)
        read.meta["val"] = torch.empty(value.shape, dtype=value.dtype, device="meta")
        return read

    return map_aggregate(arguments, place)
