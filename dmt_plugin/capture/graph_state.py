"""A graph module over a model's own objects, and the same as plain data for pickling.

fx pickles a graph module as source code that is traced again on loading. That loses example
values and which buffers are not saved, and it cannot load what plain tracing could not have
recorded (``torch.zeros(x.size(0), 4)``). Here a graph is saved as the list of its nodes.
"""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

_CONTENTS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)


def graph_module_over(
    model: nn.Module, graph: fx.Graph, constants: Mapping[str, Tensor] | None = None
) -> fx.GraphModule:
    """A GraphModule with just what ``graph`` reads, out of ``model``'s own objects.

    Containers are copied, so changing the result never changes ``model``. What the model
    does not save (buffers marked so, tensors that are plain attributes, constants) is not
    saved here either.

    Args:
        model: holds the modules, parameters and tensors that the graph reads.
        graph: the operations.
        constants: tensors that the graph reads as attributes and the model does not have.
    """
    constants = constants or {}
    model.__dict__.update(constants)  # for as long as the graph module copies what it reads
    try:
        module = fx.GraphModule(model, graph, class_name=type(model).__name__)
    finally:
        for name in constants:
            del model.__dict__[name]
    module.training = model.training
    named = {name for name, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]}
    for target in {str(n.target) for n in graph.nodes if n.op == "get_attr"} - named:
        path, _, name = target.rpartition(".")
        owner = module.get_submodule(path)
        if name in owner._buffers:
            owner._non_persistent_buffers_set.add(name)
    for path, original in model.named_modules():
        hidden = original._non_persistent_buffers_set
        if not hidden:
            continue
        try:
            twin = module.get_submodule(path)
        except AttributeError:
            continue
        twin._non_persistent_buffers_set |= hidden & set(twin._buffers)
    _keep_aliases(model, module)
    return module


def keep_unread(model: nn.Module, module: fx.GraphModule) -> None:
    """Gives a graph module what else is in a model's state: parameters and buffers that forward never reads.

    Their names are kept in ``module.__dict__[UNREAD]``; whatever is made of the graph alone does not have them.
    """
    own = set(module.state_dict(keep_vars=True))
    unread = sorted(set(model.state_dict(keep_vars=True)) - own)
    _add_unread(model, module, unread)


def _add_unread(model: nn.Module, module: fx.GraphModule, names: Sequence[str]) -> None:
    module.__dict__[UNREAD] = tuple(names)
    for name in names:
        path, _, last = name.rpartition(".")
        owner: nn.Module = module
        for part in path.split(".") if path else ():
            if owner._modules.get(part) is None:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        source = model.get_submodule(path)
        if last in source._parameters:
            owner._parameters[last] = source._parameters[last]
        elif last in source._buffers:
            owner._buffers[last] = source._buffers[last]


def copy_graph(source: fx.GraphModule) -> fx.GraphModule:
    """A graph module with its own copy of the graph, under the same names of nodes, and the same parameters."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(source.graph, values))
    return graph_module_over(source, graph)


def _keep_aliases(model: nn.Module, module: fx.GraphModule) -> None:
    """A layer that the model has under several names keeps them all, as its state does."""
    kept = {id(m): path for path, m in module.named_modules() if next(m.children(), None) is None}
    there = {path for path, _ in module.named_modules(remove_duplicate=False)}
    for path, layer in model.named_modules(remove_duplicate=False):
        if id(layer) in kept and path not in there:
            module.add_submodule(path, layer)


@dataclass(frozen=True)
class _Reference:
    """Stands for a node in the arguments of another."""

    name: str


@dataclass(frozen=True)
class _Function:
    """Stands for a function of torch that pickle cannot name, as it was made inside another (``F.max_pool2d``)."""

    module: str
    name: str


UNREAD = "_dmt_unread"
"""Of a graph module: names of what is in the model's state and forward never reads."""

LIBRARY_OPERATIONS = (type(torch.ops.aten.add), type(torch.ops.aten.add.Tensor))
"""Types of ``torch.ops.library.name`` and ``torch.ops.library.name.overload``."""


@dataclass(frozen=True)
class _Operation:
    """Stands for an operation of a library (``torch.ops.fbgemm...``), which does not pickle.

    Attributes:
        path: its names below ``torch.ops``.
    """

    path: tuple[str, ...]


def _target(value: Any) -> Any:
    """A node's target as it is saved."""
    if isinstance(value, LIBRARY_OPERATIONS):
        return _Operation(tuple(str(value).split(".")))
    if "<locals>" not in getattr(value, "__qualname__", ""):
        return value
    module, name = value.__module__, value.__name__
    return _Function(module, name) if getattr(sys.modules.get(module), name, None) is value else value


def _loaded_target(value: Any) -> Any:
    if isinstance(value, _Operation):
        return functools.reduce(getattr, value.path, torch.ops)
    return getattr(import_module(value.module), value.name) if isinstance(value, _Function) else value


def _referred(value: Any) -> Any:
    return _Reference(value.name) if isinstance(value, fx.Node) else value


def save_graph_module(module: fx.GraphModule) -> dict[str, Any]:
    """A graph module as data that pickles; parameters and layers are the module's own."""
    nodes = []
    for node in module.graph.nodes:
        args, kwargs = map_aggregate((node.args, dict(node.kwargs)), _referred)
        meta = {key: plain for key, value in node.meta.items() if (plain := _plain(value)) is not None}
        nodes.append((node.op, node.name, _target(node.target), args, kwargs, meta))
    contents = {table: module.__dict__[table] for table in _CONTENTS}
    return {
        "class_name": type(module).__name__, "training": module.training, "nodes": nodes, "contents": contents,
        "unread": module.__dict__.get(UNREAD, ()),
    }  # fmt: skip


def load_graph_module(state: Mapping[str, Any]) -> fx.GraphModule:
    """The graph module that :func:`save_graph_module` saved."""
    root = type(state["class_name"], (nn.Module,), {})()
    root.__dict__.update(state["contents"])
    root.training = state["training"]
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}

    def resolve(value: Any) -> Any:
        return made[value.name] if isinstance(value, _Reference) else value

    for op, name, target, args, kwargs, meta in state["nodes"]:
        args, kwargs = map_aggregate((args, kwargs), resolve)
        made[name] = graph.create_node(op, _loaded_target(target), args, kwargs, name)
        made[name].meta.update(meta)
    module = graph_module_over(root, graph)
    module.__dict__["_non_persistent_buffers_set"] |= state["contents"]["_non_persistent_buffers_set"]
    _add_unread(root, module, state.get("unread", ()))
    return module


def keep_unsaved(module: fx.GraphModule, original: fx.GraphModule, memo: dict[int, Any]) -> None:
    """Gives a copy of a graph module what fx does not copy: unread state, and which buffers are not saved.

    Args:
        module: the copy.
        original: what it is a copy of.
        memo: of the copying.
    """
    unread = original.__dict__.get(UNREAD, ())
    _add_unread(original, module, unread)
    for name in unread:
        path, _, last = name.rpartition(".")
        owner = module.get_submodule(path)
        tables: list[dict[str, Any]] = [owner._parameters, owner._buffers]
        for table in tables:
            if last in table:
                table[last] = copy.deepcopy(table[last], memo)
    for path, old in original.named_modules(remove_duplicate=False):
        module.get_submodule(path)._non_persistent_buffers_set.update(old._non_persistent_buffers_set)


def _plain(value: Any) -> Any:
    """Plain data of node meta, tensors by their shape; ``None`` for anything else."""
    items: list[bool] = []

    def shape_only(item: Any) -> Any:
        if isinstance(item, Tensor):
            return torch.empty(item.shape, dtype=item.dtype, device="meta")
        items.append(isinstance(item, _PLAIN))
        return item

    result = map_aggregate(value, shape_only)
    return result if all(items) else None
