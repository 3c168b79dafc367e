"""Products of tensors in letters: which dimensions run together, and which are left.

``matmul``, ``einsum``, ``tensordot``, ``linear``, attention and the like all multiply entries
and sum over some of them. Each is put down as an einsum would be: a token per dimension of
every factor, and the tokens of the result. Dimensions with the same token have the same
entries; one of size 1 beside larger ones is broadcast. Tokens are letters, or negative
numbers for leading dimensions that are aligned from the right.

An operation that is not purely such a product, or whose arguments are computed, is not put
down: :func:`product_of` raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from dmt_plugin.passes.ops.axes import Axes, Unsupported

Token = str | int
Tokens = tuple[Token, ...]


@dataclass(frozen=True)
class Product:
    """A product of tensors.

    Attributes:
        terms: factors (and summands, such as a bias) with a token per dimension.
        result: tokens of the result.
    """

    terms: tuple[tuple[fx.Node, Tokens], ...]
    result: Tokens

    def size(self, token: Token) -> int:
        """Captured size of what a token stands for."""
        found = [_shape(node)[tokens.index(token)] for node, tokens in self.terms if token in tokens]
        return max(found, default=1)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _tensor(value: Any) -> fx.Node:
    if not isinstance(value, fx.Node) or not isinstance(value.meta.get("val"), Tensor):
        raise Unsupported("multiplies something that is not one tensor of the graph")
    return value


def _arguments(node: fx.Node, *names: str) -> dict[str, Any]:
    """Arguments by name; those of value ``None`` are as good as absent."""
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return {name: value for name, value in given.items() if value is not None}


def _leading(count: int) -> Tokens:
    """``count`` dimensions aligned from the right."""
    return tuple(range(-count, 0))


# -- each operation ------------------------------------------------------------------------


def _matmul(node: fx.Node) -> Product:
    call = _arguments(node, "input", "other")
    a, b = _tensor(call["input"]), _tensor(call.get("other", call.get("mat2")))
    return _matrices(a, b)


def _matrices(a: fx.Node, b: fx.Node) -> Product:
    ranks = len(_shape(a)), len(_shape(b))
    left: Tokens = ("k",) if ranks[0] == 1 else (*_leading(ranks[0] - 2), "i", "k")
    right: Tokens = ("k",) if ranks[1] == 1 else (*_leading(ranks[1] - 2), "k", "j")
    result = (*_leading(max(*ranks, 2) - 2), *(t for t in ("i", "j") if t in left + right))
    return Product(((a, left), (b, right)), result)


def _added_matmul(node: fx.Node) -> Product:
    names = ("input", "mat1", "mat2") if _is("addmm", node) else ("input", "batch1", "batch2")
    call = _arguments(node, *names)
    summand, a, b = (_tensor(call[name]) for name in names)
    product = _matrices(a, b)
    tokens = product.result[len(product.result) - len(_shape(summand)) :]
    return Product((*product.terms, (summand, tokens)), product.result)


def _is(name: str, node: fx.Node) -> bool:
    return name in (node.target if isinstance(node.target, str) else getattr(node.target, "__name__", ""))


def _linear(node: fx.Node) -> Product:
    call = _arguments(node, "input", "weight", "bias")
    x, weight = _tensor(call["input"]), _tensor(call["weight"])
    leading = _leading(len(_shape(x)) - 1)
    if len(_shape(weight)) == 1:
        return Product(((x, (*leading, "k")), (weight, ("k",))), leading)
    terms: list[tuple[fx.Node, Tokens]] = [(x, (*leading, "k")), (weight, ("o", "k"))]
    if "bias" in call:
        terms.append((_tensor(call["bias"]), ("o",)))
    return Product(tuple(terms), (*leading, "o"))


def _bilinear(node: fx.Node) -> Product:
    call = _arguments(node, "input1", "input2", "weight", "bias")
    one, two = _tensor(call["input1"]), _tensor(call["input2"])
    leading = _leading(len(_shape(one)) - 1)
    terms: list[tuple[fx.Node, Tokens]] = [(one, (*leading, "i")), (two, (*leading, "j"))]
    terms.append((_tensor(call["weight"]), ("o", "i", "j")))
    if "bias" in call:
        terms.append((_tensor(call["bias"]), ("o",)))
    return Product(tuple(terms), (*leading, "o"))


def _tensordot(node: fx.Node) -> Product:
    call = _arguments(node, "a", "b", "dims")
    a, b, dims = _tensor(call["a"]), _tensor(call["b"]), call.get("dims", 2)
    ranks = len(_shape(a)), len(_shape(b))
    if isinstance(dims, int) and not isinstance(dims, bool):
        dims = (range(ranks[0] - dims, ranks[0]), range(dims))
    if not isinstance(dims, (list, tuple)) or len(dims) != 2:
        raise Unsupported("contracts computed dimensions")
    pair = [[d] if isinstance(d, int) else list(d) for d in dims]
    if any(not isinstance(d, int) for side in pair for d in side):
        raise Unsupported("contracts computed dimensions")
    left: list[Token] = [f"a{d}" for d in range(ranks[0])]
    right: list[Token] = [f"b{d}" for d in range(ranks[1])]
    for x, y in zip(*pair, strict=True):
        right[y % ranks[1]] = left[x % ranks[0]]
    shared = set(left) & set(right)
    result = tuple(t for t in (*left, *right) if t not in shared)
    return Product(((a, tuple(left)), (b, tuple(right))), result)


def _einsum(node: fx.Node) -> Product:
    equation, *given = node.args
    if len(given) == 1 and isinstance(given[0], (list, tuple)):
        given = list(given[0])
    if not isinstance(equation, str):
        raise Unsupported("an einsum whose equation is not a text")
    operands = [_tensor(value) for value in given]
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [_letters(text, len(_shape(o))) for text, o in zip(left.split(","), operands, strict=True)]
    for tokens in terms:
        if len(set(tokens)) != len(tokens):
            raise Unsupported("an einsum that takes a diagonal of one of its tensors")
    spread = max((sum(isinstance(t, int) for t in tokens) for tokens in terms), default=0)
    if arrow:
        result = _letters(right, spread + sum(c.isalpha() for c in right)) if "..." in right else tuple(right)
        if "..." not in right and spread:
            raise Unsupported("an einsum that sums over the dimensions of its ellipsis")
    else:
        letters = [t for tokens in terms for t in tokens if isinstance(t, str)]
        result = (*_leading(spread), *sorted(t for t in letters if letters.count(t) == 1))
    return Product(tuple(zip(operands, terms, strict=True)), result)


def _letters(text: str, rank: int) -> Tokens:
    before, ellipsis, after = text.partition("...")
    count = rank - len(before) - len(after)
    return (*before, *(_leading(count) if ellipsis else ()), *after)


def _attention(node: fx.Node) -> Product:
    call = _arguments(node, "query", "key", "value", "attn_mask")
    if "attn_mask" in call:
        raise Unsupported("attention with a mask")
    query, key, value = (_tensor(call[name]) for name in ("query", "key", "value"))
    leading = [_leading(len(_shape(n)) - 2) for n in (query, key, value)]
    terms = ((query, (*leading[0], "l", "e")), (key, (*leading[1], "s", "e")), (value, (*leading[2], "s", "v")))
    return Product(terms, (*max(leading, key=len), "l", "v"))


def _similarity(node: fx.Node) -> Product:
    """Distances and similarities of vectors along one dimension."""
    call = _arguments(node, "x1", "x2", "p" if _is("distance", node) else "dim")
    one, two = _tensor(call["x1"]), _tensor(call["x2"])
    ranks = len(_shape(one)), len(_shape(two))
    dim = -1 if _is("distance", node) else call.get("dim", 1)
    if not isinstance(dim, int) or call.get("keepdim", False) is not False:
        raise Unsupported("compares vectors along a computed dimension")
    full = _leading(max(ranks))
    gone = full[dim]
    terms = ((one, _leading(ranks[0])), (two, _leading(ranks[1])))
    return Product(terms, tuple(t for t in full if t != gone))


_PRODUCTS: dict[str, Callable[[fx.Node], Product]] = {
    "matmul": _matmul, "mm": _matmul, "bmm": _matmul, "mv": _matmul, "addmm": _added_matmul, "baddbmm": _added_matmul,
    "linear": _linear, "bilinear": _bilinear, "tensordot": _tensordot, "einsum": _einsum,
    "scaled_dot_product_attention": _attention, "cosine_similarity": _similarity, "pairwise_distance": _similarity,
}  # fmt: skip
PRODUCTS = frozenset(_PRODUCTS)


def product_of(node: fx.Node, name: str) -> Product:
    """A node in letters.

    Args:
        node: a node whose operation is one of ``PRODUCTS``.
        name: plain name of the operation.

    Raises:
        Unsupported: it cannot be put down with certainty.
    """
    return _PRODUCTS[name](node)


def factors(node: fx.Node, name: str, wanted: Axes) -> list[tuple[fx.Node, Axes]]:
    """The factors that decide the sizes of the result, and what each must give for the result to be ``wanted``."""
    product = product_of(node, name)
    found: list[tuple[fx.Node, Axes]] = []
    for source, tokens in product.terms:
        axes = {
            tokens.index(token): axis
            for token, axis in ((product.result[d], axis) for d, axis in wanted.items())
            if token in tokens and _shape(source)[tokens.index(token)] == product.size(token)
        }
        if axes:
            found.append((source, axes))
    return found
