"""Adapts the model behind the towers to fewer or narrower streams.

1. Walk the graph (:class:`dmt_plugin.passes.shape_sweep.Sweep`) and find every size that
   must change: the first layer behind a flat join, a cross layer's matrices, the dense
   vector in a dot interaction, the list of feature pairs.
2. If any operation cannot be adapted with certainty, refuse with a finding that names it,
   the reason and the ways out. Nothing has been changed by then.
3. Otherwise rebuild: layers and parameters get new sizes and start anew, with mean and
   spread of the old values, scaled to the new number of inputs; literals and index lists
   are replaced. Every change is recorded as a repair.

A layer whose size happens to stay but whose inputs mean something else also starts anew.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from dmt_plugin.capture import graph_module_over
from dmt_plugin.passes.base import Contract, GraphPass, PassContext, PassResult, Repair
from dmt_plugin.passes.shape_ops import shape_of
from dmt_plugin.passes.shape_rules import rule_of
from dmt_plugin.passes.shape_sweep import SEED, Sweep, UnsupportedAt


class RepairShapes(GraphPass):
    """See the module's docstring."""

    name = "repair_shapes"
    contract = Contract(provides=frozenset({"shapes"}), requires=frozenset({"open_shapes"}))

    def run(self, ctx: PassContext) -> PassResult:
        """Fills ``ctx.repairs`` and changes layers, parameters and literals."""
        sweep = Sweep(ctx.gm, rule_of)
        try:
            sweep.run()
        except UnsupportedAt as error:
            ctx.unsupported = _groups_behind(error.node)
            ctx.find(
                "DMT401",
                "error",
                error.node.name,
                f"the model behind the towers cannot be adapted at this operation: {error.reason}",
                'set dmt.transform.on_unsupported to "transport" or dmt.towers.module to "none" to move the features '
                "unchanged, or choose c, p and dim so that streams keep their number and width",
            )
            return self.result(1)
        self._layers(ctx, sweep)
        self._parameters(ctx, sweep)
        for count, (node, (args, kwargs)) in enumerate(sweep.edits.items()):
            node.args, node.kwargs = _with_buffers(ctx.gm, node, args, count), kwargs
        for node, state in sweep.states.items():
            if state.changed:
                node.meta["val"] = state.value
        lookups = {lookup.node for lookup in ctx.lookups}
        ctx.gm.graph.eliminate_dead_code(is_impure_node=lambda n: n.is_impure() or n in lookups)
        ctx.captured.graph_module = graph_module_over(ctx.gm, ctx.gm.graph)
        return self.result(len(ctx.repairs) + len(sweep.edits), len(ctx.repairs) + len(sweep.edits))

    def _layers(self, ctx: PassContext, sweep: Sweep) -> None:
        outputs = {str(n.target): a.new for (n, _), a in sweep.forced.items() if n.op == "call_module"}
        inputs = {target: axis.new for target, axis in sweep.inputs.items() if axis is not None}
        for target in dict.fromkeys([*inputs, *outputs]):
            old = ctx.gm.get_submodule(target)
            new: nn.Module
            init = "mean and spread of the old values"
            if isinstance(old, nn.Linear):
                new, what = _resized_linear(old, inputs.get(target), outputs.get(target), target)
            else:
                new, what = _resized_norm(old, inputs[target])
                init = "as a new layer starts"
            new.train(old.training)
            parent, _, name = target.rpartition(".")
            setattr(ctx.gm.get_submodule(parent), name, new)
            ctx.repairs.append(Repair(target, what, init))

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
            new = nn.Parameter(_anew(old, shape, old.shape[-1], shape[-1], target), old.requires_grad)
            setattr(owner, name, new)
            ctx.repairs.append(
                Repair(target, f"{tuple(old.shape)} -> {tuple(shape)}", "mean and spread of the old values")
            )


def _groups_behind(node: fx.Node) -> list[str]:
    """Names of the groups whose streams reach a node."""
    pending, seen = [node], {node}
    found: set[str] = set()
    while pending:
        current = pending.pop()
        if SEED in current.meta:
            found.add(str(current.meta[SEED][0]))
        fresh = [n for n in current.all_input_nodes if n not in seen]
        seen.update(fresh)
        pending.extend(fresh)
    return sorted(found)


def _anew(old: Tensor, shape: list[int] | tuple[int, ...], old_fan: int, new_fan: int, seed: str) -> Tensor:
    """New values with the statistics of the old: constant stays constant, spread follows the fan-in."""
    new = old.new_empty(list(shape))
    if old.is_meta:
        return new
    values = old.detach().float()
    spread = values.std().item() if values.numel() > 1 else 0.0
    if spread == 0.0 or math.isnan(spread):
        return new.fill_(values.mean().item())
    generator = torch.Generator().manual_seed(int(hashlib.sha256(seed.encode()).hexdigest()[:12], 16))
    noise = torch.randn(list(shape), generator=generator)
    return (values.mean().item() + noise * spread * math.sqrt(old_fan / new_fan)).to(old)


def _resized_linear(old: nn.Linear, fan_in: int | None, out: int | None, seed: str) -> tuple[nn.Linear, str]:
    rows, columns = out or old.out_features, fan_in or old.in_features
    bias = old.bias is not None
    options = {"device": old.weight.device, "dtype": old.weight.dtype}
    new = nn.utils.skip_init(nn.Linear, columns, rows, bias=bias, **options)  # no use of global random numbers
    with torch.no_grad():
        new.weight.copy_(_anew(old.weight, (rows, columns), old.in_features, columns, seed + ".weight"))
        if bias:
            kept = rows == old.out_features and out is None
            new.bias.copy_(old.bias if kept else _anew(old.bias, (rows,), 1, 1, seed + ".bias"))
    changes = [
        f"{name} {before} -> {after}" + (" (inputs mean something else)" if before == after else "")
        for name, before, after in (("in_features", old.in_features, fan_in), ("out_features", old.out_features, out))
        if after is not None
    ]
    return new, ", ".join(changes)


def _resized_norm(old: nn.Module, size: int) -> tuple[nn.Module, str]:
    new: nn.Module
    if isinstance(old, nn.BatchNorm1d):
        new = nn.BatchNorm1d(size, old.eps, old.momentum, old.affine, old.track_running_stats)
        before = old.num_features
    else:
        assert isinstance(old, nn.LayerNorm)
        new = nn.LayerNorm(size, old.eps, old.elementwise_affine, bias=old.bias is not None)
        before = old.normalized_shape[0]
    reference = next(iter([*old.parameters(), *old.buffers()]), None)
    if reference is not None:
        new.to(device=reference.device, dtype=reference.dtype)
    return new, f"features {before} -> {size}"


def _with_buffers(gm: fx.GraphModule, node: fx.Node, args: tuple[Any, ...], count: int) -> tuple[Any, ...]:
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

    return map_aggregate(args, place)
