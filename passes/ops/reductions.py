"""Sums, norms and the like: the dimensions reduced over are gone, or of size 1; what they held no longer matters."""

from __future__ import annotations

from typing import Any

from torch import fx

from dmt_plugin.fxtools.arguments import argument
from dmt_plugin.passes.ops.axes import Axes, Unsupported
from dmt_plugin.passes.ops.dims import Dims, Token, leading
from dmt_plugin.passes.ops.names import name_of, shape_of, tensor_inputs
from dmt_plugin.passes.ops.pointwise import elementwise, entry_by_entry
from dmt_plugin.passes.ops.registry import op
from dmt_plugin.passes.ops.splits import extremes
from dmt_plugin.passes.ops.walk import Walk

_NORMS = ("norm", "linalg_norm", "linalg_vector_norm")


@op(
    "sum", "mean", "amax", "amin", "prod", "var", "std", "logsumexp", "nansum", "nanmean", "any", "all",
    "count_nonzero", *_NORMS,
)  # fmt: skip
def _reduced(node: fx.Node) -> Dims:
    source: Any = node.args[0] if node.args else node.kwargs["input"]
    tokens = leading(len(shape_of(source)))
    given: Any = argument(node, 2 if name_of(node) in _NORMS else 1, "dim|axis")
    listed = range(len(tokens)) if given in (None, [], ()) else [given] if isinstance(given, int) else given
    if isinstance(given, (fx.Node, bool)) or not all(isinstance(d, int) for d in listed):
        raise Unsupported("reduces over a computed dimension")
    gone = {tokens[d] for d in listed}
    kept = len(shape_of(node)) == len(tokens)
    result: list[Token] = [f"one{t}" if t in gone else t for t in tokens if kept or t not in gone]
    return Dims(((source, tokens),), tuple(result))


def _extreme(walk: Walk, node: fx.Node) -> Axes:
    return elementwise(walk, node) if len(tensor_inputs(node)) > 1 else {}


@op("max", "min", forward=_extreme, several=extremes)
def _largest(node: fx.Node) -> Dims:
    """One tensor: of two tensors entry by entry, or of a whole tensor."""
    if len(tensor_inputs(node)) > 1:
        return entry_by_entry(node)
    (source,) = tensor_inputs(node)
    return Dims(((source, leading(len(shape_of(source)))),), ())
