"""The operations that treat every sample by itself, by name, and what each must be told for that.

:mod:`dmt_plugin.passes.ops.per_sample` says what "by itself" means. A rule is asked about a node
whose result and whose inputs, but for constants, have the batch in dimension 0, and whose
numbers are the same for any batch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from dmt_plugin.passes.ops.axes import Unsupported
from dmt_plugin.passes.ops.names import JOINS, POINTWISE, REDUCTIONS, name_of
from dmt_plugin.passes.ops.per_sample_sizes import free_of_batch, names_batch
from dmt_plugin.passes.ops.products import PRODUCTS, product_of

_WHOLE = slice(None, None, None)
_PLACE_OF_DIM = {"norm": 2, "linalg_norm": 2, "linalg_vector_norm": 2, "normalize": 2}


def is_tensor(value: Any) -> bool:
    """Whether an argument is a node that gives one tensor."""
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)


def _is_samples(value: Any) -> bool:
    return is_tensor(value) and value.op != "get_attr"


def _rank(node: fx.Node) -> int:
    return int(node.meta["val"].dim())


def _alone(node: fx.Node) -> bool:
    """The first argument holds samples, and no other is a tensor of samples."""
    first = node.args[0] if node.args else None
    return _is_samples(first) and not any(_is_samples(n) for n in node.all_input_nodes if n is not first)


def _dim(node: fx.Node, place: int, default: Any = None) -> Any:
    if len(node.args) > place:
        return node.args[place]
    return node.kwargs.get("dim", node.kwargs.get("axis", default))


def behind_batch(dims: Any, rank: int) -> bool:
    """Whether dimensions are given, as numbers, and none of them is the batch."""
    wanted = dims if isinstance(dims, (list, tuple)) else [dims]
    return bool(wanted) and all(isinstance(d, int) and not isinstance(d, bool) and d % rank != 0 for d in wanted)


# -- the rules --------------------------------------------------------------------------


def _pointwise(node: fx.Node) -> bool:
    rank = _rank(node)
    tensors = [n for n in node.all_input_nodes if is_tensor(n)]
    reach = [n.meta["val"] for n in tensors if n.op == "get_attr" and _rank(n) == rank]
    return all(_rank(n) == rank for n in tensors if n.op != "get_attr") and all(v.shape[0] == 1 for v in reach)


def _converted(node: fx.Node) -> bool:
    return node.all_input_nodes == [node.args[0]]


def _reduced(node: fx.Node) -> bool:
    name = name_of(node)
    dims = _dim(node, _PLACE_OF_DIM.get(name, 1), default=1 if name == "normalize" else None)
    return _alone(node) and behind_batch(dims, _rank(node.args[0]))  # type: ignore[arg-type]


def _normed(node: fx.Node) -> bool:
    shape = node.args[1] if len(node.args) > 1 else node.kwargs.get("normalized_shape")
    if isinstance(shape, fx.Node):
        shape = shape.meta["val"]  # known to be of a sample
    return _alone(node) and isinstance(shape, (list, tuple)) and len(shape) < _rank(node)


def _triangle(node: fx.Node) -> bool:
    return _alone(node) and _rank(node) > 2  # in (B, N) the place of an entry says which sample it is


def is_resized_alone(node: fx.Node, batch: int) -> bool:
    """Whether a ``view``, ``reshape`` or ``expand`` keeps the batch in front, whatever its size ``batch``."""
    sizes: Any = [*node.args[1:], *(v for k, v in node.kwargs.items() if k in ("size", "shape"))]
    sizes = list(sizes[0]) if len(sizes) == 1 and isinstance(sizes[0], (list, tuple)) else sizes
    rest = [n for n in node.all_input_nodes if n is not node.args[0] and n is not sizes[0]] if sizes else []
    if not sizes or not _alone(node) or not all(free_of_batch(n) for n in rest):
        return False
    if name_of(node) == "expand" and _rank(node) != _rank(node.args[0]):  # type: ignore[arg-type]
        return False  # a new dimension in front
    front = sizes[0]
    whole = isinstance(front, fx.Node) and isinstance(front.meta.get("val"), tuple)
    if not isinstance(front, fx.Node):
        return front == -1  # any other number is the size of the example's batch alone
    again = front in sizes[1:]
    return names_batch(front, batch) and not again and not (whole and len(sizes) > 1)


def _squeezed(node: fx.Node) -> bool:
    first = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("start_dim"))
    known = _alone(node) and isinstance(first, int)
    return known and behind_batch(first, _rank(node.args[0]) + (name_of(node) == "unsqueeze"))  # type: ignore[arg-type]


def _repeated(node: fx.Node) -> bool:
    times: Any = node.args[1:]
    times = times[0] if times and isinstance(times[0], (list, tuple)) else times
    once = bool(times) and isinstance(times[0], int) and times[0] == 1
    return once and _alone(node) and len(times) == _rank(node.args[0])  # type: ignore[arg-type]


def _transposed(node: fx.Node) -> bool:
    given: list[Any] = [*node.args[1:], *node.kwargs.values()]
    if name_of(node) == "permute":
        given = list(given[0]) if len(given) == 1 and isinstance(given[0], (list, tuple)) else given
        return _alone(node) and isinstance(given[0], int) and given[0] % _rank(node) == 0
    return _alone(node) and len(given) == 2 and behind_batch(given, _rank(node))


def _matrix_transposed(node: fx.Node) -> bool:
    return _alone(node) and node.args[1] == "mT" and _rank(node) > 2


def _joined(node: fx.Node) -> bool:
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    listed = isinstance(parts, (list, tuple)) and all(_is_samples(n) for n in parts)
    return listed and behind_batch(_dim(node, 1, 0), _rank(node))


def _picked(node: fx.Node) -> bool:
    return _alone(node) and behind_batch(_dim(node, 1), _rank(node.args[0]))  # type: ignore[arg-type]


def _indexed(node: fx.Node) -> bool:
    index = node.args[1]
    if not _alone(node) or not isinstance(index, tuple) or not isinstance(index[0], slice) or index[0] != _WHOLE:
        return False
    lists = [at for at, item in enumerate(index) if isinstance(item, list) or is_tensor(item)]
    # lists that do not stand side by side put their dimension in front of the batch
    return not lists or lists == list(range(lists[0], lists[-1] + 1))


def _product(node: fx.Node) -> bool:
    name = name_of(node)
    try:
        product = product_of(node, name)
    except Unsupported:
        return False
    first = product.result[0]
    attention = name == "scaled_dot_product_attention"
    if attention and not isinstance(first, int):
        return False  # (L, E) alone: places in a sequence, which a causal mask tells apart
    for term, tokens in product.terms:
        if term.op != "get_attr" and tokens[0] != first:
            return False
        if term.op == "get_attr" and first in tokens and term.meta["val"].shape[tokens.index(first)] != 1:
            return False
    return True


RULES: dict[str, Callable[[fx.Node], bool]] = {
    **dict.fromkeys(POINTWISE, _pointwise),
    **dict.fromkeys((*REDUCTIONS, "softmax", "log_softmax", "softmin", "normalize"), _reduced),
    **dict.fromkeys(PRODUCTS, _product),
    **dict.fromkeys(JOINS, _joined),
    **dict.fromkeys(("to", "type"), _converted),
    **dict.fromkeys(("layer_norm", "rms_norm"), _normed),
    **dict.fromkeys(("tril", "triu"), _triangle),
    **dict.fromkeys(("flatten", "unflatten", "squeeze", "unsqueeze"), _squeezed),
    **dict.fromkeys(("transpose", "permute", "swapaxes", "swapdims"), _transposed),
    **dict.fromkeys(("select", "narrow", "index_select"), _picked),
    "expand_as": _pointwise, "repeat": _repeated, "getattr": _matrix_transposed, operator.getitem.__name__: _indexed,
}  # fmt: skip
"""Rule by the plain name of an operation; what has none is not known to treat every sample by itself."""
