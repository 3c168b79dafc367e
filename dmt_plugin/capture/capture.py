"""Captures a model as an fx graph that computes what the model computes, bit for bit.

1. The model is traced twice: in eval mode at one batch size, in train mode at another;
   what either changes in place becomes visible in the graph.
2. The two graphs are compared node by node. A constant that differs was baked in by the
   trace: functional dropout becomes an ``nn.Dropout`` that follows train/eval, anything
   else is refused, since the graph would be wrong for every other batch.
3. The graph module shares the user's parameters and buffers, under the user's names.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from dmt_plugin.capture.graph_model import GraphModel
from dmt_plugin.capture.graph_state import graph_module_over
from dmt_plugin.capture.inputs import ExampleBatch, InputBinder, batch_size_of, with_batch_size
from dmt_plugin.capture.mutations import make_mutations_explicit
from dmt_plugin.capture.tracer import Trace, trace_with_values
from dmt_plugin.errors import CaptureError
from dmt_plugin.findings import Finding

#: Batch sizes of the two traces. Primes, so that no product of widths equals them by chance.
TRACE_BATCHES = (7, 11)

_DROPOUTS = {F.dropout: nn.Dropout, torch.dropout: nn.Dropout}


@dataclass
class CapturedModel:
    """A model as a graph.

    Attributes:
        graph_module: the graph; each node has an example value in ``meta["val"]``.
        binder: maps calls to graph inputs.
        example: the user's example batch, as given.
        batch_size: batch size of the example values in the graph.
        findings: what the capture noticed.
    """

    graph_module: fx.GraphModule
    binder: InputBinder
    example: ExampleBatch
    batch_size: int
    findings: list[Finding] = field(default_factory=list)

    def as_module(self) -> GraphModel:
        """The captured model, callable like the user's."""
        return GraphModel(self.graph_module, self.binder)


def capture(model: nn.Module, example: ExampleBatch) -> CapturedModel:
    """Captures ``model`` as called with ``example``.

    Args:
        model: a plain PyTorch, FBGEMM-free or torchrec module. It is not changed.
        example: one call of the model; only shapes matter.

    Returns:
        The captured graph. Parameters and buffers are the model's own objects.

    Raises:
        CaptureError: the model cannot be a graph (data-dependent control flow, a batch
            size that became a constant, a compiled or scripted model); the message names
            the line or the node and the way out.
    """
    _refuse_wrapped(model)
    binder = InputBinder(model.forward, example)
    inputs = binder.inputs(example.args, example.kwargs)
    batch = batch_size_of(inputs)
    if batch is None:
        raise CaptureError(
            "the example batch holds no tensor, so there is nothing to capture with. "
            "Pass example_batch= with the arguments of one call of the model."
        )
    findings: list[Finding] = []
    first, second = _batch_pair(batch)
    was_training = model.training
    states = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        trace = trace_with_values(model, binder, with_batch_size(inputs, batch, first))
        model.train()
        other = trace_with_values(model, binder, with_batch_size(inputs, batch, second))
    finally:
        model.train(was_training)
        for module, training in states:
            module.training = training
    for recorded in (trace, other):
        make_mutations_explicit(recorded.graph)
    graph_module = graph_module_over(model, trace.graph, trace.constants)
    _unify(graph_module, trace.constants, other, (first, second))
    graph_module.train(was_training)
    for module, training in states:
        module.training = training
    return CapturedModel(graph_module, binder, example, first, findings)


def _refuse_wrapped(model: nn.Module) -> None:
    if hasattr(model, "_orig_mod"):
        raise CaptureError(
            f"{type(model).__name__} wraps a compiled model. Pass the eager model (model._orig_mod) and compile "
            "after the transformation."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise CaptureError("the model is scripted (torch.jit); pass the eager module it was made from.")


def _batch_pair(example_batch: int) -> tuple[int, int]:
    first, second = TRACE_BATCHES
    return (first, second) if example_batch != second else (second, first)


def _unify(
    module: fx.GraphModule, constants: Mapping[str, Tensor], other: Trace, batches: tuple[int, int]
) -> None:
    for graph in (module.graph, other.graph):
        _drop_answers(graph)
    nodes, others = list(module.graph.nodes), list(other.graph.nodes)
    order, other_order = ({node: i for i, node in enumerate(some)} for some in (nodes, others))
    dropouts = itertools.count()
    if len(nodes) != len(others):
        longer = next(
            (a for a, b in zip(nodes, others, strict=False) if (a.op, a.target) != (b.op, b.target)), nodes[-1]
        )
        raise CaptureError(
            f"the model takes another path in train mode or at another batch size: {len(nodes)} operations in eval "
            f"mode at batch {batches[0]}, {len(others)} in train mode at batch {batches[1]}, first difference at "
            f"{_shown(longer)}. Branches on self.training must be inside layers such as nn.Dropout; loops must "
            "not run over the batch."
        )
    for node, twin in zip(nodes, others, strict=True):
        if node.op == "placeholder":
            continue
        same_operation = (node.op, node.target) == (twin.op, twin.target)
        mine, theirs = _arguments(node, order, constants), _arguments(twin, other_order, other.constants)
        if same_operation and mine == theirs:
            continue
        if same_operation and node.target in _DROPOUTS:
            order[_replace_dropout(module, node, f"dmt_dropout_{next(dropouts)}")] = order[node]
            continue
        raise CaptureError(
            f"the trace of {_shown(node)} holds for one mode or batch size only: in eval mode at batch {batches[0]} "
            f"it has {_differing(mine, theirs)}, in train mode at batch {batches[1]} {_differing(theirs, mine)}. Write "
            "the size as x.size(0) or -1, and leave train/eval to layers."
        )
    module.graph.lint()
    module.recompile()


def _drop_answers(graph: fx.Graph) -> None:
    """Removes what only answered a question while tracing, such as the sizes in an ``assert`` on shapes."""
    for node in reversed(list(graph.nodes)):
        plain = isinstance(node.meta.get("val"), (bool, int, float, torch.Size, torch.dtype, torch.device))
        if plain and not node.users and node.op in ("call_function", "call_method"):
            graph.erase_node(node)


def _shown(node: fx.Node) -> str:
    """A node for a message, its inputs by name."""
    return node.format_node() or f"the output {node.args}"


def _differing(values: tuple[Any, ...], others: tuple[Any, ...]) -> str:
    found = [value for value, other in zip(values, others, strict=False) if value != other]
    return ", ".join(str(value)[:80] for value in found) if found else f"{len(values)} arguments"


def _arguments(node: fx.Node, order: Mapping[fx.Node, int], constants: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """What a node reads, comparable between two traces: nodes by their place, tensors by their values."""

    def comparable(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return f"operation {order[value]}"
        if isinstance(value, torch.Tensor):
            return ("tensor", tuple(value.shape), tuple(value.flatten().tolist()))
        return value

    flat: list[Any] = []

    def collect(value: Any) -> None:
        if isinstance(value, (list, tuple)):
            flat.append(len(value))
            for item in value:
                collect(item)
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                flat.append(key)
                collect(value[key])
        elif isinstance(value, slice):
            collect((value.start, value.stop, value.step))
        else:
            flat.append(comparable(value))

    collect(node.args)
    collect(node.kwargs)
    if node.op == "get_attr" and node.target in constants:
        collect(constants[str(node.target)])
    return tuple(flat)


def _replace_dropout(module: fx.GraphModule, node: fx.Node, name: str) -> fx.Node:
    arguments: dict[str, Any] = dict(zip(("input", "p", "training", "inplace"), node.args, strict=False))
    arguments |= node.kwargs
    module.add_submodule(name, nn.Dropout(float(arguments.get("p", 0.5)), bool(arguments.get("inplace", False))))
    with module.graph.inserting_before(node):
        replacement = module.graph.call_module(name, (arguments["input"],))
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)
    module.graph.erase_node(node)
    return replacement

