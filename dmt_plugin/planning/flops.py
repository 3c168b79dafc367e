"""FLOPs of a rewritten model, forward and backward, of its tower modules and of everything behind the lookups.

1. Each node of the graph runs by itself on the meta device, under ``torch.utils.flop_counter.FlopCounterMode``, on
   values of the shapes that the nodes before gave: parts are counted by running parts, because the counter's own
   division by module is wrong in the backward pass.
2. Then backward, for what gradients go back to: parameters that are trained, and what lookups or trained layers gave.
3. What a lookup reads is no FLOP; its node gives rows, and does not run. A node that cannot run on the meta device
   gives what it gave when the model was captured, and is named.

FLOPs are those of products of matrices and convolutions, two per multiply-add. Elementwise operations are in none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.node import map_aggregate
from torch.utils.flop_counter import FlopCounterMode

from dmt_plugin.fxtools.names import calls_tower
from dmt_plugin.model.logical import TowerModel

Both = tuple[float, float]
"""Forward and backward."""


@dataclass(frozen=True)
class GraphFlops:
    """What one sample takes.

    Attributes:
        towers: FLOPs of all tower modules.
        dense: FLOPs of everything else.
        saved: bytes of what operations give, at most of it kept for the backward pass.
        unknown: nodes that could not be counted.
    """

    towers: Both
    dense: Both
    saved: float
    unknown: tuple[str, ...] = ()


def flops_of(model: TowerModel) -> GraphFlops:
    """Counts a model; its weights may be on any device, and are not read.

    Args:
        model: with tower modules or without.
    """
    lookups = {lookup.node: lookup.frozen for lookup in model.stored_facts.over(model.graph).lookups}
    tables = {table.parameter for table in model.plan.tables}
    run = _Counter(model.__dict__["graph_module"], lookups, tables)
    for node in model.graph.nodes:
        run.count(node)
    samples = model.batch_size

    def each(counted: list[float]) -> Both:
        return counted[0] / samples, counted[1] / samples

    return GraphFlops(each(run.towers), each(run.dense), run.saved / samples, tuple(run.unknown))


class _Counter:
    def __init__(self, gm: fx.GraphModule, lookups: Mapping[fx.Node, bool], tables: Collection[str]) -> None:
        self.gm, self.lookups, self.tables = gm, lookups, tables
        self.values: dict[fx.Node, Any] = {}
        self.trained: set[fx.Node] = set()
        self.towers, self.dense = [0.0, 0.0], [0.0, 0.0]
        self.saved, self.unknown = 0.0, list[str]()

    def count(self, node: fx.Node) -> None:
        """Runs one node."""
        captured = node.meta.get("val")
        if node.op == "output":
            return
        if node.op == "placeholder":
            self.values[node] = _meta(captured)
        elif node in self.lookups:
            self.values[node] = _meta(captured)
            self.trained |= set() if self.lookups[node] else {node}
        elif node.op == "get_attr":
            self._attribute(node)
        else:
            self._run(node, captured)

    def _attribute(self, node: fx.Node) -> None:
        value: Any = self.gm
        for name in str(node.target).split("."):
            value = getattr(value, name)
        self.values[node] = _meta(value)
        if isinstance(value, Tensor) and value.requires_grad and str(node.target) not in self.tables:
            self.trained.add(node)

    def _run(self, node: fx.Node, captured: Any) -> None:
        sources = node.all_input_nodes
        module = self.gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        state = {} if module is None else _state(module)
        own = [tensor for tensor in state.values() if tensor.requires_grad]
        leaves = {n: _leaf(self.values[n], n in self.trained) for n in sources}
        found: Any = None
        try:
            with torch.enable_grad():
                with FlopCounterMode(display=False) as forward:
                    found = self._called(node, module, state, leaves)
                after = 0.0
                if own or self.trained.intersection(sources):
                    results = [t for t in _tensors(found) if t.requires_grad]
                    if results:
                        with FlopCounterMode(display=False) as backward:
                            torch.autograd.backward([t.sum() for t in results])
                        after = backward.get_total_flops()
                        self.trained.add(node)
            counted = self.towers if calls_tower(node) else self.dense
            counted[0] += forward.get_total_flops()
            counted[1] += after
        except Exception:  # whatever an operation needs values for
            self.unknown.append(node.name)
            self.values[node] = _meta(captured)
            if self.trained.intersection(sources) or own:
                self.trained.add(node)
            return
        self.saved += sum(t.numel() * t.element_size() for t in _tensors(found) if t._base is None)
        self.values[node] = _meta(found)

    def _called(self, node: fx.Node, module: nn.Module | None, state: dict[str, Tensor], leaves: Any) -> Any:
        args: Any = fx.node.map_arg(node.args, lambda n: leaves[n])
        kwargs: Any = fx.node.map_arg(node.kwargs, lambda n: leaves[n])
        if module is not None:
            return functional_call(module, state, args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a layer without data."""
    found = {}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        value = torch.empty_like(tensor, device="meta")
        found[name] = value.requires_grad_(tensor.requires_grad) if tensor.is_floating_point() else value
    return found


def _meta(value: Any) -> Any:
    """The same shapes and types without data."""
    return map_aggregate(
        value,
        lambda x: torch.empty(tuple(map(int, x.shape)), dtype=x.dtype, device="meta") if isinstance(x, Tensor) else x,
    )


def _leaf(value: Any, trained: bool) -> Any:
    """A value that gradients go back to, and that may be changed in place."""
    if not trained:
        return value
    return map_aggregate(
        value,
        lambda x: x.detach().requires_grad_().clone() if isinstance(x, Tensor) and x.is_floating_point() else x,
    )


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    map_aggregate(value, lambda x: found.append(x) if isinstance(x, Tensor) else None)
    return found
