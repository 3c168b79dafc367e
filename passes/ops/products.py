"""Products of tensors: ``matmul``, ``einsum``, ``tensordot``, ``linear``, attention and the like, and such layers.

All multiply entries and sum over some of them: in letters, what is summed over is not in the result. An operation that
is not purely such a product, or whose arguments are computed, is not described.
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from dmt_plugin.fxtools.arguments import arguments
from dmt_plugin.passes.ops.axes import Axes, Unsupported
from dmt_plugin.passes.ops.dims import Dims, Token, Tokens, follow, leading, tensor
from dmt_plugin.passes.ops.names import shape_of
from dmt_plugin.passes.ops.registry import layer, layer_by_rules, op
from dmt_plugin.passes.ops.walk import Walk


def _call(node: fx.Node, *names: str) -> dict[str, Any]:
    """Arguments by name; those of value ``None`` are as good as absent."""
    return {name: value for name, value in arguments(node, *names).items() if value is not None}


@op("matmul", "mm", "bmm", traits=("multiplies",))
@op("mv")
def _matmul(node: fx.Node) -> Dims:
    call = _call(node, "input", "other|mat2|vec")
    return _matrices(tensor(call["input"]), tensor(call.get("other")))


def _matrices(a: fx.Node, b: fx.Node) -> Dims:
    ranks = len(shape_of(a)), len(shape_of(b))
    left: Tokens = ("k",) if ranks[0] == 1 else (*leading(ranks[0] - 2), "i", "k")
    right: Tokens = ("k",) if ranks[1] == 1 else (*leading(ranks[1] - 2), "k", "j")
    result = (*leading(max(*ranks, 2) - 2), *(t for t in ("i", "j") if t in left + right))
    return Dims(((a, left), (b, right)), result)


@op("addmm", "baddbmm")
def _added_matmul(node: fx.Node) -> Dims:
    names = ("input", "mat1", "mat2") if _is("addmm", node) else ("input", "batch1", "batch2")
    call = _call(node, *names)
    summand, a, b = (tensor(call[name]) for name in names)
    product = _matrices(a, b)
    tokens = product.result[len(product.result) - len(shape_of(summand)) :]
    return Dims((*product.terms, (summand, tokens)), product.result)


def _is(name: str, node: fx.Node) -> bool:
    return name in (node.target if isinstance(node.target, str) else getattr(node.target, "__name__", ""))


@op("linear")
def _linear(node: fx.Node) -> Dims:
    call = _call(node, "input", "weight", "bias")
    x, weight = tensor(call["input"]), tensor(call["weight"])
    batch = leading(len(shape_of(x)) - 1)
    if len(shape_of(weight)) == 1:
        return Dims(((x, (*batch, "k")), (weight, ("k",))), batch)
    terms: list[tuple[fx.Node, Tokens]] = [(x, (*batch, "k")), (weight, ("o", "k"))]
    if "bias" in call:
        terms.append((tensor(call["bias"]), ("o",)))
    return Dims(tuple(terms), (*batch, "o"))


@op("bilinear")
def _bilinear(node: fx.Node) -> Dims:
    call = _call(node, "input1", "input2", "weight", "bias")
    one, two = tensor(call["input1"]), tensor(call["input2"])
    batch = leading(len(shape_of(one)) - 1)
    terms: list[tuple[fx.Node, Tokens]] = [(one, (*batch, "i")), (two, (*batch, "j"))]
    terms.append((tensor(call["weight"]), ("o", "i", "j")))
    if "bias" in call:
        terms.append((tensor(call["bias"]), ("o",)))
    return Dims(tuple(terms), (*batch, "o"))


@op("tensordot")
def _tensordot(node: fx.Node) -> Dims:
    call = _call(node, "a", "b", "dims")
    a, b, dims = tensor(call["a"]), tensor(call["b"]), call.get("dims", 2)
    ranks = len(shape_of(a)), len(shape_of(b))
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
    return Dims(((a, tuple(left)), (b, tuple(right))), result)


@op("einsum", traits=("multiplies",))
def _einsum(node: fx.Node) -> Dims:
    equation, *given = node.args
    if len(given) == 1 and isinstance(given[0], (list, tuple)):
        given = list(given[0])
    if not isinstance(equation, str):
        raise Unsupported("an einsum whose equation is not a text")
    operands = [tensor(value) for value in given]
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = [_letters(text, len(shape_of(o))) for text, o in zip(left.split(","), operands, strict=True)]
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
        result = (*leading(spread), *sorted(t for t in letters if letters.count(t) == 1))
    return Dims(tuple(zip(operands, terms, strict=True)), result)


def _letters(text: str, rank: int) -> Tokens:
    before, ellipsis, after = text.partition("...")
    count = rank - len(before) - len(after)
    return (*before, *(leading(count) if ellipsis else ()), *after)


@op("scaled_dot_product_attention", traits=("scales",))
def _attention(node: fx.Node) -> Dims:
    call = _call(node, "query", "key", "value", "attn_mask")
    if "attn_mask" in call:
        raise Unsupported("attention with a mask")
    query, key, value = (tensor(call[name]) for name in ("query", "key", "value"))
    batches = [leading(len(shape_of(n)) - 2) for n in (query, key, value)]
    terms = ((query, (*batches[0], "l", "e")), (key, (*batches[1], "s", "e")), (value, (*batches[2], "s", "v")))
    return Dims(terms, (*max(batches, key=len), "l", "v"), mixed=frozenset("l"))  # a causal mask tells places apart


@op("cosine_similarity", "pairwise_distance")
def _similarity(node: fx.Node) -> Dims:
    """Distances and similarities of vectors along one dimension."""
    call = _call(node, "x1", "x2", "p" if _is("distance", node) else "dim")
    one, two = tensor(call["x1"]), tensor(call["x2"])
    ranks = len(shape_of(one)), len(shape_of(two))
    dim = -1 if _is("distance", node) else call.get("dim", 1)
    if not isinstance(dim, int) or call.get("keepdim", False) is not False:
        raise Unsupported("compares vectors along a computed dimension")
    full = leading(max(ranks))
    gone = full[dim]
    terms = ((one, leading(ranks[0])), (two, leading(ranks[1])))
    return Dims(terms, tuple(t for t in full if t != gone))


# -- layers ----------------------------------------------------------------------------------


@layer(nn.Linear, inherited=True)
def _linear_layer(node: fx.Node, module: nn.Linear) -> Dims:
    (source,) = node.all_input_nodes
    batch = leading(len(shape_of(source)) - 1)
    return Dims(((source, (*batch, "k")),), (*batch, "o"), own=frozenset("o"), sized=("k",))


@layer(nn.Bilinear, inherited=True)
def _bilinear_layer(node: fx.Node, module: nn.Bilinear) -> Dims:
    """``(..., I)`` and ``(..., J)`` to ``(..., O)``; the widths may differ, the rest is common."""
    call = arguments(node, "input1", "input2")
    one, two = tensor(call["input1"]), tensor(call["input2"])
    batch = leading(len(shape_of(one)) - 1)
    return Dims(((one, (*batch, "i")), (two, (*batch, "j"))), (*batch, "o"), sized=("i", "j"))


def _convolution(walk: Walk, node: fx.Node) -> Axes:
    (source,) = node.all_input_nodes
    module: Any = walk.gm.get_submodule(str(node.target))
    places = len(module.kernel_size)
    axes, positions = walk.states[source].axes, len(shape_of(source)) - places
    for at in range(places):
        if positions + at in axes and not (_covers(module, source, at) or _one_by_one(module, at)):
            raise Unsupported(
                "slides a window over features, or over the entries of their vectors, which have no neighbours behind "
                "towers"
            )
    if positions - 1 in axes and module.groups != 1:
        raise Unsupported("convolves groups of channels whose number changed")
    return follow(walk, node, _convolution_layer(node, module))


def _covers(module: Any, source: fx.Node, at: int) -> bool:
    """Whether a window takes a whole dimension at once: then the convolution is a full product over it."""
    size = shape_of(source)[len(shape_of(source)) - len(module.kernel_size) + at]
    return bool(module.kernel_size[at] == size and _padding(module, at) == 0 and module.dilation[at] == 1)


def _one_by_one(module: Any, at: int) -> bool:
    return bool(module.kernel_size[at] == module.stride[at] == 1 and _padding(module, at) == 0)


def _padding(module: Any, at: int) -> int:
    if isinstance(module.padding, str):  # "same" adds nothing to a window of one
        return 0 if module.padding == "valid" or module.kernel_size[at] == 1 else 1
    return int(module.padding[at])


@layer(nn.Conv1d, nn.Conv2d, forward=_convolution, inherited=True)
def _convolution_layer(node: fx.Node, module: nn.Conv1d | nn.Conv2d) -> Dims:
    """A full product over the channels of ``(B, C, H, W)`` or ``(C, H, W)``; the window slides over the positions.

    Over a dimension that the window covers it is a full product as well, and the kernel is made for its size.
    """
    (source,) = node.all_input_nodes
    letters = "hw"[-len(module.kernel_size) :]
    batch = leading(len(shape_of(source)) - 1 - len(letters))
    covered = [_covers(module, source, at) for at in range(len(letters))]
    slides: Tokens = tuple(f"one {t}" if whole else t for t, whole in zip(letters, covered, strict=True))
    sized: Tokens = ("c", *(t if whole else "none" for t, whole in zip(letters, covered, strict=True)))
    terms = ((source, (*batch, "c", *letters)),)
    return Dims(terms, (*batch, "o", *slides), mixed=frozenset(letters), sized=sized)


layer_by_rules(nn.GroupNorm, per_sample=lambda module, rank: rank > 1)
