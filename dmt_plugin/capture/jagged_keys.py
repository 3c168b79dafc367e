"""Which keys a model reads of the jagged tensors in its batch: some by their names, or all of them by their places.

An embedding collection looks keys up by name, so that a batch may have them in another order, and more of them. What
splits, permutes or joins a jagged tensor, or asks for its values, goes by places: with keys in another order the same
graph would give other features to every table behind it. Every later batch is checked for what the model needs.
"""

from __future__ import annotations

import operator

from torch import fx, nn

from dmt_plugin.capture.batch_parts import Path, is_jagged
from dmt_plugin.capture.jagged_tensors import ALL_KEYS
from dmt_plugin.capture.leaves import is_bag_collection, pooled_columns
from dmt_plugin.capture.misfits import KeysRead
from dmt_plugin.capture.proxies import SAME_KEYS, batch_path
from dmt_plugin.capture.reads import Reads

_BY_NAME = {*SAME_KEYS, "to_dict", "stride", "device", "weights_or_none"}
"""What a jagged tensor can be asked without its keys being gone by in their order."""


def keys_read(graph: fx.Graph, model: nn.Module, reads: Reads) -> dict[Path, KeysRead]:
    """What is needed of each jagged tensor of the batch, by path.

    Args:
        graph: a trace of the model.
        model: the model, for the collections that the graph calls.
        reads: whether forward went through the dict of its keys, of which nothing need be left in the graph.
    """
    names: dict[Path, set[str]] = {}
    order: dict[Path, tuple[str, ...]] = {}
    for node in graph.nodes:
        value = node.meta.get("val")
        path = batch_path(node) if is_jagged(value) else None
        if path is None:
            continue
        own = names.setdefault(path, set())
        found = [_names_read(user, node, model) for user in node.users]
        if (*path, ALL_KEYS) not in reads.whole and None not in found:
            own.update(*(some for some in found if some is not None))
        else:
            order[path] = tuple(value.keys())
    return {path: KeysRead(frozenset(own), order.get(path)) for path, own in names.items()}


def _names_read(user: fx.Node, node: fx.Node, model: nn.Module) -> set[str] | None:
    """The keys of ``node`` that ``user`` looks up by their names; ``None`` if it goes by their places."""
    if user.target is operator.getitem and user.args[0] is node and isinstance(user.args[1], str):
        return {user.args[1]}
    if user.op == "call_module" and is_bag_collection(module := model.get_submodule(str(user.target))):
        return {feature for _, feature, _, _ in pooled_columns(module)}
    return set() if user.op == "call_method" and user.args[0] is node and user.target in _BY_NAME else None
