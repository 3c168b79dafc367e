"""Runs two versions of a model on one batch and names the first node, gradient or layer whose numbers differ.

The versions are two graphs of one model. They share node names, since a rewrite does not rename the nodes it keeps.
Both are run with the same random numbers, and every value that carries a common name is compared:

1. :func:`first_value` follows the order of computation and names the first node whose value differs;
2. :func:`first_gradient` goes backwards from the loss and names the first node whose gradient differs;
3. :func:`first_layer` compares the user's model, which is no graph, with its captured graph, layer call by layer call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from dmt_plugin.capture import ExampleBatch, GraphModel
from dmt_plugin.core.equality import same
from dmt_plugin.core.modes import left_as_it_was


def loss_of(outputs: Any) -> Tensor | None:
    """One number with a gradient for every output that has one; ``None`` if none has."""
    leaves = pytree.tree_leaves(outputs)
    losses = [o.float().square().sum() for o in leaves if isinstance(o, Tensor) and o.requires_grad]
    return torch.stack(losses).sum() if losses else None


class _Recorder(fx.Interpreter):
    """Runs a graph and shows every node with its value."""

    def __init__(self, module: fx.GraphModule, see: Callable[[fx.Node, Any], None]) -> None:
        super().__init__(module)
        self._see = see

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node and hands its value over."""
        value = super().run_node(n)
        self._see(n, value)
        return value


def _run(model: GraphModel, example: ExampleBatch, see: Callable[[fx.Node, Any], None]) -> Any:
    inputs = copy.deepcopy(model.binder.inputs(example.args, example.kwargs))  # a model may write into its inputs
    return _Recorder(model.__dict__["graph_module"], see).run(*inputs)


def first_value(before: GraphModel, after: GraphModel, example: ExampleBatch, training: bool) -> fx.Node | None:
    """The first node that both graphs have and compute differently.

    Args:
        before: a graph.
        after: the same graph, rewritten.
        example: the call to run both with.
        training: in train or eval mode.

    Returns:
        The node of ``after``, or ``None`` if all values agree.
    """
    values: dict[str, Any] = {}
    differing: list[fx.Node] = []

    def keep(node: fx.Node, value: Any) -> None:
        if not isinstance(value, nn.Parameter):  # the same in both graphs, and large
            values[node.name] = value.clone() if isinstance(value, Tensor) else value

    def compare(node: fx.Node, value: Any) -> None:
        known = isinstance(value, Tensor) and isinstance(values.get(node.name), Tensor)
        if known and not differing and not same(values[node.name], value):
            differing.append(node)

    for model, see in ((before, keep), (after, compare)):
        with left_as_it_was(model, training), torch.no_grad():
            _run(model, example, see)
    return differing[0] if differing else None


def first_gradient(before: GraphModel, after: GraphModel, example: ExampleBatch, training: bool) -> fx.Node | None:
    """The node nearest to the loss that both graphs have and whose gradient differs; arguments as above."""
    found: list[dict[str, Tensor]] = []
    for model in (before, after):
        values: dict[str, Tensor] = {}

        def keep(node: fx.Node, value: Any, values: dict[str, Tensor] = values) -> None:
            if isinstance(value, Tensor) and value.requires_grad and not value.is_leaf:
                value.retain_grad()
                values[node.name] = value

        model.zero_grad()
        with left_as_it_was(model, training):
            loss = loss_of(_run(model, example, keep))
            if loss is not None:
                loss.backward()
        model.zero_grad()
        found.append({name: value.grad for name, value in values.items() if value.grad is not None})
    expected, given = found
    for node in reversed(after.graph.nodes):
        both = node.name in expected and node.name in given
        if both and not same(expected[node.name], given[node.name]):
            return node
    return None


def first_layer(model: nn.Module, captured: GraphModel, example: ExampleBatch, training: bool) -> fx.Node | None:
    """The first layer call of the captured graph that gives another value than in the user's model."""
    layers = {str(n.target) for n in captured.graph.nodes if n.op == "call_module"}
    modules = dict(model.named_modules())
    calls: dict[str, list[Any]] = {path: [] for path in layers if path in modules}
    hooks = [
        modules[path].register_forward_hook(
            lambda _module, _args, out, seen=seen: seen.append(out.clone() if isinstance(out, Tensor) else out)
        )
        for path, seen in calls.items()
    ]
    try:
        with left_as_it_was(model, training), torch.no_grad():
            args, kwargs = copy.deepcopy((example.args, example.kwargs))
            model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    differing: list[fx.Node] = []

    def compare(node: fx.Node, value: Any) -> None:
        seen = calls.get(str(node.target)) if node.op == "call_module" else None
        if seen:
            expected = seen.pop(0)
            if isinstance(value, Tensor) and isinstance(expected, Tensor) and not same(expected, value):
                differing.append(node)

    with left_as_it_was(captured, training), torch.no_grad():
        _run(captured, example, compare)
    return differing[0] if differing else None
