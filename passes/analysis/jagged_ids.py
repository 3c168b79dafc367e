"""Which ids are those of a jagged tensor: one behind the other, any number of them per sample.

An example has as many ids as it has; where that is the number of samples, shapes alone do not tell a list of ids from
one id per sample. What the ids are computed from does: the values of torchrec's ``JaggedTensor`` or
``KeyedJaggedTensor``.
"""

from __future__ import annotations

import operator

from torch import Tensor, fx

from dmt_plugin.nn.graph_ops import jagged_values


def of_jagged(ids: fx.Node) -> bool:
    """Whether ids are the values of a jagged tensor, or computed from them entry by entry."""
    return _values_behind(ids) is not None


def jagged_key(ids: fx.Node) -> str | None:
    """The key of the jagged input that ids are the values of; ``None`` if they have none."""
    values = _values_behind(ids)
    if values is None:
        return None
    if values.target is jagged_values:
        return str(values.args[1])
    source = values.args[0]
    if isinstance(source, fx.Node) and source.target is operator.getitem and isinstance(source.args[1], str):
        return source.args[1]
    return None


def _values_behind(ids: fx.Node) -> fx.Node | None:
    """The node that reads the values of a jagged tensor."""
    pending, seen = [ids], {ids}
    while pending:
        node = pending.pop()
        if node.target is jagged_values or _reads_values(node):
            return node
        value = node.meta.get("val")
        for source in node.all_input_nodes:
            before = source.meta.get("val")
            alike = isinstance(value, Tensor) and isinstance(before, Tensor) and before.shape == value.shape
            if source not in seen and (alike or source.target is jagged_values):
                seen.add(source)
                pending.append(source)
    return None


def _reads_values(node: fx.Node) -> bool:
    source = node.args[0] if node.args else None
    if node.op != "call_method" or node.target != "values" or not isinstance(source, fx.Node):
        return False
    return callable(getattr(source.meta.get("val"), "lengths", None))
