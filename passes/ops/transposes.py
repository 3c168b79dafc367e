"""Operations that reorder dimensions: ``transpose``, ``permute``, ``movedim`` and the like."""

from __future__ import annotations

from typing import Any

from torch import fx

from dmt_plugin.passes.ops.axes import Axes, Unsupported
from dmt_plugin.passes.ops.dims import Dims, follow, is_tensor, leading
from dmt_plugin.passes.ops.names import name_of, shape_of
from dmt_plugin.passes.ops.registry import op
from dmt_plugin.passes.ops.splits import piece_attribute
from dmt_plugin.passes.ops.walk import Walk


def order_of(node: fx.Node) -> list[int] | None:
    """For a transposition, which dimension of its source each of its result is; ``None`` for anything else."""
    name = name_of(node)
    source: Any = node.args[0] if node.args else node.kwargs.get("input")
    if name not in ("transpose", "permute", "t", "swapaxes", "swapdims", "movedim", "moveaxis", "getattr"):
        return None
    if not is_tensor(source):
        return None
    given: list[Any] = [*node.args[1:], *(value for key, value in node.kwargs.items() if key != "input")]
    dims = list(range(len(shape_of(source))))
    if name == "getattr":
        return {"T": dims[::-1], "mT": [*dims[:-2], *dims[:-3:-1]]}.get(str(given[0]))
    if name == "t":
        return dims[::-1]
    if name == "permute":
        wanted = given[0] if isinstance(given[0], (list, tuple)) else given
        return [dims[d] for d in wanted]
    if name in ("movedim", "moveaxis"):
        return _moved(dims, *([d] if isinstance(d, int) else list(d) for d in given))
    a, b = given
    dims[a], dims[b] = dims[b], dims[a]
    return dims


def _moved(dims: list[int], source: list[int], destination: list[int]) -> list[int]:
    placed = {dims[to]: dims[frm] for frm, to in zip(source, destination, strict=True)}
    rest = iter([d for d in dims if d not in placed.values()])
    return [placed[d] if d in placed else next(rest) for d in dims]


@op("transpose", "permute", "t", "swapaxes", "swapdims", "movedim", "moveaxis")
def _turned(node: fx.Node) -> Dims | None:
    order = order_of(node)
    if order is None:
        return None
    source: Any = node.args[0] if node.args else node.kwargs["input"]
    tokens = leading(len(order))
    return Dims(((source, tokens),), tuple(tokens[d] for d in order))


def _attribute(walk: Walk, node: fx.Node) -> Axes:
    dims = _turned(node)
    if dims is not None:
        return follow(walk, node, dims)
    if node.args[1] in ("shape", "ndim", "dtype", "device"):
        return {}
    raise Unsupported(f"the attribute {node.args[1]} of a changed tensor")


op("getattr", forward=_attribute, several=piece_attribute, traits=("gives_sizes",))(_turned)
