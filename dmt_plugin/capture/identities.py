"""Takes out of a captured graph the calls of ``flatten`` that change nothing.

``x.flatten(1)`` of a ``(B, N)`` tensor returns ``x`` itself: no copy, no view, no entry in
the autograd graph. Models write it where an input may have more dimensions, and once for
every place that reads it, which hides that all of them read one tensor. Dropping it is
exact, and stays so whatever sizes the tensor gets, as its rank cannot change.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from dmt_plugin.fxtools.arguments import argument

_FLATTENS = ("flatten", torch.flatten)


def drop_identities(graph: fx.Graph) -> None:
    """Takes calls of ``flatten`` over a single dimension out of a recorded graph."""
    for node in list(graph.nodes):
        source = node.args[0] if node.args else None
        if node.target in _FLATTENS and isinstance(source, fx.Node) and _over_one_dimension(node, source):
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _over_one_dimension(node: fx.Node, source: fx.Node) -> bool:
    value = source.meta.get("val")
    start, end = argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1)
    if not isinstance(value, Tensor) or not value.dim() or not isinstance(start, int) or not isinstance(end, int):
        return False
    return start % value.dim() == end % value.dim()
